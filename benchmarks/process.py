"""New Python processes, for measurements that need one. May import the standard library only."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping

_LONGEST_SECONDS = 600.0


def output_of(*arguments: str) -> str:
    """Run this interpreter and return the last line that it printed.

    Raises:
        RuntimeError: it failed; the message is the last line of its stderr.
    """
    return _run(*arguments, cwd=None)


def seconds_of(program: str) -> float:
    """Return the seconds that a program takes in a new interpreter, from start to end."""
    with tempfile.TemporaryDirectory() as folder:  # in the clone, `import numba_adam` would find the sources first
        begin = time.perf_counter()
        _run("-c", program, cwd=folder)
        return time.perf_counter() - begin


def answer_of(program: str) -> str:
    """Return the last line that a program prints in a new interpreter, outside the clone."""
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
def serving(
    *arguments: str, announces: str, cwd: str | None = None, variables: Mapping[str, str] | None = None
) -> Iterator[str]:
    """Run a server with this interpreter until the context ends.

    Args:
        arguments: the arguments of the interpreter.
        announces: the start of the line that the server prints when it is ready. The address follows.
        cwd: the working folder of the server.
        variables: of its environment, besides those of this process.

    Yields:
        The address.
    """
    process = subprocess.Popen(
        [sys.executable, *arguments],
        cwd=cwd,
        env={**os.environ, **(variables or {})},
        stdout=subprocess.PIPE,
        text=True,
    )
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
