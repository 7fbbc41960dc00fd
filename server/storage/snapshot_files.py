"""The names of a model's snapshot files. Imports the snapshot format and the manifest."""

from __future__ import annotations

import re
from pathlib import Path

from numba_adam.server.storage import snapshot as snapshots
from numba_adam.server.storage.manifest import LastSnapshot
from numba_adam.server.storage.snapshot import Snapshot

_SNAPSHOT_NAME = re.compile(r"([0-9]{8,})\.snapshot")


def path_of(folder: Path, number: int) -> Path:
    """Return the path of a snapshot."""
    return folder / f"{number:08d}.snapshot"


def numbers_in(folder: Path) -> list[int]:
    """Return the numbers of the snapshots in a folder."""
    found = (_SNAPSHOT_NAME.fullmatch(path.name) for path in folder.iterdir())
    return [int(match.group(1)) for match in found if match]


def describe(path: Path, number: int, records: Snapshot) -> LastSnapshot:
    """Return the manifest's entry of a snapshot."""
    ledger, changed_ns = records.ledger, path.stat().st_ctime_ns
    return LastSnapshot(number, snapshots.fingerprint(path), changed_ns, ledger["version"], ledger["state_id"])
