"""How numba-adam and its extras are installed: what every message and document says. Imports nothing.

The package is on no index, so that it is installed from a clone. It is installed editable there: a plain install would
be hidden, in the clone's own folder, by the folder numba_adam/, in which the server and the client are not.
"""

from __future__ import annotations

CUDA_PACKAGE = 'pip install "numba-cuda[cu13]" (or [cu12], after the CUDA version that your driver supports)'
"""What the GPU's kernels need, from the package index."""


def command(extra: str | None = None) -> str:
    """Return the command that installs numba-adam, with one of its extras or without any."""
    return f"pip install -e '.[{extra}]'" if extra else "pip install -e ."


def advice(extra: str | None = None) -> str:
    """Return what to do where something is not installed."""
    return f"in your clone of numba-adam, run: {command(extra)}"
