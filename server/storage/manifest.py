"""The records of a data folder: its models, and how the last run of a server ended.

    DIR/run        the run's random id and the models; written at every start, creation and deletion
    DIR/manifest   the same id, and the file with the last state of each model; written at a clean stop

A manifest is valid only with the run record of the same id, which detects an old manifest that was put back. Each file
is one line of JSON with a checksum, and with a tag if the server has keys. Imports JSON with checksums, durable files
and the error tree.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from numba_adam.errors import ConfigurationError, SnapshotError
from numba_adam.server.storage import checked_json
from numba_adam.server.storage.durable import write_all
from numba_adam.server.storage.keys import NO_KEYS, Keys

FORMAT = 2
"""Format of data folders. The first format had neither file, but an empty file `running` while a server ran."""

RESTORED = "restored"
"""Name of a file in a model's folder; see Restoration."""

_log = logging.getLogger(__name__)


class LastSnapshot(NamedTuple):
    """The file with a model's last state."""

    number: int
    """Its number."""

    xxh3_64: str
    """The checksum of its header, which has the checksum of its data."""

    changed_ns: int
    """The file's ctime: when its content, name or owner last changed. A copy has a different one."""

    version: int
    """Version of the model."""

    state_id: str
    """Its line of history."""


class Run(NamedTuple):
    """One run of a server on the folder."""

    run_id: str
    """Random."""

    models: tuple[str, ...]
    """The names of the models."""

    def write(self, descriptor: int, keys: Keys = NO_KEYS) -> int:
        """Write it to an empty file; return the size."""
        return _write(descriptor, "run", {"run_id": self.run_id, "models": self.models}, keys)


class Manifest(NamedTuple):
    """The record of a clean stop."""

    run_id: str
    """The run."""

    models: Mapping[str, LastSnapshot]
    """The models whose last state is on disk, by name."""

    def write(self, descriptor: int, keys: Keys = NO_KEYS) -> int:
        """Write it to an empty file; return the size."""
        models = {name: last._asdict() for name, last in self.models.items()}
        return _write(descriptor, "manifest", {"run_id": self.run_id, "models": models}, keys)


class Restoration(NamedTuple):
    """What the next server starts a model with: numba-adam restore wrote it."""

    run_id: str
    """The last run before it; empty if it is not known."""

    number: int
    """The snapshot."""

    version: int
    """Version of the model in it."""

    def write(self, descriptor: int, keys: Keys = NO_KEYS) -> int:
        """Write it to an empty file; return the size."""
        return _write(descriptor, RESTORED, self._asdict(), keys)


def read_run(path: Path, keys: Keys = NO_KEYS) -> Run | None:
    """Return the last run; None if the file is missing or damaged.

    Raises:
        ConfigurationError: it cannot be read, or is of another format.
        SnapshotError: the keys refuse it.
    """
    content = _read(path, "run", keys)
    return None if content is None else Run(content["run_id"], tuple(content["models"]))


def read_manifest(path: Path, keys: Keys = NO_KEYS) -> Manifest | None:
    """Return the manifest; None if the file is missing or damaged.

    Raises:
        ConfigurationError: it cannot be read, or is of another format.
        SnapshotError: the keys refuse it.
    """
    content = _read(path, "manifest", keys)
    if content is None:
        return None
    return Manifest(content["run_id"], {name: LastSnapshot(**last) for name, last in content["models"].items()})


def read_restoration(path: Path, keys: Keys = NO_KEYS) -> Restoration | None:
    """Return the restoration; None if the file is missing or damaged.

    Raises:
        ConfigurationError: it cannot be read, or is of another format.
        SnapshotError: the keys refuse it.
    """
    content = _read(path, RESTORED, keys)
    if content is None:
        return None
    return Restoration(content["run_id"], content["number"], content["version"])


def check_format(version: object, path: Path) -> None:
    """Refuse a data folder that another release wrote.

    Raises:
        ConfigurationError: the format is different.
    """
    if version != FORMAT:
        raise ConfigurationError(
            f"{str(path)!r}: the data folder has format {version!r}, and this numba-adam reads format {FORMAT}; "
            "use the release that wrote it"
        )


def _write(descriptor: int, kind: str, content: Mapping[str, Any], keys: Keys) -> int:
    return write_all(descriptor, checked_json.encode({"kind": kind, "format": FORMAT, **content}, kind, keys))


def _read(path: Path, kind: str, keys: Keys) -> dict[str, Any] | None:
    """Return a file's content. A damaged file counts as missing, and is logged; with keys, it is refused."""
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigurationError(
            f"{str(path)!r} cannot be read ({error}); make it readable, or move it away: every model then goes back "
            "to its newest snapshot under a new state id"
        ) from error
    try:
        content = checked_json.decode(raw, str(path), kind, keys)
        is_whole = content["kind"] == kind
    except (KeyError, ValueError):
        is_whole = False
    if not is_whole and keys.is_set:
        raise SnapshotError(
            f"{str(path)!r} is damaged, and with a key file nobody may guess what it had: put it back from a backup"
        )
    if not is_whole:
        _log.error("%s: damaged; its content is lost", path)
        return None
    check_format(content["format"], path)
    return content
