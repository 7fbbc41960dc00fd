"""Why a process died, in words. Imports the standard library."""

from __future__ import annotations

import os
import signal
from pathlib import Path

_COUNTERS = Path("/proc/vmstat")
_ADVICE: dict[int, str] = {
    signal.SIGKILL: "another process sent it",
    signal.SIGBUS: "a mapped file lost its memory or was cut: is there room in the memory folder's file system?",
    signal.SIGSEGV: "a fault in a compiled library; PYTHONFAULTHANDLER=1 shows where",
    signal.SIGABRT: "a compiled library gave up; its message is above",
    signal.SIGILL: "a compiled kernel does not fit this processor; was the kernel cache made on another machine?",
}


def out_of_memory_kills() -> int:
    """Return how many processes the kernel has killed for want of memory since the machine started; 0: unknown."""
    try:
        lines = _COUNTERS.read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)


def why(status: int, kills_before: int) -> str:
    """Return what ended a process: "died of SIGKILL (...)" or "ended with exit status 1".

    Args:
        status: from os.waitpid.
        kills_before: what `out_of_memory_kills` returned when the process started.
    """
    if not os.WIFSIGNALED(status):
        return f"ended with exit status {os.waitstatus_to_exitcode(status)}"
    number = os.WTERMSIG(status)
    advice = _ADVICE.get(number, "")
    if number == signal.SIGKILL and out_of_memory_kills() > kills_before:
        advice = (
            "most likely the kernel's OOM killer, which has just killed a process: give it more memory, or lower "
            "--memory-budget-bytes"
        )
    return f"died of {_name(number)}{advice and f' ({advice})'}"


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"signal {number}"
