"""The data folder: which models there are, which snapshot of each is the newest, and which one still holds.

    DIR/lock                            held by flock while a server runs
    DIR/running                         there while a server runs; found at start, it tells of a crash
    DIR/models/NAME/00000007.snapshot   one model's snapshots, numbered as they were written

A snapshot is written beside its name, fsynced, renamed and the folder fsynced; only then does the oldest go.
Imports the snapshot format and the error tree.
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from numba_adam.errors import ConfigurationError, CorruptSnapshotError, SnapshotError
from numba_adam.server import snapshot as snapshots
from numba_adam.server.snapshot import Arrays, Snapshot
from numba_adam.server.spec import check_model_name, is_model_name

_log = logging.getLogger(__name__)
_SNAPSHOT_NAME = re.compile(r"([0-9]{8,})\.snapshot")
_DELETED = ".deleted-"
_TEMPORARY = ".writing"
_DAMAGED = ".damaged"


class Restored(NamedTuple):
    """A model's state as it was found on disk."""

    snapshot: Snapshot
    """The records."""

    is_newest: bool
    """False when a newer snapshot was damaged, and this is an older one."""


class Store:
    """A data folder, held by this process alone until `close`.

    Args:
        folder: created if it is not there.
        kept: snapshots kept of each model.

    Raises:
        ConfigurationError: another server holds it, or it cannot be written.
    """

    def __init__(self, folder: Path, kept: int) -> None:
        self.folder = folder
        self._models = folder / "models"
        self._kept = kept
        self._is_closed = False
        self._is_untouched = True  # no damaged snapshot was set aside: what was saved last would be found next
        try:
            self._models.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise ConfigurationError(
                f"data_dir={str(folder)!r}: it must be a folder this user can write ({error})"
            ) from error
        self._take_lock()
        self.was_stopped_cleanly = not self._running.exists()
        self._mark_running()
        self._sweep()

    @property
    def _running(self) -> Path:
        return self.folder / "running"

    def model_names(self) -> list[str]:
        """Return the names of the models that have a folder, sorted."""
        names = sorted(path.name for path in self._models.iterdir() if path.is_dir())
        strange = [name for name in names if not is_model_name(name)]
        if strange:
            _log.warning("%s: %s: not the name of a model, left alone", self._models, ", ".join(map(repr, strange)))
        return [name for name in names if name not in strange]

    def write(self, name: str, capture: Callable[[int], int]) -> int:
        """Write a model's next snapshot and return its size; it is on disk when this returns.

        Args:
            name: the model.
            capture: called with the descriptor of an empty file; writes the snapshot and returns its size.
        """
        folder = self._folder(name)
        if not folder.exists():
            folder.mkdir(mode=0o700)
            _sync_folder(self._models)
        numbers = _numbers(folder)
        path = folder / f"{max(numbers, default=0) + 1:08d}.snapshot"
        temporary = path.with_suffix(_TEMPORARY)
        size = _write_durably(temporary, capture)
        temporary.rename(path)
        _sync_folder(folder)
        for number in sorted([*numbers, max(numbers, default=0) + 1])[: -self._kept]:
            (folder / f"{number:08d}.snapshot").unlink()
        return size

    def restore(self, name: str, arrays_for: Callable[[Snapshot], Arrays]) -> Restored:
        """Read the newest snapshot that holds.

        A damaged one is renamed and stays for whoever wants to look at it.

        Raises:
            CorruptSnapshotError: not one of the model's snapshots holds.
            SnapshotError: one cannot be read at all.
        """
        folder = self._folder(name)
        damaged: list[str] = []
        for number in sorted(_numbers(folder), reverse=True):
            path = folder / f"{number:08d}.snapshot"
            try:
                found = snapshots.read(path, arrays_for)
            except CorruptSnapshotError as error:
                _log.error("model %s: %s; falling back to the snapshot before it", name, error)
                damaged.append(str(error))
                continue
            except OSError as error:  # it may be whole: going back behind it is not for us to decide
                raise SnapshotError(
                    f"model {name!r}: snapshot {str(path)!r} cannot be read ({error}); make it readable, or move it "
                    "away to go back to the one before it"
                ) from error
            self._set_aside(folder, number)
            return Restored(found, is_newest=not damaged)
        raise CorruptSnapshotError(
            f"model {name!r}: no snapshot holds ({'; '.join(damaged) or 'there is none'}); restore the folder from a "
            f"backup, or move {str(folder)!r} away to start without the model"
        )

    def delete(self, name: str) -> None:
        """Remove a model's folder; after a crash it is either whole or gone."""
        folder = self._folder(name)
        if folder.exists():
            grave = self._models / f"{_DELETED}{secrets.token_hex(8)}"
            folder.rename(grave)
            _sync_folder(self._models)
            shutil.rmtree(grave)

    def close(self, *, clean: bool) -> None:
        """Let the folder go.

        Args:
            clean: every model's last state is in its newest snapshot, so that the next start may carry on.

        Raises:
            OSError: that could not be written down; the next start will take it for a crash.
        """
        if self._is_closed:
            return
        self._is_closed = True
        try:
            if clean:
                self._running.unlink()
                _sync_folder(self.folder)
        finally:
            os.close(self._lock)

    def abandon(self) -> None:
        """Let the folder go before anything was served from it: what was a clean stop still is one, if it can be.

        Raises:
            OSError: that could not be written down; the next start will take it for a crash.
        """
        self.close(clean=self.was_stopped_cleanly and self._is_untouched)

    def _folder(self, name: str) -> Path:
        return self._models / check_model_name(name)

    def _take_lock(self) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._lock)
            raise ConfigurationError(
                f"data_dir={str(self.folder)!r}: another server holds it; stop that one or give this one its own folder"
            ) from error

    def _mark_running(self) -> None:
        descriptor = os.open(self._running, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        os.fsync(descriptor)
        os.close(descriptor)
        _sync_folder(self.folder)

    def _sweep(self) -> None:
        """Remove what a crash left half-done: it was never acknowledged."""
        for path in self._models.iterdir():
            if path.name.startswith(_DELETED):
                shutil.rmtree(path)
            elif path.is_dir():
                for left in path.glob(f"*{_TEMPORARY}"):
                    left.unlink()
                if not any(path.iterdir()):
                    path.rmdir()

    def _set_aside(self, folder: Path, number: int) -> None:
        """Rename the snapshots that are newer than the one that held."""
        self._is_untouched = self._is_untouched and max(_numbers(folder)) == number
        for newer in _numbers(folder):
            if newer > number:
                (folder / f"{newer:08d}.snapshot").rename(folder / f"{newer:08d}{_DAMAGED}")
        _sync_folder(folder)


def _numbers(folder: Path) -> list[int]:
    """Return the numbers of the snapshots in a folder."""
    found = (_SNAPSHOT_NAME.fullmatch(path.name) for path in folder.iterdir())
    return [int(match.group(1)) for match in found if match]


def _write_durably(path: Path, capture: Callable[[int], int]) -> int:
    """Create a file, have it written, and fsync it; leave nothing behind when that fails."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        size = capture(descriptor)
        os.fsync(descriptor)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    finally:
        os.close(descriptor)
    return size


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
