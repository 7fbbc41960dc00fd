"""Folders that only their owner may write to, because their files are executed or trusted. Imports nothing of ours."""

from __future__ import annotations

import os
import stat
from pathlib import Path

_OTHERS_MAY_WRITE = stat.S_IWGRP | stat.S_IWOTH
_ROOT = 0


def is_ours_alone(status: os.stat_result) -> bool:
    """Say whether a file or folder belongs to this process's user and only this user may write to it."""
    if not hasattr(os, "geteuid"):
        return True
    return status.st_uid == os.geteuid() and not status.st_mode & _OTHERS_MAY_WRITE


def make(path: Path) -> None:
    """Create a folder and its missing parents, writable for their owner alone, whatever the umask.

    An existing folder stays as it is; `why_unsafe` says whether it may be used.

    Args:
        path: an absolute path.

    Raises:
        OSError: it cannot be created.
    """
    for folder in (*reversed(path.parents), path):
        if not folder.is_dir():
            folder.mkdir(mode=0o700, exist_ok=True)
            folder.chmod(0o700)  # the umask may have removed the owner's rights


def why_unsafe(path: Path, *, may_be_of_root: bool = False) -> str | None:
    """Say who else could put files into a folder or replace the folder; None if nobody could.

    The folder must belong to this process's user, and only this user may write to it. A parent that anyone may write to
    must have the sticky bit, as /tmp has, because otherwise anyone could rename what it contains. Systems without POSIX
    users and modes are trusted.

    Args:
        path: the folder's path without symbolic links, as `Path.resolve` returns it.
        may_be_of_root: whether the folder may belong to root, as in a container image. Root can replace it anyway.

    Raises:
        OSError: the folder's status cannot be read.
    """
    if not hasattr(os, "geteuid"):
        return None
    status = path.lstat()
    if not stat.S_ISDIR(status.st_mode):
        return f"{str(path)!r} is not a folder"
    if status.st_uid != os.geteuid() and not (may_be_of_root and status.st_uid == _ROOT):
        return f"{str(path)!r} belongs to user {status.st_uid}, and this process runs as user {os.geteuid()}"
    if status.st_mode & _OTHERS_MAY_WRITE:
        return f"others may write to {str(path)!r} (mode {stat.S_IMODE(status.st_mode):o}, expected 700 or 755)"
    for above in path.parents:
        mode = above.lstat().st_mode
        if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
            return f"anyone may rename what lies in {str(above)!r} (mode {stat.S_IMODE(mode):o}, not sticky)"
    return None
