"""Replays the journal of a model at the level `disk`, from its snapshot to the last event on disk.

Segments follow each other: each begins with the ledger as the one before left it. Imports the segments, the events and
the models.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from numba_adam.errors import CorruptSnapshotError, SnapshotError
from numba_adam.server.model.events import Acceptance, Holding, decode
from numba_adam.server.runtime.model import Model
from numba_adam.server.storage.segment import Reader, Record
from numba_adam.server.storage.segments import Beginning, Segments

_log = logging.getLogger(__name__)
_REPORT_SECONDS = 2.0


class _Segment(NamedTuple):
    """One open segment."""

    path: Path
    beginning: Beginning | None
    records: Iterator[Record]
    reader: Reader


class Recovery:
    """Replays a model's journal.

    Args:
        model: the model, as its snapshot has it.
        segments: its journal.
        run_id: id of the data folder's last run.
    """

    def __init__(self, model: Model, segments: Segments, run_id: str) -> None:
        self._model, self._segments, self._run_id = model, segments, run_id

    def run(self) -> str:
        """Replay the journal. Return why the result may not be the model's last state; empty if it is.

        Raises:
            CorruptSnapshotError: the journal is damaged, or does not follow the snapshot.
            SnapshotError: it cannot be read.
        """
        try:
            with ExitStack() as stack:
                found = [self._opened(path, stack) for path in self._segments.paths()]
                return self._replay(found)
        except CorruptSnapshotError as error:
            raise CorruptSnapshotError(f"model {self._model.spec.name!r}: {error}") from error
        except OSError as error:
            if isinstance(error, SnapshotError):
                raise
            raise SnapshotError(
                f"model {self._model.spec.name!r}: its journal cannot be read or cut ({error})"
            ) from error

    def _opened(self, path: Path, stack: ExitStack) -> _Segment:
        beginning, records, reader = self._segments.read(path)
        stack.enter_context(reader)
        return _Segment(path, beginning, records, reader)

    def _replay(self, found: list[_Segment]) -> str:
        """Replay the segments from the one that begins with the snapshot."""
        begun = [index for index, each in enumerate(found) if each.beginning and self._is_now(each.beginning.ledger)]
        if not begun:
            self._check_none_is_newer(found)
            return "its journal does not begin with its newest snapshot"
        chain = found[begun[-1] :]
        last = chain[0]
        for index, segment in enumerate(chain):
            if segment.beginning is None or not self._is_now(segment.beginning.ledger):
                self._drop(chain[index - 1], chain[index:])
                break
            self._replay_one(segment)
            last = segment
        return self._why_rewound(chain, last)

    def _replay_one(self, segment: _Segment) -> None:
        model, reader = self._model, segment.reader
        version, next_report = model.version, time.monotonic() + _REPORT_SECONDS
        for record in segment.records:
            if time.monotonic() >= next_report:
                share = 100 * record.gradient_at // max(reader.status.st_size, 1)
                _log.info("model %s: %s: replaying, %d %% done", model.spec.name, segment.path, share)
                next_report = time.monotonic() + _REPORT_SECONDS
            event = self._event_of(record, reader)
            gradient = model.arena.pending[: record.gradient_bytes // model.arena.dtype.itemsize]
            if not reader.gradient(record, gradient):
                break
            if isinstance(event, (Acceptance, Holding)):
                model.redo(event, gradient)
            else:
                model.redo(event, gradient[:0])
        _log.info("model %s: %s: replayed versions %d to %d", model.spec.name, segment.path, version, model.version)
        if reader.torn_at is not None:
            cut = reader.status.st_size - reader.torn_at
            _log.warning(
                "%s: cut off %d bytes at offset %d: they were being written when the server or the machine stopped, "
                "and were never acknowledged",
                segment.path,
                cut,
                reader.torn_at,
            )
            reader.cut(reader.torn_at)

    def _event_of(self, record: Record, reader: Reader) -> Any:
        model = self._model
        try:
            event = decode(record.event, model.ledger.state_id)
        except ValueError as error:
            raise CorruptSnapshotError(f"{str(reader.path)!r}, offset {record.gradient_at}: {error}") from error
        elements = 0
        if isinstance(event, (Acceptance, Holding)):
            tensors = zip(model.spec.tensors, event.present, strict=True)
            elements = sum(tensor.size for tensor, is_present in tensors if is_present)
        if record.gradient_bytes != elements * model.arena.dtype.itemsize:
            raise CorruptSnapshotError(
                f"{str(reader.path)!r}, offset {record.gradient_at}: a gradient of {record.gradient_bytes} bytes, "
                f"expected {elements * model.arena.dtype.itemsize}"
            )
        return event

    def _is_now(self, ledger: Mapping[str, Any]) -> bool:
        """Return whether a ledger's record is that of the model as it is now."""
        mine: Any = self._model.ledger.to_record()
        if mine["version"] != ledger["version"]:
            return False
        return bool(json.loads(json.dumps(mine)) == ledger)

    def _drop(self, before: _Segment, rest: list[_Segment]) -> None:
        """Remove segments that follow a torn one: none of them was acknowledged.

        Raises:
            CorruptSnapshotError: one of them was, or they do not follow for another reason.
        """
        torn_at = before.reader.torn_at
        end = before.reader.status.st_size if torn_at is None else torn_at
        promised = [each.beginning is not None and each.beginning.is_previous_synced for each in rest]
        if any(promised) or any(record.synced for segment in rest for record in segment.records):
            raise CorruptSnapshotError(
                f"{str(before.path)!r} is damaged at offset {end}: it ends there, and {str(rest[0].path)!r} continues "
                "a later state. Put the file back from a backup"
            )
        for segment in rest:
            if segment.beginning is not None and torn_at is None:
                raise CorruptSnapshotError(
                    f"{str(segment.path)!r} is damaged at offset 0: it does not begin where {str(before.path)!r} ends"
                )
            _log.warning("%s: removed, nothing in it was acknowledged", segment.path)
            segment.path.unlink()

    def _check_none_is_newer(self, found: list[_Segment]) -> None:
        """Refuse to go back to a snapshot while a journal has later states that do not follow it."""
        mine = self._model.ledger
        for segment in found:
            ledger = segment.beginning.ledger if segment.beginning else {}
            if ledger.get("state_id") == mine.state_id and ledger["version"] > mine.version:
                raise CorruptSnapshotError(
                    f"{str(segment.path)!r} begins with version {ledger['version']}, and the newest intact snapshot "
                    f"has version {mine.version}: a snapshot is missing or damaged at offset 0 of the journal. Put it "
                    "back from a backup; or, to go back to that snapshot, move the files *.journal away"
                )

    def _why_rewound(self, chain: list[_Segment], last: _Segment) -> str:
        beginnings = [segment.beginning for segment in chain if segment.beginning is not None]
        if not all(beginning.is_original for beginning in beginnings):
            return "its journal is a copy, or was moved"
        if last.beginning is None or self._run_id not in last.beginning.runs:
            return "its journal is not of the data folder's last run"
        return ""
