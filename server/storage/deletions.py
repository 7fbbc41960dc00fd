"""Records deletions of models, so that a late request to create a model does not restore a deleted one.

    DIR/deletions       JSON with a checksum: the newest deletions, the oldest first; one for each name

The file is written to a temporary file, fsynced and renamed. If it cannot be written or read, deletions and starts
still succeed, but a restart forgets the deletions. Imports the requests, the check of records and the error tree.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from pathlib import Path
from typing import NamedTuple

from numba_adam.errors import ModelNotFoundError, RewoundError, SnapshotError
from numba_adam.ps.detail import StatePoint, with_detail
from numba_adam.server.model.records import check_keys, check_value
from numba_adam.server.model.requests import Creation
from numba_adam.server.storage import checked_json
from numba_adam.server.storage.durable import replace, write_all
from numba_adam.server.storage.keys import NO_KEYS, Keys

_log = logging.getLogger(__name__)
FILE_NAME = "deletions"
_FORMAT = 1
MOST = 1024
"""Deletions kept; beyond this number the oldest is dropped."""


class Deletion(NamedTuple):
    """The last deletion of a model with one name."""

    request_id: str
    """Id of the request that created the model."""

    state_id: str
    """The model's last state."""

    version: int
    """The model's last version."""


class Deletions:
    """The newest deletions of a data folder.

    Args:
        folder: the data folder, locked by this process.
        keys: its keys.

    Raises:
        SnapshotError: the file has a key or value that this version does not know, or the keys refuse it.
    """

    def __init__(self, folder: Path, keys: Keys = NO_KEYS) -> None:
        self._path = folder / FILE_NAME
        self._keys = keys
        self._lock = threading.Lock()
        self._by_name = self._read()

    def note(self, name: str, deletion: Deletion) -> None:
        """Record a deletion, just before the model is deleted."""
        with self._lock:
            self._by_name.pop(name, None)
            self._by_name[name] = deletion
            while len(self._by_name) > MOST:
                del self._by_name[next(iter(self._by_name))]
            try:
                self._write()
            except OSError as error:  # such as a full disk, where the deletion frees space
                _log.warning("%s: %s; until the next deletion, a restart forgets this one", self._path, error)

    def renew(self) -> None:
        """Write the file with the current key, if it has another one or none.

        Raises:
            OSError: it cannot be written.
        """
        with self._lock, contextlib.suppress(FileNotFoundError):
            if self._keys.is_set and checked_json.key_id_of(self._path.read_bytes()) != self._keys.key_id:
                self._write()

    def check(self, creation: Creation) -> None:
        """Refuse to create a model if the caller does not know of its deletion.

        Raises:
            ModelNotFoundError: an earlier try created the model, and it was deleted since.
            RewoundError: the caller did not know of the last deletion with this name.
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
            return read_deletions(self._path, self._keys)
        except FileNotFoundError:
            return {}
        except SnapshotError:  # a subclass of OSError
            raise
        except (OSError, ValueError, TypeError, RecursionError) as error:
            if self._keys.is_set:
                raise SnapshotError(
                    f"{str(self._path)!r} cannot be read ({error}), and with a key file nobody may guess what it had: "
                    "put it back from a backup"
                ) from error
            _log.warning("%s: cannot be read (%s); the earlier deletions are forgotten", self._path, error)
            return {}

    def _write(self) -> None:
        deletions = [[name, *deletion] for name, deletion in self._by_name.items()]
        raw = checked_json.encode({"format": _FORMAT, "deletions": deletions}, FILE_NAME, self._keys)
        replace(self._path, lambda descriptor: write_all(descriptor, raw))


def read_deletions(path: Path, keys: Keys = NO_KEYS) -> dict[str, Deletion]:
    """Return the deletions in a file by name, the oldest first. The first release wrote no checksum.

    Raises:
        SnapshotError: it has a key or value that this version does not know, or the keys refuse it.
        FileNotFoundError: there is none.
        OSError, ValueError, TypeError, RecursionError: it cannot be read, or is damaged.
    """
    record = checked_json.decode(path.read_bytes(), str(path), FILE_NAME, keys, may_lack_checksum=True)
    check_keys(record, str(path), ("format", "deletions"))
    check_value(record["format"], f"{path}: its format", (_FORMAT,))
    return {name: Deletion(*values) for name, *values in record["deletions"]}
