"""New Python processes, for what only a new process can tell. Imports the standard library alone."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

_LONGEST_SECONDS = 600.0


def output_of(*arguments: str) -> str:
    """Run this interpreter and return the last line that it printed.

    Raises:
        RuntimeError: it failed; the message is the last line of its stderr.
    """
    return _run(*arguments, cwd=None)


def seconds_of(program: str) -> float:
    """Return how long a program takes in a new interpreter, from its start to its end."""
    with tempfile.TemporaryDirectory() as folder:  # beside the sources, `import numba_adam` would find those first
        begin = time.perf_counter()
        _run("-c", program, cwd=folder)
        return time.perf_counter() - begin


def answer_of(program: str) -> str:
    """Return the last line that a program prints in a new interpreter, run as if installed."""
    with tempfile.TemporaryDirectory() as folder:
        return _run("-c", program, cwd=folder)


def _run(*arguments: str, cwd: str | None) -> str:
    process = subprocess.run(
        [sys.executable, *arguments], cwd=cwd, capture_output=True, text=True, check=False, timeout=_LONGEST_SECONDS
    )
    if process.returncode:
        last = (process.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise RuntimeError(f"{' '.join(arguments)!r} ended with exit status {process.returncode}: {last}")
    return (process.stdout.splitlines() or [""])[-1]


@contextlib.contextmanager
def serving(*arguments: str, announces: str, cwd: str | None = None) -> Iterator[str]:
    """Run a server in this interpreter's likeness until the context ends.

    Args:
        arguments: the interpreter's.
        announces: how the line begins that the server prints when it is ready; the address follows.
        cwd: folder that it runs in.

    Yields:
        The address.
    """
    process = subprocess.Popen([sys.executable, *arguments], cwd=cwd, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        for line in process.stdout:
            if line.startswith(announces):
                yield line.removeprefix(announces).strip()
                break
        else:
            raise RuntimeError(f"{' '.join(arguments)!r} ended before it was ready")
    finally:
        process.terminate()
        try:
            process.wait(_LONGEST_SECONDS)
        finally:
            process.kill()
            process.stdout.close()
