"""The commands that install numba-adam and its extras. Messages and documents use them. Imports nothing.

No package index has numba-adam, so users install it from a clone. The install is editable for one reason: in the clone,
`import numba_adam` finds the folder numba_adam/ first, and this folder does not contain the server and the client. A
service, which starts elsewhere, installs a copy.
"""

from __future__ import annotations

CUDA_PACKAGE = 'pip install "numba-cuda[cu13]" (or [cu12], after the CUDA version that your driver supports)'
"""The command that installs what the CUDA kernels need."""


def command(extra: str | None = None) -> str:
    """Return the command that installs numba-adam, with or without an extra."""
    return f"pip install -e '.[{extra}]'" if extra else "pip install -e ."


def copying(extra: str) -> str:
    """Return the command that installs a copy with an extra, for services that cannot read a clone in a home folder."""
    return f"pip install '.[{extra}]'"


def advice(extra: str | None = None) -> str:
    """Return the end of an error message about a missing package: where to run which command."""
    return f"in your clone of numba-adam, run: {command(extra)}"
