"""Writes folders and files durably: only this user can write to them, and they are on disk when the functions return.

Imports the rule for private folders, which the kernel cache uses too, and the error tree.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
from collections.abc import Callable
from pathlib import Path

from numba_adam.errors import ConfigurationError
from numba_adam.kernel_cache import private_folder

_log = logging.getLogger(__name__)
FAILED_SYNC_STATUS = 74
"""Exit status of a server that ended because an fsync failed."""

NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
"""Errors of a disk that is full."""

_is_process_ours = False

TEMPORARY = ".writing"
"""Suffix of files that are being written."""

_ADVICE = (
    "a data folder and its content must belong to the server's user, and no other user may write to it: find out who "
    "did, then use chown and chmod go-w, or use another folder"
)


def make_folder(path: Path) -> None:
    """Create a folder and its missing parents, accessible only to this user for any umask."""
    missing = [folder for folder in (path, *path.parents) if not folder.is_dir()]
    if missing:
        private_folder.make(path)
    for folder in missing:
        sync_folder(folder.parent)


def write_new(path: Path, write: Callable[[int], int]) -> int:
    """Create a file, write it with `write`, and fsync it. On failure the file is removed.

    Args:
        path: the file; an existing one is overwritten.
        write: gets the descriptor of the empty file; returns the size.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        os.fchmod(descriptor, 0o600)
        size = write(descriptor)
        sync(descriptor, path)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    finally:
        os.close(descriptor)
    return size


def write_all(descriptor: int, raw: bytes) -> int:
    """Write all bytes, in several calls if necessary; return their number."""
    view = memoryview(raw)
    while view:
        view = view[os.write(descriptor, view) :]
    return len(raw)


def replace(path: Path, write: Callable[[int], int]) -> None:
    """Replace a file atomically: after a crash it is the complete old file or the complete new one."""
    temporary = path.with_name(path.name + TEMPORARY)
    write_new(temporary, write)
    temporary.rename(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Fsync a folder, so that the names in it are on disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        sync(descriptor, folder)
    finally:
        os.close(descriptor)


def end_after_failed_sync() -> None:
    """Make a failed fsync end this process. A program that embeds a server gets an error instead.

    After a failure the system may take what it could not write for written, so another try proves nothing. The next
    process reads what is on disk.
    """
    global _is_process_ours
    _is_process_ours = True


def sync(descriptor: int, path: Path, *, data_only: bool = False) -> None:
    """Fsync a file or a folder.

    Args:
        descriptor: its descriptor.
        path: its path, for messages.
        data_only: True: its times need not be on disk; and a full disk ends the process too.

    Raises:
        OSError: it may not be on disk.
    """
    try:
        (os.fdatasync if data_only else os.fsync)(descriptor)
    except OSError as error:
        if data_only or error.errno not in NO_ROOM:
            end_if_ours(path, "fsync", error)
        raise


def end_if_ours(path: Path, what: str, error: OSError) -> None:
    """End this process, unless another program embeds the server.

    Args:
        path: the file that may not be on disk.
        what: what failed.
        error: why.
    """
    if _is_process_ours:
        _log.critical(
            "%s: %s failed (%s), so what was written may not be on disk; the server ends with status %d, and "
            "acknowledges nothing any more. Check the disk, then start it again: it reads what is there",
            path,
            what,
            error,
            FAILED_SYNC_STATUS,
        )
        logging.shutdown()
        os._exit(FAILED_SYNC_STATUS)


def check_folder(path: Path) -> None:
    """Refuse a folder that other users may write to or replace.

    Args:
        path: the folder; none of its parents is a symbolic link.

    Raises:
        ConfigurationError: other users may, or it is a symbolic link.
    """
    reason = private_folder.why_unsafe(path)
    if reason:
        raise ConfigurationError(f"data_dir: {reason}; {_ADVICE}")


def check_file(path: Path) -> None:
    """Refuse a file that other users may write to.

    Raises:
        ConfigurationError: other users may, or it is a symbolic link.
    """
    try:
        status = path.lstat()
    except FileNotFoundError:
        return
    if stat.S_ISLNK(status.st_mode):
        raise ConfigurationError(f"data_dir: {str(path)!r} is a symbolic link; put the file itself there")
    if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):  # opening a pipe would block
        raise ConfigurationError(
            f"data_dir: {str(path)!r} is not a file or folder, mode {stat.filemode(status.st_mode)}; move it away"
        )
    if not private_folder.is_ours_alone(status):
        raise ConfigurationError(
            f"data_dir: {str(path)!r} belongs to user {status.st_uid}, with mode {stat.filemode(status.st_mode)}; "
            f"{_ADVICE}"
        )
