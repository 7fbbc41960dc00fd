"""The data folder: the models in it, and the newest intact snapshot of each.

    DIR/lock                            held by flock while a server runs; has the folder's format
    DIR/run                             the newest run: its id and the names of the models
    DIR/manifest                        each model's last snapshot; written at a clean stop, removed at a start
    DIR/models/NAME/00000007.snapshot   one model's snapshots, numbered in the order of writing
    DIR/models/NAME/00000007.journal    what happened to it since, at the level `disk`, likewise

A snapshot is written to a temporary file, fsynced and renamed, and the folder is fsynced. Only then is the oldest
snapshot deleted. A model keeps its state id only if the manifest describes its newest snapshot file exactly; otherwise
the model is rewound. Imports the snapshot format, the manifest and the error tree.
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
import secrets
import shutil
import threading
from collections.abc import Callable, Collection
from pathlib import Path
from typing import NamedTuple

from numba_adam.errors import ConfigurationError, CorruptSnapshotError, SnapshotError
from numba_adam.server.model.names import check_model_name, is_model_name
from numba_adam.server.storage import snapshot as snapshots
from numba_adam.server.storage import token_file
from numba_adam.server.storage.durable import (
    TEMPORARY,
    check_file,
    check_folder,
    make_folder,
    replace,
    sync,
    sync_folder,
    write_new,
)
from numba_adam.server.storage.holder import wait_for_dying_holder
from numba_adam.server.storage.keys import NO_KEYS, Keys
from numba_adam.server.storage.last_run import LOCK_TEXT, LastRun, check_known
from numba_adam.server.storage.manifest import RESTORED, LastSnapshot, Manifest, Restoration, Run, read_restoration
from numba_adam.server.storage.segments import Segments
from numba_adam.server.storage.snapshot import Arrays, Snapshot
from numba_adam.server.storage.snapshot_files import describe, numbers_in, path_of

_log = logging.getLogger(__name__)
_GRAVE_NAME = re.compile(r"\.deleted-[0-9a-f]{16}-(.+)")
_DELETED = ".deleted-"
_DAMAGED = ".damaged"


class Restored(NamedTuple):
    """A model's state, read from disk."""

    snapshot: Snapshot
    """The records."""

    why_rewound: str
    """Why this may not be the model's last state; empty if it is."""


class _Newest(NamedTuple):
    """The snapshot of a model that this process wrote or read last."""

    number: int
    xxh3_64: str


class DataFolder:
    """A data folder, locked by this process until `close`.

    Args:
        path: the folder; created if it does not exist.
        kept: number of snapshots kept of each model.
        keys: of the folder.

    Raises:
        ConfigurationError: another server has locked it, it is not writable, other users may write to it, or another
            release wrote it.
        SnapshotError: the keys refuse it.
    """

    def __init__(self, path: Path, kept: int, keys: Keys = NO_KEYS) -> None:
        self.keys = keys
        """Its keys."""

        self._stale: set[str] = set()  # models whose newest snapshot has another key, or none
        self.path = path.resolve()  # this process may change its working directory later
        self._models = self.path / "models"
        self._kept = kept
        self._newest: dict[str, _Newest] = {}
        self._names: set[str] = set()
        self._run_id = ""  # until the run begins
        self.next_run_id = secrets.token_hex(16)
        """Id of the run that `begin` begins."""

        self._changing = threading.Lock()
        self._is_closed = False
        try:
            is_new = self._make()
            self._lock = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise self._not_writable(error) from error
        try:
            self._take_lock()
            self._check_ours()
            text = os.pread(self._lock, 100, 0)
            is_new = is_new or (bool(text) and not text.strip(b"\0"))  # the power failed before it was on disk
            self._last_run = LastRun(self.path, None if is_new else text, keys)
            check_known(self._models, self._last_run.run_id, keys)
            if is_new:
                self._mark()
        except BaseException:
            os.close(self._lock)
            raise

    def model_names(self) -> list[str]:
        """Return the names of the models, sorted.

        Raises:
            SnapshotError: a model that must exist has no snapshot.
        """
        names = sorted(path.name for path in self._models.iterdir() if path.is_dir())
        strange = [name for name in names if not is_model_name(name) and not name.startswith(_DELETED)]
        if strange:
            _log.warning("%s: %s: ignored, not the name of a model", self._models, ", ".join(map(repr, strange)))
        found = {name for name in names if is_model_name(name)} - set(self._half_made())
        there = {name for name in found if numbers_in(self._models / name)}
        missing = (found | self._last_run.names) - self._buried() - there
        if missing:
            raise SnapshotError(
                f"data_dir={str(self.path)!r}: there is no snapshot of {', '.join(map(repr, sorted(missing)))} in "
                f"{str(self._models)!r}; put the folder back from a backup, or, to start without the model, remove "
                "what is left of its folder and the files 'run' and 'manifest' (the others then get new state ids)"
            )
        return sorted(found)

    def begin(self) -> None:
        """Begin a run: after it, a stop without `close` counts as a crash. Call it before the first write.

        Raises:
            ConfigurationError: the folder cannot be written.
        """
        self._names = set(self.model_names())
        run_id = self.next_run_id
        try:
            self._write_run(run_id)
            self._mark()
            for name in ("manifest", "running"):
                (self.path / name).unlink(missing_ok=True)
            sync_folder(self.path)
            if self.keys.is_set:
                token_file.renew(self.path, self.keys)
            self._forget_restorations()
            self._sweep()
        except OSError as error:
            raise self._not_writable(error) from error
        self._run_id = run_id

    def write(self, name: str, capture: Callable[[int], int]) -> int:
        """Write a model's next snapshot, wait until it is on disk, and return its size.

        Args:
            name: the model.
            capture: gets the descriptor of an empty file, writes the snapshot, and returns its size.
        """
        self._check_held()
        folder = self._folder(name)
        make_folder(folder)
        numbers = numbers_in(folder)
        number = max(numbers, default=0) + 1
        path = path_of(folder, number)
        temporary = path.with_suffix(TEMPORARY)
        size = write_new(temporary, capture)
        newest = _Newest(number, snapshots.fingerprint(temporary))
        self._stale.discard(name)
        temporary.rename(path)
        sync_folder(folder)
        with self._changing:
            self._newest[name] = newest
            self._list(name)
        for old in sorted([*numbers, number])[: -self._kept]:
            path_of(folder, old).unlink()
        return size

    def restore(self, name: str, arrays_for: Callable[[Snapshot], Arrays]) -> Restored:
        """Read the newest intact snapshot. Damaged ones are renamed and kept.

        Raises:
            CorruptSnapshotError: all of the model's snapshots are damaged.
            SnapshotError: a snapshot cannot be read.
        """
        folder = self._folder(name)
        restoration = self.restoration(name)
        if restoration is not None and restoration.number != max(numbers_in(folder), default=0):
            raise SnapshotError(
                f"model {name!r}: numba-adam restore was interrupted, and there are other snapshots than it left; run "
                f"it again with --snapshot {restoration.number}, or remove {str(folder / RESTORED)!r}"
            )
        damaged: list[str] = []
        for number in sorted(numbers_in(folder), reverse=True):
            path = path_of(folder, number)
            try:
                found = snapshots.read(path, arrays_for, self.keys)
                last = describe(path, number, found)
                self._note_key(name, path)
            except CorruptSnapshotError as error:
                if self.keys.is_set:
                    raise CorruptSnapshotError(
                        f"model {name!r}: {error}. With a key file, a start does not go back by itself: put the file "
                        f"back from a backup, or run numba-adam restore {str(self.path)!r} {name}"
                    ) from error
                _log.error("model %s: %s; trying the previous snapshot", name, error)
                damaged.append(str(error))
                continue
            except OSError as error:  # it may be intact, so only a person may decide to skip it
                raise SnapshotError(
                    f"model {name!r}: snapshot {str(path)!r} cannot be read ({error}); make it readable, or move it "
                    "away to restore the previous one"
                ) from error
            _set_aside(folder, number)
            self._newest[name] = _Newest(number, last.xxh3_64)
            if damaged:
                return Restored(found, "a newer snapshot is damaged")
            if restoration is not None:
                return Restored(found, f"numba-adam restore went back to snapshot {number}")
            return Restored(found, self._last_run.why_rewound(name, last))
        raise CorruptSnapshotError(
            f"model {name!r}: no snapshot is intact ({'; '.join(damaged) or 'none exists'}); restore the folder from a "
            f"backup, or move {str(folder)!r} away to start without the model"
        )

    def restoration(self, name: str) -> Restoration | None:
        """Return what `numba-adam restore` wrote since the last start; None if it did not run."""
        return read_restoration(self._folder(name) / RESTORED, self.keys)

    def segments(self, name: str) -> Segments:
        """Return the journal of a model.

        Raises:
            OSError: the folder was replaced.
        """
        self._check_held()
        return Segments(self._folder(name), self.path / "lock", self.keys)

    @property
    def last_run_id(self) -> str:
        """Id of the last run; empty if it is not known."""
        return self._last_run.run_id

    def newest(self, name: str) -> Snapshot | None:
        """Return the records of a model's newest snapshot without reading its arrays; None if they are damaged."""
        folder = self._folder(name)
        number = max(numbers_in(folder), default=0)
        path = path_of(folder, number)
        try:
            found = snapshots.read_records(path, self.keys)
            self._newest[name] = _Newest(number, snapshots.fingerprint(path))
            self._note_key(name, path)
        except (CorruptSnapshotError, OSError) as error:
            _log.error("model %s: its newest snapshot cannot be read: %s", name, error)
            return None
        return found

    def is_stale(self, name: str) -> bool:
        """Return whether a model's newest snapshot has a tag of another key than the current one, or none."""
        return name in self._stale

    def holds(self, name: str) -> bool:
        """Return whether the snapshot that this process wrote or read last still exists."""
        return self._last(name) is not None

    def delete(self, name: str) -> None:
        """Remove a model's folder atomically: after a crash it is complete or gone."""
        self._check_held()
        folder = self._folder(name)
        if folder.exists():
            grave = self._models / f"{_DELETED}{secrets.token_hex(8)}-{name}"
            folder.rename(grave)
            sync_folder(self._models)
            with self._changing:
                self._newest.pop(name, None)
                self._unlist(name)
            shutil.rmtree(grave)

    def close(self, saved: Collection[str] = ()) -> bool:
        """Release the folder. If no run has begun, nothing in it changes.

        Args:
            saved: the models whose last state is in their newest snapshot; the next start continues them.

        Returns:
            True if those snapshots exist.

        Raises:
            OSError: the manifest could not be written; the next start will treat this as a crash.
        """
        if self._is_closed:
            return True
        self._is_closed = True
        try:
            if not self._run_id:
                return True
            self._check_held()
            found = {name: last for name in saved if (last := self._last(name))}
            manifest = Manifest(self._run_id, found)
            replace(self.path / "manifest", lambda descriptor: manifest.write(descriptor, self.keys))
            return len(found) == len(saved)
        finally:
            os.close(self._lock)

    def _folder(self, name: str) -> Path:
        return self._models / check_model_name(name)

    def _make(self) -> bool:
        """Create the folder if it does not exist; return whether it has no lock file yet."""
        make_folder(self.path)
        check_folder(self.path)
        make_folder(self._models)
        return not (self.path / "lock").exists()

    def _mark(self) -> None:
        """Write the folder's format to the lock file, and deny it to other users."""
        os.fchmod(self._lock, 0o600)
        os.pwrite(self._lock, LOCK_TEXT, 0)
        sync(self._lock, self.path / "lock")

    def _take_lock(self) -> None:
        how = fcntl.LOCK_EX | fcntl.LOCK_NB
        try:
            try:
                fcntl.flock(self._lock, how)
            except BlockingIOError:
                if not wait_for_dying_holder(self._lock):
                    raise
                fcntl.flock(self._lock, how)
        except OSError as error:
            raise ConfigurationError(
                f"data_dir={str(self.path)!r}: another server uses it; stop that one, or use another folder"
            ) from error

    def _check_held(self) -> None:
        """Refuse to write after the folder was replaced.

        Raises:
            OSError: the folder was moved, removed or unmounted while it was locked.
        """
        path = self.path / "lock"
        if not os.path.samestat(path.stat(), os.fstat(self._lock)):
            raise OSError(f"{str(path)!r} is not the file that this server locked: the folder was replaced")

    def _check_ours(self) -> None:
        """Refuse a folder if other users may write to anything that the server reads or writes."""
        folders = [path for path in self._models.iterdir() if is_model_name(path.name) and path.is_dir()]
        for folder in (self._models, *folders):
            check_folder(folder)
        for name in ("lock", "run", "manifest", "deletions"):
            check_file(self.path / name)
        for folder in folders:
            for path in folder.iterdir():
                check_file(path)

    def _note_key(self, name: str, path: Path) -> None:
        """Note whether a snapshot has the current key."""
        if snapshots.key_id_of(path) != self.keys.key_id:
            self._stale.add(name)

    def _half_made(self) -> list[str]:
        """Return the models whose creation a crash interrupted. None of them was acknowledged."""
        folders = [path for path in self._models.iterdir() if path.is_dir() and self._last_run.names_all]
        empty = [path.name for path in folders if all(item.suffix == TEMPORARY for item in path.iterdir())]
        return [name for name in empty if is_model_name(name) and name not in self._last_run.names]

    def _buried(self) -> set[str]:
        """Return the models whose deletion a crash interrupted."""
        graves = (_GRAVE_NAME.fullmatch(path.name) for path in self._models.iterdir())
        return {grave.group(1) for grave in graves if grave}

    def _sweep(self) -> None:
        """Remove files that a crash left unfinished; they were never acknowledged."""
        half_made = self._half_made()
        for path in self._models.iterdir():
            if path.name.startswith(_DELETED):
                shutil.rmtree(path)
            elif path.is_dir() and is_model_name(path.name):
                for left in path.glob(f"*{TEMPORARY}"):
                    left.unlink()
                if path.name in half_made:
                    path.rmdir()

    def _forget_restorations(self) -> None:
        """Remove what `numba-adam restore` wrote: its snapshots are the models' state now."""
        for name in self._names:
            path = self._folder(name) / RESTORED
            if path.exists():
                path.unlink()
                sync_folder(path.parent)

    def _list(self, name: str) -> None:
        """Add a new model's name to the run record: a later start without the model is refused."""
        if name not in self._names:
            self._names.add(name)
            self._write_run(self._run_id)

    def _unlist(self, name: str) -> None:
        if name in self._names:
            self._names.remove(name)
            self._write_run(self._run_id)

    def _write_run(self, run_id: str) -> None:
        run = Run(run_id, tuple(sorted(self._names)))
        replace(self.path / "run", lambda descriptor: run.write(descriptor, self.keys))

    def _last(self, name: str) -> LastSnapshot | None:
        """Return the manifest's entry of a model; None if its newest snapshot is missing or was replaced."""
        newest = self._newest.get(name)
        if newest is None:
            return None
        path = path_of(self._folder(name), newest.number)
        try:
            last = describe(path, newest.number, snapshots.read_records(path, self.keys))
        except OSError as error:
            _log.error("model %s: its newest snapshot is gone (%s)", name, error)
            return None
        return last if last.xxh3_64 == newest.xxh3_64 else None

    def _not_writable(self, error: OSError) -> ConfigurationError:
        return ConfigurationError(f"data_dir={str(self.path)!r}: it must be a folder this user can write ({error})")


def _set_aside(folder: Path, number: int) -> None:
    """Rename the snapshots that are newer than the restored one."""
    for newer in numbers_in(folder):
        if newer > number:
            path_of(folder, newer).rename(folder / f"{newer:08d}{_DAMAGED}")
    sync_folder(folder)
