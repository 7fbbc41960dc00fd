"""Folders and files that only this user can write, and that are on disk once these functions return.

Imports the rule for private folders, which it shares with the kernel cache, and the error tree.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

from numba_adam.errors import ConfigurationError
from numba_adam.kernel_cache import private_folder

TEMPORARY = ".writing"
"""Ends the name of a file that is being written."""

_ADVICE = (
    "a data folder and all in it must belong to the user who runs the server, and nobody else may write to it: find "
    "out who did, then use chown and chmod go-w, or take another folder"
)


def make_folder(path: Path) -> None:
    """Create a folder and its missing parents, for this user alone, whatever the umask."""
    missing = [folder for folder in (path, *path.parents) if not folder.is_dir()]
    if missing:
        private_folder.make(path)
    for folder in missing:
        sync_folder(folder.parent)


def write_new(path: Path, write: Callable[[int], int]) -> int:
    """Create a file, write it with `write`, and fsync it. On failure the file is removed.

    Args:
        path: a file of that name is overwritten.
        write: called with the descriptor of the empty file; returns the size.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        os.fchmod(descriptor, 0o600)
        size = write(descriptor)
        os.fsync(descriptor)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    finally:
        os.close(descriptor)
    return size


def write_all(descriptor: int, raw: bytes) -> int:
    """Write all bytes, in as many calls as it takes; return their number."""
    view = memoryview(raw)
    while view:
        view = view[os.write(descriptor, view) :]
    return len(raw)


def replace(path: Path, write: Callable[[int], int]) -> None:
    """Replace a file atomically: after a crash it is the old one or the new one, whole."""
    temporary = path.with_name(path.name + TEMPORARY)
    write_new(temporary, write)
    temporary.rename(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Fsync a folder, so that the names in it are on disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_folder(path: Path) -> None:
    """Refuse a folder that other users may write to or replace.

    Args:
        path: without symbolic links above it.

    Raises:
        ConfigurationError: it is such a folder, or a symbolic link.
    """
    reason = private_folder.why_unsafe(path)
    if reason:
        raise ConfigurationError(f"data_dir: {reason}; {_ADVICE}")


def check_file(path: Path) -> None:
    """Refuse a file that others may write to.

    Raises:
        ConfigurationError: it is such a file, or a symbolic link.
    """
    try:
        status = path.lstat()
    except FileNotFoundError:
        return
    if stat.S_ISLNK(status.st_mode):
        raise ConfigurationError(f"data_dir: {str(path)!r} is a symbolic link; put the file itself there")
    if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):  # opening a pipe would block
        raise ConfigurationError(
            f"data_dir: {str(path)!r} is no file, with mode {stat.filemode(status.st_mode)}; move it away"
        )
    if not private_folder.is_ours_alone(status):
        raise ConfigurationError(
            f"data_dir: {str(path)!r} belongs to user {status.st_uid}, with mode {stat.filemode(status.st_mode)}; "
            f"{_ADVICE}"
        )
