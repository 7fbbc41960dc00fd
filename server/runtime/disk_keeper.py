"""Keeps what a model at the level `disk` acknowledges in a journal on disk, through power failures.

Each event is written with the gradient of its update, and fsynced, before anybody learns of it. One fsync serves all
events that were written before it began. A large push is written and fsynced while its update runs, into room that was
reserved before: so a full disk changes nothing, and any other error ends the server or breaks the model. A snapshot
begins a new segment; once it is on disk, the segments before the previous snapshot are removed. Imports the segments,
the events and the budget.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from numba_adam.errors import DiskFullError, InternalServerError, ServerUnavailableError, ServiceError
from numba_adam.ps.detail import with_detail
from numba_adam.server.model.arena import FlatArray
from numba_adam.server.model.events import Acceptance, Closing, Event, encode
from numba_adam.server.runtime.budget import Bytes, SlotPool
from numba_adam.server.runtime.keeping import PENDING, Keeping
from numba_adam.server.storage.durable import NO_ROOM, end_if_ours
from numba_adam.server.storage.segment import Writer
from numba_adam.server.storage.segments import Segments

# Beyond both, a snapshot is due, because a start replays the journal.
_LONG_JOURNAL_BYTES = 1 << 28
_LONG_JOURNAL_GRADIENTS = 12
_MARGIN_BYTES = 1 << 16
_RETRY_MILLISECONDS = 1000


class DiskKeeper(Keeping):
    """Keeps one model's events.

    Args:
        segments: its journal.
        ledger: returns the ledger's record as it is now.
        version: the model's version now.
        runs: the runs of the data folder that the first segment continues; the last one is this run.
        nbytes: size of a gradient of all arrays.
        pool: the budget.
        held: returns the pushes of the open round with their gradients, which a segment begins with too.

    Raises:
        OSError: the journal cannot be written.
    """

    def __init__(
        self,
        segments: Segments,
        ledger: Callable[[], Mapping[str, Any]],
        version: int,
        runs: tuple[str, ...],
        nbytes: int,
        pool: SlotPool,
        held: Callable[[], Sequence[tuple[Event, FlatArray]]] = tuple,
    ) -> None:
        self._held = held
        self._segments, self._ledger, self._nbytes, self._pool = segments, ledger, nbytes, pool
        self._run = runs[-1]
        self._changed = threading.Condition()
        self._is_syncing = False
        self._failure = ""
        self._noted = self._settled = 0  # records
        self._noted_version = self._settled_version = version
        self._versions: deque[tuple[int, int]] = deque()  # (records, version) that are not settled yet
        self._prepared: Writer | None = None
        self._writer = segments.create()
        self._unsynced = [self._writer]
        self._snapshots = deque([self._writer.path], maxlen=2)  # where the newest two snapshots begin
        self._bytes = 0  # since the last snapshot began
        self._is_full = False
        segments.begin(self._writer, runs, ledger(), is_previous_synced=True)
        self._note_record()
        self._note_held()
        self.settle()

    def note(self, event: Event, gradient: FlatArray | None = None) -> None:
        """Write an event and the gradient of its update; see Keeping. It is kept after `settle`."""
        self._append(event, gradient, None)

    @contextlib.contextmanager
    def noting(self, event: Acceptance, gradient: FlatArray, checksum: int | None = None) -> Iterator[None]:
        """Write a push, a large one while its update runs in the body; see Keeping."""
        write = self._begun_write(event, gradient, checksum)
        if write is None:
            self._append(event, gradient, checksum)
            yield
            return
        is_written = threading.Event()
        threading.Thread(target=self._write_and_settle, args=(write, is_written), daemon=True).start()
        try:
            yield
        finally:
            is_written.wait()  # the gradient's memory is needed for something else
        self._check_failure()

    def _begun_write(self, event: Event, gradient: FlatArray, checksum: int | None) -> Callable[[], None] | None:
        """Return what writes a large push into room that is reserved; None: it must be written before its update."""
        self._check_failure()
        with self._telling_of_room():
            return self._writer.begin(encode(event), gradient, checksum)

    def _append(self, event: Event, gradient: FlatArray | None, checksum: int | None) -> None:
        self._check_failure()
        before = self._writer.size
        with self._telling_of_room():
            self._writer.append(encode(event), gradient, checksum)
        self._note_written(before, is_version=isinstance(event, (Acceptance, Closing)))

    def _write_and_settle(self, write: Callable[[], None], is_written: threading.Event) -> None:
        """Write a push, and fsync it at once: the update has probably not ended."""
        try:
            before = self._writer.size
            write()
            self._note_written(before, is_version=True)
        except OSError as error:
            end_if_ours(self._writer.path, "a write", error)
            self._failure = f"{str(self._writer.path)!r} could not be written ({error})"
        except BaseException as error:
            self._failure = f"{str(self._writer.path)!r} could not be written ({error!r})"
            raise
        finally:
            is_written.set()
        with contextlib.suppress(ServiceError):  # the push's own call gets it
            self.settle()

    def _note_written(self, before: int, *, is_version: bool) -> None:
        """Note that a record was written. No earlier, for an fsync is for all that was noted."""
        self._is_full = False
        self._bytes += self._writer.size - before
        self._note_record(is_version=is_version)

    @contextlib.contextmanager
    def _telling_of_room(self) -> Iterator[None]:
        """Turn errors of writing into those that a worker understands."""
        try:
            yield
        except OSError as error:
            if error.errno in NO_ROOM:
                self._is_full = True
                raise self._disk_full(str(error)) from error
            raise ServerUnavailableError(
                f"{str(self._writer.path)!r} cannot be written ({error}); nothing was changed, try again"
            ) from error

    def check_room(self, nbytes: int) -> None:
        """Refuse a push before its gradient is received, while the disk is full; see Keeping."""
        if self._is_full and self._segments.free_bytes() < nbytes + _MARGIN_BYTES:
            raise self._disk_full("No space left on device")

    @property
    def wants_snapshot(self) -> bool:
        """Whether the journal has become long; see Keeping."""
        return self._bytes > max(_LONG_JOURNAL_BYTES, _LONG_JOURNAL_GRADIENTS * self._nbytes)

    @contextlib.contextmanager
    def gradient(self, what: str) -> Iterator[tuple[int, Bytes]]:
        """Yield memory for a gradient; see Keeping."""
        with self._pool.acquire(self._nbytes, what) as slot:
            yield PENDING, slot.bytes

    def settle(self) -> None:
        """Wait until all that was noted before is on disk; see Keeping. One caller fsyncs for all who wait."""
        self._check_failure()
        with self._changed:
            goal = self._noted
            while self._settled < goal:
                self._check_failure()
                if self._is_syncing:
                    self._changed.wait()
                else:
                    self._sync()

    def settled_version(self, version: int) -> int:
        """Return the newest version that is on disk; see Keeping."""
        return min(version, self._settled_version)

    def prepare_snapshot(self) -> None:
        """Create the next segment; see Keeping."""
        self._bytes = 0
        if self._prepared is None:
            self._prepared = self._segments.create()

    def begin_snapshot(self) -> None:
        """Go on in the next segment; see Keeping."""
        self._check_failure()
        if self._prepared is None:
            raise AssertionError("a snapshot must be prepared")
        with self._changed:
            is_synced = self._settled == self._noted
        self._segments.begin(self._prepared, (self._run,), self._ledger(), is_previous_synced=is_synced)
        self._writer, self._prepared = self._prepared, None
        with self._changed:
            self._unsynced.append(self._writer)
        self._note_record()
        self._note_held()
        self._begun = self._writer.path

    def end_snapshot(self) -> None:
        """Remove the segments that neither this snapshot nor the one before it needs; see Keeping."""
        self.settle()
        self._snapshots.append(self._begun)
        self._segments.remove_before(self._snapshots[0])

    def close(self, *, remove: bool) -> None:  # noqa: ARG002
        """Close the segments. They stay, in any case: without them an older snapshot would be of less use."""
        with self._changed:
            self._changed.wait_for(lambda: not self._is_syncing)
            self._settled = self._noted  # nobody waits any longer: the server has stopped, or the model was deleted
            for writer in (*self._unsynced, *([self._prepared] if self._prepared else [])):
                writer.close()
            self._unsynced.clear()

    def _disk_full(self, why: str) -> ServiceError:
        error = DiskFullError(
            f"{str(self._writer.path)!r} cannot be written ({why}): the model can be pulled, and pushes wait for room "
            "on the server's disk; nothing was changed, try again later"
        )
        return with_detail(error, retry_after_milliseconds=_RETRY_MILLISECONDS)

    def _note_held(self) -> None:
        """Write the pushes of the open round, which no ledger's record has."""
        for event, gradient in self._held():
            self._writer.append(encode(event), gradient)
            self._note_record()

    def _note_record(self, *, is_version: bool = False) -> None:
        with self._changed:
            self._noted += 1
            if is_version:
                self._noted_version += 1
                self._versions.append((self._noted, self._noted_version))

    def _sync(self) -> None:
        """Fsync what is not on disk yet, the oldest segment first, without the lock."""
        self._is_syncing = True
        noted, writers = self._noted, list(self._unsynced)
        self._changed.release()
        failure = ""
        try:
            for writer in writers:
                writer.sync()
        except OSError as error:
            failure = f"{str(writer.path)!r} could not be fsynced ({error})"
        finally:
            self._changed.acquire()
            self._is_syncing = False
            self._changed.notify_all()
        if failure:
            self._failure = failure
            return
        self._settled = noted
        while self._versions and self._versions[0][0] <= noted:
            self._settled_version = self._versions.popleft()[1]
        for writer in writers[:-1]:
            self._unsynced.remove(writer)
            writer.close()

    def _check_failure(self) -> None:
        if self._failure:
            raise InternalServerError(
                f"{self._failure}: what it has is not certain any more, and this model serves nobody until the server "
                "is started again"
            )
