"""Says which data folder a memory folder belongs to, so that memory that nobody will ask for can be found.

    DIR/numba-adam-UID/KEY.owner     path of the data folder; held by flock while its server runs

A killed server leaves its memory for the next one on the same data folder. If that folder was deleted, no server ever
asks for it. From outside, a deleted folder cannot be told from one that was moved or is not mounted, so nothing is
removed here: the memory would be lost, and with it what was acknowledged. Imports nothing of ours.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_SUFFIX = ".owner"


class Forsaken(NamedTuple):
    """Memory without a server, whose data folder is not where it was."""

    folder: Path
    """The memory folder."""

    data_dir: str
    """Where the data folder was."""

    nbytes: int
    """Memory in it."""

    @property
    def owner(self) -> Path:
        """The file beside it."""
        return self.folder.with_name(self.folder.name + _SUFFIX)


class OwnerFile:
    """The file beside a memory folder that says whose it is.

    Args:
        folder: the memory folder.
        data_dir: the data folder, whose lock this process holds.
    """

    def __init__(self, folder: Path, data_dir: Path) -> None:
        self._path = folder.with_name(folder.name + _SUFFIX)
        self._data_dir = data_dir.resolve()
        self._descriptor = -1

    def take(self) -> None:
        """Write the file and hold it.

        Raises:
            OSError: it cannot be written.
        """
        if self._descriptor >= 0:
            return
        self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        fcntl.flock(self._descriptor, fcntl.LOCK_EX)  # whoever looks holds it for a moment
        content = os.fsencode(self._data_dir)
        os.pwrite(self._descriptor, content, 0)
        os.ftruncate(self._descriptor, len(content))

    def release(self, *, is_empty: bool) -> None:
        """Stop holding the file; remove it if nothing is left in the memory folder."""
        if is_empty and self._descriptor >= 0:
            self._path.unlink(missing_ok=True)
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = -1


def forsaken(own: Path) -> Iterator[Forsaken]:
    """Yield the memory beside a server's own that no server uses, and whose data folder is not where it was."""
    for path in sorted(own.parent.glob(f"*{_SUFFIX}")):
        with contextlib.suppress(OSError):  # it is gone meanwhile, or belongs to somebody else
            data_dir = _data_dir_of(path)
            folder = path.with_name(path.name.removesuffix(_SUFFIX))
            if folder != own and data_dir and not _is_there(Path(data_dir), folder.name) and folder.is_dir():
                yield Forsaken(folder, data_dir, _bytes_of(folder))


def key_of(data_dir: Path) -> str:
    """Return the name of a data folder's memory folder.

    Raises:
        OSError: it is no data folder.
    """
    status = (data_dir / "lock").stat()
    return f"{status.st_dev:x}-{status.st_ino:x}"


def _data_dir_of(path: Path) -> str:
    """Return what an owner's file says; an empty text while a server holds it.

    Raises:
        OSError: it cannot be read.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return os.fsdecode(os.pread(descriptor, os.fstat(descriptor).st_size, 0))
    except BlockingIOError:
        return ""
    finally:
        os.close(descriptor)


def _is_there(data_dir: Path, key: str) -> bool:
    try:
        return key_of(data_dir) == key
    except OSError:
        return False


def _bytes_of(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            total += path.lstat().st_blocks * 512
    return total
