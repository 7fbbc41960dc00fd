"""Folders that only their owner may write to: what lies there is executed, or believed. Imports nothing of ours."""

from __future__ import annotations

import os
import stat
from pathlib import Path

_OTHERS_MAY_WRITE = stat.S_IWGRP | stat.S_IWOTH


def is_ours_alone(status: os.stat_result) -> bool:
    """Say whether a file or folder belongs to this process's user, and nobody else may write to it."""
    if not hasattr(os, "geteuid"):
        return True
    return status.st_uid == os.geteuid() and not status.st_mode & _OTHERS_MAY_WRITE


def make(path: Path) -> None:
    """Make a folder, and those above it that are missing, for their owner alone, whatever the umask.

    A folder that exists stays as it is; `why_unsafe` says whether it may be used.

    Args:
        path: an absolute path.

    Raises:
        OSError: it cannot be made.
    """
    for folder in (*reversed(path.parents), path):
        if not folder.is_dir():
            folder.mkdir(mode=0o700, exist_ok=True)
            folder.chmod(0o700)  # the umask may have taken rights from the owner too


def why_unsafe(path: Path) -> str | None:
    """Say who else could put files into a folder, or put another folder in its place; None: nobody could.

    The folder must belong to this process's user, and only its owner may write to it. A folder above it that anyone may
    write to must have the sticky bit, as /tmp has, or anyone could rename what lies in it. Systems without users and
    modes of POSIX are trusted.

    Args:
        path: of the folder, without symbolic links: `Path.resolve` takes them out.

    Raises:
        OSError: the folder cannot be looked at.
    """
    if not hasattr(os, "geteuid"):
        return None
    status = path.lstat()
    if not stat.S_ISDIR(status.st_mode):
        return f"{str(path)!r} is not a folder"
    if status.st_uid != os.geteuid():
        return f"{str(path)!r} belongs to user {status.st_uid}, and this process runs as user {os.geteuid()}"
    if not is_ours_alone(status):
        return f"others may write to {str(path)!r} (mode {stat.S_IMODE(status.st_mode):o}, needed is 700 or 755)"
    for above in path.parents:
        mode = above.lstat().st_mode
        if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
            return f"anyone may rename what lies in {str(above)!r} (mode {stat.S_IMODE(mode):o}, not sticky)"
    return None
