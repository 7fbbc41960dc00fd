"""Verifies every checksum of a data folder that no server uses, and changes nothing in it.

Imports its neighbours and the error tree.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from numba_adam.errors import ConfigurationError, CorruptSnapshotError, SnapshotError
from numba_adam.server.model.columns import columns_of
from numba_adam.server.model.names import is_model_name
from numba_adam.server.model.spec import Spec
from numba_adam.server.storage import checked_json, token_file
from numba_adam.server.storage import snapshot as snapshots
from numba_adam.server.storage.deletions import read_deletions
from numba_adam.server.storage.keys import UNCHECKED, Keys
from numba_adam.server.storage.last_run import LOCK_TEXT
from numba_adam.server.storage.manifest import RESTORED, read_manifest, read_restoration, read_run
from numba_adam.server.storage.segment import Reader, Record
from numba_adam.server.storage.segments import Segments
from numba_adam.server.storage.snapshot import Arrays, Snapshot
from numba_adam.server.storage.unused import unused


class Verified(NamedTuple):
    """What was found of one file."""

    path: str
    """The file, relative to the data folder."""

    found: str
    """What it holds, or what is wrong with it."""

    is_intact: bool
    """Whether every checksum is right."""


def verify(folder: Path, keys: Keys | None = None) -> Iterator[Verified]:
    """Yield a finding for each file of a data folder, and for each model that lacks one.

    Args:
        folder: the data folder.
        keys: its keys; None: tags are not checked.

    Raises:
        ConfigurationError: it is not a data folder, or a server uses it.
    """
    checked = UNCHECKED if keys is None else keys
    with unused(folder, "verify a copy", is_exclusive=False):
        for name, look in _RECORDS.items():
            if (folder / name).exists():
                yield _verified(folder, folder / name, look, checked)
        models = [path for path in sorted((folder / "models").iterdir()) if is_model_name(path.name) and path.is_dir()]
        for model in models:
            for place in (model, *sorted(path for path in model.iterdir() if path.is_dir())):
                yield from _model(folder, place, checked)
        yield from _missing(folder, models, checked)


def _model(folder: Path, place: Path, keys: Keys) -> Iterator[Verified]:
    """Verify the files of a model, or those of it that were set aside."""
    for path in sorted(place.iterdir()):
        if path.suffix in (".snapshot", ".damaged"):
            yield _verified(folder, path, _snapshot, keys)
        elif path.name == RESTORED:
            yield _verified(folder, path, _restoration, keys)
    segments, is_later_synced, found = Segments(place, folder / "lock", keys, is_kept=True), False, []
    for path in reversed(segments.paths()):
        journal = _Journal(segments, is_later_synced)
        found.append(_verified(folder, path, journal.look, keys))
        is_later_synced = is_later_synced or journal.says_synced
    yield from reversed(found)


def _missing(folder: Path, models: list[Path], keys: Keys) -> Iterator[Verified]:
    """Yield the models without a snapshot that the last run had."""
    try:
        known = read_run(folder / "run", keys)
    except (ConfigurationError, SnapshotError):
        return  # it was reported
    there = {path.name for path in models if any(path.glob("*.snapshot"))}
    for name in sorted(set(known.models if known else ()) - there):
        yield Verified(f"models/{name}", "the last run had this model, and there is no snapshot of it", is_intact=False)


def _verified(folder: Path, path: Path, look: Callable[[Path, Keys], str], keys: Keys) -> Verified:
    where = str(path.relative_to(folder))
    try:
        return Verified(where, look(path, keys), is_intact=True)
    except (
        ConfigurationError,
        CorruptSnapshotError,
        SnapshotError,
        OSError,
        ValueError,
        TypeError,
        LookupError,
    ) as error:
        return Verified(where, str(error), is_intact=False)


def _tagged(key_id: str, keys: Keys) -> str:
    """Return what is known of a file's tag, once the keys have admitted it."""
    if not key_id:
        return ", without a tag" if keys.is_set else ""
    return f", with the tag of key {key_id}" + ("" if keys.is_set else ", which was not checked")


def _key_of(path: Path) -> str:
    return checked_json.key_id_of(path.read_bytes())


def _lock(path: Path, _: Keys) -> str:
    text = path.read_bytes()
    if text not in (b"", LOCK_TEXT):  # it is empty in the first format
        raise ValueError(f"it has {text[:80]!r}, expected {LOCK_TEXT!r}")
    return "the format of the folder"


def _run(path: Path, keys: Keys) -> str:
    count = len(_whole(read_run(path, keys)).models)
    return f"the record of the last run, with {count} models{_tagged(_key_of(path), keys)}"


def _manifest(path: Path, keys: Keys) -> str:
    count = len(_whole(read_manifest(path, keys)).models)
    return f"the record of the last stop, with {count} models{_tagged(_key_of(path), keys)}"


def _restoration(path: Path, keys: Keys) -> str:
    number = _whole(read_restoration(path, keys)).number
    return f"the next start restores snapshot {number}{_tagged(_key_of(path), keys)}"


def _whole(record: Any) -> Any:
    if record is None:
        raise ValueError("its checksum differs")
    return record


def _deletions(path: Path, keys: Keys) -> str:
    return f"{len(read_deletions(path, keys))} deletions{_tagged(_key_of(path), keys)}{_unchecked(path)}"


def _tokens(path: Path, keys: Keys) -> str:
    count = len(token_file.read(path.parent, keys))
    return f"{count} access tokens{_tagged(_key_of(path), keys)}{_unchecked(path)}"


def _unchecked(path: Path) -> str:
    return "" if b'"xxh3_64"' in path.read_bytes() else "; readable, without a checksum: an earlier release wrote it"


_RECORDS = {
    "lock": _lock,
    "run": _run,
    "manifest": _manifest,
    "deletions": _deletions,
    token_file.FILE_NAME: _tokens,
}


def _snapshot(path: Path, keys: Keys) -> str:
    found, tagged = snapshots.read(path, arrays_for, keys), _tagged(snapshots.key_id_of(path), keys)
    size = path.stat().st_size
    return f"version {found.ledger['version']} of state {found.ledger['state_id']}, {size} bytes{tagged}"


def arrays_for(snapshot: Snapshot) -> Arrays:
    """Return memory for the arrays of a snapshot."""
    spec = Spec.from_record(snapshot.model)
    sizes = [tensor.size for tensor in spec.tensors]
    columns = columns_of(sizes, spec.numpy_dtype, spec.hyperparameters.amsgrad, spec.options)
    return {column.name: np.empty(sum(column.sizes), column.dtype) for column in columns}


class _Journal:
    """Verifies one segment of a journal.

    Args:
        segments: the journal.
        is_later_synced: whether a later segment says that this one was on disk as a whole.
    """

    def __init__(self, segments: Segments, is_later_synced: bool) -> None:
        self._segments, self._is_later_synced = segments, is_later_synced
        self.says_synced = False
        """Whether the segment says that those before it were on disk as a whole."""

    def look(self, path: Path, keys: Keys) -> str:
        """Return what it holds.

        Raises:
            CorruptSnapshotError: it is damaged.
        """
        beginning, records, reader = self._segments.read(path)
        with reader:
            self.says_synced = beginning is not None and beginning.is_previous_synced
            count = sum(self._is_whole(record, reader) for record in records)
        torn_at = reader.torn_at
        if beginning is None:
            torn_at = 0
        if torn_at is not None and self._is_later_synced:
            raise CorruptSnapshotError(
                f"{str(path)!r} is damaged at offset {torn_at}: a later file says that this one was on disk as a whole"
            )
        _check_padding(path, torn_at)
        if beginning is None:
            return "a journal that holds nothing yet"
        end = "" if torn_at is None else f"; the record at byte {torn_at} is torn: a start cuts it off"
        version, tagged = beginning.ledger["version"], _tagged(beginning.key_id, keys)
        return f"a journal from version {version} on, {count} records{tagged}{end}"

    def _is_whole(self, record: Record, reader: Reader) -> bool:
        """Return whether a record is not torn; note what it says of earlier segments."""
        if reader.torn_at is not None:
            return False
        self.says_synced = self.says_synced or record.synced > 0
        return reader.gradient(record, np.empty(record.gradient_bytes, np.uint8))


def _check_padding(path: Path, torn_at: int | None) -> None:
    """Refuse a change of the bytes between records, which a start does not use.

    Raises:
        CorruptSnapshotError: one of them changed.
    """
    with Reader(path, is_kept=True) as reader:
        for record in reader.records():
            if torn_at is not None and record.end > torn_at:
                return
            if not reader.is_filled(record):
                raise CorruptSnapshotError(
                    f"{str(path)!r} is damaged before offset {record.end}, in bytes that a start does not use"
                )
