"""Runs programs that fork, are interrupted or exit, in their own processes, and ends all their children."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

PATIENCE_SECONDS = 120

BEGIN = """
import os, signal, sys, threading, time, traceback
import numpy as np
from numba_adam.client import ParameterClient
from numba_adam.errors import ServiceError

FOR_EVER = 100_000.0  # seconds: a call that waits so long hangs
address = sys.argv[1]
grads = {"w": np.ones(4, np.float32)}
zeros = {"w": np.zeros(4, np.float32)}

def forked(job):
    "Run a job in a forked child; return a function that waits for it and sees that it ended well."
    child = os.fork()
    if child == 0:
        try:
            job()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    def join():
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, "the child failed"
    return join

def refused(call, words="make a ParameterClient in the child"):
    try:
        call()
    except ServiceError as error:
        assert words in str(error), error
    else:
        raise AssertionError("it was not refused")
"""


def environment() -> dict[str, str]:
    """Return the environment, with warnings as errors except Python 3.12's warning about forks with threads."""
    quiet = {"GRPC_VERBOSITY": "ERROR"}  # it tells of forks that it did nothing about
    return {**os.environ, **quiet, "PYTHONWARNINGS": "error,ignore:This process:DeprecationWarning"}


@contextmanager
def started(program: str, *words: str) -> Iterator[subprocess.Popen[str]]:
    """Start a program, and end it with all its children."""
    process = subprocess.Popen(
        [sys.executable, "-c", BEGIN + program, *words],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True, env=environment(),
    )  # fmt: skip
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def run(program: str, *words: str) -> str:
    """Run a program to its end and return what it printed; it must end with 0 and without an exception anywhere.

    Warnings of the log may come, such as of a call that a busy machine makes take long.
    """
    with started(program, *words) as process:
        out, errors = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 0, errors
    assert "Traceback" not in errors, errors
    return out
