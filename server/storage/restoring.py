"""Lists the snapshots of a model, and makes an earlier one the state that the next server starts with.

    DIR/models/NAME/restored             which snapshot the next start takes; a start removes it
    DIR/models/NAME/set-aside-0001/      the newer snapshots and all journals, as they were

`restored` is written first. If a crash stops the rest, a start says so, and the same command can be run again. Imports
its neighbours and the error tree.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from numba_adam.errors import ConfigurationError, SnapshotError
from numba_adam.server.model.names import check_model_name
from numba_adam.server.storage import snapshot as snapshots
from numba_adam.server.storage.durable import make_folder, replace, sync_folder
from numba_adam.server.storage.keys import NO_KEYS, Keys
from numba_adam.server.storage.manifest import RESTORED, Restoration, read_run
from numba_adam.server.storage.memory_folder import MemoryFolder
from numba_adam.server.storage.segments import Segments
from numba_adam.server.storage.snapshot_files import numbers_in, path_of
from numba_adam.server.storage.unused import unused
from numba_adam.server.storage.verification import arrays_for

_SET_ASIDE = "set-aside-"


class Kept(NamedTuple):
    """A snapshot that is kept."""

    number: int
    """Its number."""

    version: int | None
    """The model's version in it; None: its header is damaged, or the keys refuse it."""

    state_id: str
    """The model's line of history in it."""

    written: str
    """When it was written, in UTC."""

    size_bytes: int
    """Size of the file."""


def kept_snapshots(folder: Path, name: str, keys: Keys = NO_KEYS) -> list[Kept]:
    """Return the snapshots of a model, the oldest first. Their headers are verified, and their data is not.

    Args:
        folder: the data folder.
        name: the model.
        keys: of the data folder.

    Raises:
        ConfigurationError: there is no such data folder or model, or a server uses it.
    """
    with unused(folder, "list those in a copy", is_exclusive=False):
        place = model_folder(folder, name)
        return [_kept(path_of(place, number), number, keys) for number in sorted(numbers_in(place))]


def restore(folder: Path, name: str, number: int, memory_dir: Path, keys: Keys = NO_KEYS) -> tuple[int, list[str]]:
    """Make a snapshot the state that the next server starts with.

    Args:
        folder: the data folder.
        name: the model.
        number: the snapshot's number.
        memory_dir: the memory folder of its server.
        keys: of the data folder.

    Returns:
        The version of the model in it, and the files that were set aside, relative to the data folder.

    Raises:
        ConfigurationError: there is no such folder, model or snapshot, a server uses it, or a killed server left a
            newer state in memory.
        CorruptSnapshotError, SnapshotError: the snapshot is damaged, or cannot be read.
        OSError: the folder cannot be written.
    """
    with unused(folder, "restore it in a copy", is_exclusive=True):
        place = model_folder(folder, name)
        if number not in numbers_in(place):
            kept = ", ".join(map(str, sorted(numbers_in(place)))) or "none"
            raise ConfigurationError(f"--snapshot {number}: model {name!r} has no such snapshot; it has {kept}")
        memory = MemoryFolder(memory_dir, folder).model(name)
        if memory.exists():
            raise ConfigurationError(
                f"model {name!r}: a killed server left a newer state in {str(memory.folder)!r}; start the server and "
                "stop it, which saves that state as a snapshot, then restore. To lose it, remove that folder"
            )
        version: int = snapshots.read(path_of(place, number), arrays_for, keys).ledger["version"]
        run = read_run(folder / "run", keys)
        restoration = Restoration(run.run_id if run else "", number, version)
        replace(place / RESTORED, lambda descriptor: restoration.write(descriptor, keys))
        return version, [str(path.relative_to(folder)) for path in _set_aside(folder, place, number)]


def model_folder(folder: Path, name: str) -> Path:
    """Return the folder of a model that exists.

    Raises:
        ConfigurationError: it does not exist.
    """
    path = folder / "models" / check_model_name(name)
    if not path.is_dir():
        names = sorted(each.name for each in (folder / "models").iterdir() if each.is_dir())
        raise ConfigurationError(
            f"model {name!r}: {str(folder)!r} has no such model; it has {', '.join(map(repr, names)) or 'none'}"
        )
    return path


def _set_aside(folder: Path, place: Path, number: int) -> list[Path]:
    """Move the newer snapshots and all journals of a model; return their new paths."""
    newer = [path_of(place, each) for each in sorted(numbers_in(place)) if each > number]
    moving = [*newer, *Segments(place, folder / "lock").paths()]
    if not moving:
        return []
    taken = [int(path.name[len(_SET_ASIDE) :]) for path in place.glob(f"{_SET_ASIDE}[0-9]*")]
    target = place / f"{_SET_ASIDE}{max(taken, default=0) + 1:04d}"
    make_folder(target)
    moved = [path.rename(target / path.name) for path in moving]
    sync_folder(target)
    sync_folder(place)
    return moved


def _kept(path: Path, number: int, keys: Keys) -> Kept:
    status = path.stat()
    written = datetime.fromtimestamp(status.st_mtime, UTC).isoformat(sep=" ", timespec="seconds")
    try:
        ledger = snapshots.read_records(path, keys).ledger
    except SnapshotError:
        return Kept(number, None, "", written, status.st_size)
    return Kept(number, ledger["version"], ledger["state_id"], written, status.st_size)
