"""The folder of files that outlive the server's process: what models at the level `process` acknowledged.

    DIR/numba-adam-UID/KEY/NAME/journal      what happened since its first record, in order
    DIR/numba-adam-UID/KEY/NAME/arena        the model's arrays, mapped into memory
    DIR/numba-adam-UID/KEY/NAME/gradient-K   gradients that are being received or applied, likewise

DIR is a file system in memory, so nothing here is ever written to a disk or fsynced, and nothing survives a stop of the
machine. KEY belongs to one data folder. Imports its owner, keys and the error tree.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import shlex
import shutil
import sys
from collections.abc import Collection
from pathlib import Path

from numba_adam.errors import ConfigurationError, TransferTooLargeError
from numba_adam.kernel_cache import private_folder
from numba_adam.server.storage.keys import Keys
from numba_adam.server.storage.memory_owner import OwnerFile, forsaken, key_of

_log = logging.getLogger(__name__)
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class ModelMemory:
    """The files of one model.

    Args:
        folder: the model's folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.journal = folder / "journal"
        """Path of the journal. If it does not exist, nothing here is of use."""

    def exists(self) -> bool:
        """Return whether an earlier process left the model here."""
        return self.journal.exists()

    def create(self, name: str, nbytes: int) -> int:
        """Create a file of zeros, and reserve its memory; return its descriptor.

        Raises:
            TransferTooLargeError: the file system has no room for it, or the system cannot reserve room.
        """
        path = self.folder / name
        try:
            private_folder.make(self.folder)
            path.unlink(missing_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise self.no_room(name, nbytes, error) from error
        try:
            _reserve(descriptor, nbytes)
        except OSError as error:
            os.close(descriptor)
            path.unlink(missing_ok=True)
            raise self.no_room(name, nbytes, error) from error
        return descriptor

    def no_room(self, name: str, nbytes: int, error: OSError) -> TransferTooLargeError:
        """Return the error that a file cannot be made. The message says what to do."""
        return TransferTooLargeError(
            f"durability='process': {nbytes} bytes in {str(self.folder / name)!r} cannot be reserved ({error}; "
            f"{_free(self.folder)}). Give that file system more room (a container's /dev/shm often has 64 MiB: docker "
            "run --shm-size), start the server with --memory-dir in a larger one, or create the model with "
            "durability='memory', which loses the pushes after the last snapshot if the server is killed"
        )

    def open(self, name: str, nbytes: int) -> int:
        """Open a file that an earlier process left; return its descriptor.

        Raises:
            ValueError: it has another size.
            OSError: it cannot be opened.
        """
        descriptor = os.open(self.folder / name, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        found = os.fstat(descriptor).st_size
        if found != nbytes:
            os.close(descriptor)
            raise ValueError(f"{str(self.folder / name)!r} has {found} bytes, expected {nbytes}")
        return descriptor

    def forget(self, name: str) -> None:
        """Remove a file."""
        (self.folder / name).unlink(missing_ok=True)

    def forget_gradients(self) -> None:
        """Remove the files of all gradients."""
        for path in self.folder.glob("gradient-*"):
            path.unlink()

    def remove(self) -> None:
        """Remove the model's folder; the journal first, without which the rest is of no use."""
        self.journal.unlink(missing_ok=True)
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(self.folder)


def _reserve(descriptor: int, nbytes: int) -> None:
    """Reserve a file's memory. Without it, a later write would be a SIGBUS in place of an error.

    Raises:
        OSError: there is no room, or the system has no call for it.
    """
    if not hasattr(os, "posix_fallocate"):
        raise OSError(errno.ENOSYS, f"{sys.platform} has no posix_fallocate")
    if nbytes:
        os.posix_fallocate(descriptor, 0, nbytes)


def _free(folder: Path) -> str:
    """Return in words how much room there is at a folder, or at the parent that exists."""
    place = next(path for path in (folder, *folder.parents) if path.exists())
    status = os.statvfs(place)
    return f"{status.f_bavail * status.f_frsize} bytes are free there"


class MemoryFolder:
    """The memory folder of one data folder, whose lock this process holds.

    Args:
        parent: a folder on a file system in memory. If it does not exist, the data folder is used.
        data_dir: the data folder.

    Raises:
        ConfigurationError: the folder cannot be used, or other users may write to it.
    """

    def __init__(self, parent: Path, data_dir: Path) -> None:
        root = parent.resolve() / f"numba-adam-{os.geteuid()}" if parent.is_dir() else data_dir / "memory"
        self.path = root / key_of(data_dir)
        """The folder."""

        self._owner = OwnerFile(self.path, data_dir)

        self.boot_id = _BOOT_ID.read_text().strip() if _BOOT_ID.exists() else ""
        """Id of the machine's last start. Files on a disk may be older."""

    def model(self, name: str) -> ModelMemory:
        """Return the files of a model."""
        return ModelMemory(self.path / name)

    def check(self) -> None:
        """Refuse a folder that other users may write to.

        Raises:
            ConfigurationError: other users may, or it cannot be used.
        """
        try:
            private_folder.make(self.path)
            reason = private_folder.why_unsafe(self.path) or private_folder.why_unsafe(self.path.parent)
            if not reason:
                self._owner.take()
        except OSError as error:
            reason = str(error)
        if reason:
            raise ConfigurationError(
                f"memory_dir: {reason}; it would hold what models acknowledged. Find out who did this, and remove "
                "it, start with another --memory-dir, or create models with durability='memory'"
            )

    def check_apart(self, data_dir: Path, keys: Keys) -> None:
        """Refuse, with keys, a memory folder within the data folder: what is in it has no tags.

        Raises:
            ConfigurationError: it is there.
        """
        if keys.is_set and self.path.is_relative_to(data_dir.resolve()):
            raise ConfigurationError(
                f"memory_dir: {str(self.path)!r} is in the data folder, and whoever can write there could change "
                "models in it, which no key would notice. Start with --memory-dir outside of it, in a file system in "
                "memory"
            )

    def sweep(self, names: Collection[str]) -> None:
        """Remove what is left of models other than these."""
        if not self.path.is_dir():
            return
        for path in self.path.iterdir():
            if path.name not in names:
                _log.info("%s: removed, the model does not exist", path)
                ModelMemory(path).remove()

    def report_forsaken(self) -> None:
        """Log which other memory no server uses whose data folder is not where it was."""
        for each in forsaken(self.path):
            _log.warning(
                "%s: %.0f MB of memory are left of a server that was killed, and its data folder %s is not there. If "
                "it was moved, start a server on it. If it was deleted, free the memory: rm -r %s %s",
                each.folder,
                each.nbytes / 1e6,
                each.data_dir,
                shlex.quote(str(each.folder)),
                shlex.quote(str(each.owner)),
            )

    def close(self) -> None:
        """Remove the folder, if no model is in it."""
        with contextlib.suppress(OSError):
            self.path.rmdir()
        self._owner.release(is_empty=not self.path.exists())
