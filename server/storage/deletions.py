"""Which models were deleted, so that a creation that arrives late does not restore one of them.

    DIR/deletions       JSON: the newest deletions, the oldest first; one for each name

The file is written to a temporary file, fsynced and renamed. If it cannot be written or read, a restart forgets the
deletions; no deletion and no start fails for it. Imports the requests, the check of
records and the error tree.
"""

from __future__ import annotations

import json
import logging
import threading
from pathlib import Path
from typing import NamedTuple

from numba_adam.errors import ModelNotFoundError, RewoundError, SnapshotError
from numba_adam.ps.detail import StatePoint, with_detail
from numba_adam.server.model.records import check_keys, check_value
from numba_adam.server.model.requests import Creation
from numba_adam.server.storage.durable import replace, write_all

_log = logging.getLogger(__name__)
_FORMAT = 1
MOST = 1024
"""Deletions that are remembered; beyond this number the oldest is forgotten."""


class Deletion(NamedTuple):
    """The last deletion of a model of one name."""

    request_id: str
    """Named the request that had created it."""

    state_id: str
    """Its state when it was deleted."""

    version: int
    """Its version then."""


class Deletions:
    """The newest deletions of a data folder.

    Args:
        folder: the data folder, which this process holds.

    Raises:
        SnapshotError: the file says something that this version does not know.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / "deletions"
        self._lock = threading.Lock()
        self._by_name = self._read()

    def note(self, name: str, deletion: Deletion) -> None:
        """Remember a deletion; called just before the model is deleted."""
        with self._lock:
            self._by_name.pop(name, None)
            self._by_name[name] = deletion
            while len(self._by_name) > MOST:
                del self._by_name[next(iter(self._by_name))]
            try:
                self._write()
            except OSError as error:  # a full disk: the deletion itself frees space
                _log.warning("%s: %s; until the next deletion, a restart forgets this one", self._path, error)

    def check(self, creation: Creation) -> None:
        """Refuse a creation whose caller did not know of a deletion.

        Raises:
            ModelNotFoundError: an earlier try created the model, and it was deleted since.
            RewoundError: the caller did not know of the last deletion under this name.
        """
        name, after = creation.spec.name, creation.after_state_id
        with self._lock:
            last = self._by_name.get(name)
        if last is None:
            return
        if last.request_id == creation.request_id:
            raise ModelNotFoundError(
                f"model {name!r}: this request created it, and it was deleted since; create it with a new request_id"
            )
        if after is not None and after != last.state_id:
            error = RewoundError(
                f"model {name!r}, after_state_id={after[:64]!r}: the model of that name in state {last.state_id!r} was "
                "deleted since; to create it anew, send that as after_state_id"
            )
            raise with_detail(error, state=StatePoint(last.state_id, last.version))

    def _read(self) -> dict[str, Deletion]:
        try:
            record = json.loads(self._path.read_bytes())
            check_keys(record, str(self._path), ("format", "deletions"))
            check_value(record["format"], f"{self._path}: its format", (_FORMAT,))
            return {name: Deletion(*values) for name, *values in record["deletions"]}
        except FileNotFoundError:
            return {}
        except SnapshotError:  # it is an OSError too
            raise
        except (OSError, ValueError, TypeError, RecursionError) as error:
            _log.warning("%s: it cannot be read (%s); which models were deleted is forgotten", self._path, error)
            return {}

    def _write(self) -> None:
        deletions = [[name, *deletion] for name, deletion in self._by_name.items()]
        raw = json.dumps({"format": _FORMAT, "deletions": deletions}, separators=(",", ":")).encode("ascii")
        replace(self._path, lambda descriptor: write_all(descriptor, raw))
