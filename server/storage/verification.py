"""Verifies every checksum of a data folder that no server uses, and changes nothing in it.

Imports the snapshots, the segments, the manifest and the error tree.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from numba_adam.errors import ConfigurationError, CorruptSnapshotError, SnapshotError
from numba_adam.server.model.arena import layout
from numba_adam.server.model.names import is_model_name
from numba_adam.server.model.spec import Spec
from numba_adam.server.storage import snapshot as snapshots
from numba_adam.server.storage.manifest import read_manifest, read_run
from numba_adam.server.storage.segments import Segments
from numba_adam.server.storage.snapshot import Arrays, Snapshot


class Verified(NamedTuple):
    """What was found of one file."""

    path: str
    """The file, relative to the data folder."""

    found: str
    """What it holds, or what is wrong with it."""

    is_intact: bool
    """Whether every checksum is right."""


def verify(folder: Path) -> Iterator[Verified]:
    """Yield a finding for each file of a data folder.

    Raises:
        ConfigurationError: it is not a data folder, or a server uses it.
    """
    with _unused(folder):
        for name in ("run", "manifest"):
            if (folder / name).exists():
                yield _verified_record(folder, name)
        for model in sorted((folder / "models").iterdir()):
            if not model.is_dir() or not is_model_name(model.name):
                continue
            for path in sorted(model.iterdir()):
                if path.suffix in (".snapshot", ".damaged"):
                    yield _verified(folder, path, _snapshot)
                elif path.suffix == ".journal":
                    yield _verified(folder, path, lambda path: _journal(path, folder / "lock"))


@contextlib.contextmanager
def _unused(folder: Path) -> Iterator[None]:
    """Keep servers away from a data folder."""
    try:
        lock = os.open(folder / "lock", os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError as error:
        raise ConfigurationError(
            f"{str(folder)!r} is not a data folder of a server ({error}): name the folder that --data-dir named"
        ) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise ConfigurationError(
            f"{str(folder)!r}: a server uses it and changes its files; stop the server, or verify a copy"
        ) from error
    finally:
        os.close(lock)


def _verified_record(folder: Path, name: str) -> Verified:
    found: object = read_run(folder / name) if name == "run" else read_manifest(folder / name)
    if found is None:
        return Verified(name, "its checksum differs", is_intact=False)
    return Verified(
        name, "the record of the last run" if name == "run" else "the record of the last stop", is_intact=True
    )


def _verified(folder: Path, path: Path, look: Callable[[Path], str]) -> Verified:
    where = str(path.relative_to(folder))
    try:
        return Verified(where, look(path), is_intact=True)
    except (CorruptSnapshotError, SnapshotError, OSError, ValueError) as error:
        return Verified(where, str(error), is_intact=False)


def _snapshot(path: Path) -> str:
    def arrays_for(snapshot: Snapshot) -> Arrays:
        spec = Spec.from_record(snapshot.model)
        count, dtype = spec.element_count, spec.numpy_dtype
        columns = layout(count, dtype.itemsize, amsgrad=spec.hyperparameters.amsgrad).offsets
        return {column: np.empty(count, dtype) for column in columns if column != "pending"}

    found = snapshots.read(path, arrays_for)
    return f"version {found.ledger['version']} of state {found.ledger['state_id']}, {path.stat().st_size} bytes"


def _journal(path: Path, lock: Path) -> str:
    beginning, records, reader = Segments(path.parent, lock).read(path)
    with reader:
        count = 0
        for record in records:
            if record.gradient_bytes and not reader.gradient(record, np.empty(record.gradient_bytes, np.uint8)):
                break
            count += 1
        torn = reader.torn_at
    if beginning is None:
        return "a journal that holds nothing yet"
    end = "" if torn is None else f"; the record at byte {torn} is torn: it was never acknowledged, a start cuts it off"
    return f"a journal from version {beginning.ledger['version']} on, {count} records{end}"
