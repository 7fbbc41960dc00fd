"""Waits for the end of a process that holds a lock and is being killed. Imports the standard library."""

from __future__ import annotations

import contextlib
import os
import select
from pathlib import Path

_LOCKS = Path("/proc/locks")
_EXITING = 0x4  # a process's flag in /proc/PID/stat: PF_EXITING
_KILLED = 1 << 8  # SIGKILL in a mask of signals
_LONGEST_SECONDS = 60.0
_SECOND_LOOK_SECONDS = 0.1


def wait_for_dying_holder(descriptor: int) -> bool:
    """Wait until the process that holds a file's lock is gone, if it is about to die; return whether it is gone.

    A killed process holds its locks and ports until the kernel has released its memory, and whoever starts the next
    server may be faster than that.

    Args:
        descriptor: of the locked file.
    """
    pid = _holder(os.fstat(descriptor).st_ino)
    if pid is None or not hasattr(os, "pidfd_open"):
        return False
    try:
        process = os.pidfd_open(pid)
    except OSError:  # it is gone
        return True
    try:
        is_dying = _is_dying(pid) or _is_over(process, _SECOND_LOOK_SECONDS) or _is_dying(pid)
        return is_dying and _is_over(process, _LONGEST_SECONDS)
    finally:
        os.close(process)


def _holder(inode: int) -> int | None:
    """Return the process that holds a lock on a file; None if it is not known, as one of another container."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in _LOCKS.read_text().splitlines():
            words = line.split()
            if words[1] == "FLOCK" and words[5].endswith(f":{inode}") and int(words[4]) > 0:
                return int(words[4])
    return None


def _is_dying(pid: int) -> bool:
    """Return whether a process exits, or has been sent SIGKILL."""
    try:
        flags = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[6])
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (OSError, ValueError, IndexError):
        return True  # it is gone
    pending = [int(line.split()[1], 16) for line in lines if line.startswith(("SigPnd:", "ShdPnd:"))]
    return bool(flags & _EXITING) or any(mask & _KILLED for mask in pending)


def _is_over(process: int, seconds: float) -> bool:
    """Return whether a process has ended, after at most so many seconds."""
    poll = select.poll()
    poll.register(process, select.POLLIN)
    return bool(poll.poll(1000 * seconds))
