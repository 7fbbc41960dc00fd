"""Writes snapshots of models: on request, by timer, and after a number of pushes.

A model's snapshots are written one at a time, and do not wait for another model's. The state is copied in the model's
apply queue and written outside it, so pushes wait for the copy and not for the disk. If the budget has no memory for a
copy, pushes wait until the state is in the page cache. Imports the data folder, the budget and the models.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import NamedTuple, TypeVar

from numba_adam.errors import ModelNotFoundError, ServerUnavailableError, ServiceError, SnapshotError
from numba_adam.ps.detail import StatePoint
from numba_adam.server.model.arena import FlatArray
from numba_adam.server.runtime.budget import Bytes, SlotPool
from numba_adam.server.runtime.model import Model
from numba_adam.server.storage import snapshot as snapshots
from numba_adam.server.storage.data_folder import DataFolder
from numba_adam.server.storage.snapshot import Snapshot

_log = logging.getLogger(__name__)
_R = TypeVar("_R")
_MOST_WRITERS = 32  # threads that write snapshots in the background, or of all models
_PAGE_BYTES = 4096


class Written(NamedTuple):
    """A snapshot on disk."""

    state: StatePoint
    """Its state and version."""

    size_bytes: int
    """Size of the file."""

    duration_seconds: float
    """From the start of writing until it was durable."""


class SnapshotWriter:
    """Writes and removes snapshots.

    Args:
        data_folder: the data folder.
        pool: the memory budget.
        interval_seconds: time between snapshots of a model that changes; 0: no timer.
        every_pushes: number of pushes to a model between its snapshots; 0: no limit.
        models: returns all models.
    """

    def __init__(
        self,
        data_folder: DataFolder,
        pool: SlotPool,
        interval_seconds: float,
        every_pushes: int,
        models: Callable[[], Iterable[Model]],
    ) -> None:
        self._data_folder = data_folder
        self._pool = pool
        self._interval_seconds = interval_seconds
        self._every_pushes = every_pushes
        self._models = models
        self._changed = threading.Condition()
        self._calls = 0  # calls in progress
        self._is_stopped = False
        self._queued: set[Model] = set()
        self._writers = ThreadPoolExecutor(_MOST_WRITERS, "numba-adam-snapshots")
        self._timer = threading.Thread(target=self._run, name="numba-adam-timer", daemon=True)

    def start(self) -> None:
        """Start the timer, if there is one and it does not run yet."""
        if self._interval_seconds and self._timer.ident is None:
            self._timer.start()

    def stop(self) -> None:
        """Refuse new calls, and wait for those in progress."""
        with self._changed:
            self._is_stopped = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._calls)
        self._writers.shutdown()
        if self._timer.ident is not None:
            self._timer.join()

    def snapshot(self, model: Model) -> Written:
        """Write a snapshot, and return when it is on disk.

        Raises:
            SnapshotError: it could not be written.
            ModelNotFoundError: the model was deleted.
        """
        with self._call():
            return model.snapshot_queue.call(self._write, model, self._capture)

    def snapshot_all(self, models: Iterable[Model]) -> list[tuple[Model, Written]]:
        """Write a snapshot of each model, in parallel. The result omits models that are deleted meanwhile.

        Raises:
            SnapshotError: for the first snapshot that could not be written, after the others were written.
        """
        written, errors = [], []
        for model, call in self._each(self.snapshot, models):
            try:
                written.append((model, call.result()))
            except ModelNotFoundError:
                continue
            except ServiceError as error:
                errors.append(error)
        if errors:
            raise errors[0]
        return written

    def begin(self, model: Model) -> None:
        """Write the first snapshot of a new model. Nothing changes the model yet, so no copy is needed."""
        with self._call():
            model.snapshot_queue.call(self._write, model, self._capture_in_place)

    def save(self, model: Model) -> None:
        """Write a snapshot unless the newest one has the current state.

        Raises:
            SnapshotError, ModelNotFoundError: see snapshot.
        """
        if not (model.apply_queue.call(lambda: model.is_saved) and self._data_folder.holds(model.spec.name)):
            self.snapshot(model)

    def save_all(self, models: Sequence[Model]) -> dict[str, bool]:
        """Save each model, in parallel; return for each whether it is saved now. Omits models deleted meanwhile."""
        saved = {}
        try:
            calls = self._each(self.save, models)
        except ServerUnavailableError:  # the writer has stopped
            return {model.spec.name: False for model in models}
        for model, call in calls:
            try:
                call.result()
                saved[model.spec.name] = True
            except ModelNotFoundError:
                continue
            except Exception:  # the other models must be saved after any error
                _log.exception("model %s: the last snapshot could not be written", model.spec.name)
                saved[model.spec.name] = False
        return saved

    def delete(self, model: Model) -> None:
        """Remove a model's folder.

        Raises:
            SnapshotError: the folder could not be removed.
        """
        try:
            with self._call():
                model.snapshot_queue.call(self._data_folder.delete, model.spec.name)
        except ServiceError:
            raise
        except OSError as error:
            raise SnapshotError(f"model {model.spec.name!r}: its folder could not be removed ({error})") from error

    def note_push(self, model: Model) -> None:
        """Queue a snapshot in the background if enough pushes were applied since the last one."""
        is_due = self._every_pushes and model.version - model.tried_version >= self._every_pushes
        if is_due or (model.keeper is not None and model.keeper.wants_snapshot):
            self._queue_snapshot(model)

    def _each(self, function: Callable[[Model], _R], models: Iterable[Model]) -> list[tuple[Model, Future[_R]]]:
        """Call a function with each model on the writers' threads; return when all calls have ended."""
        with self._call():
            calls = [(model, self._writers.submit(function, model)) for model in models]
            wait(call for _, call in calls)
        return calls

    @contextlib.contextmanager
    def _call(self) -> Iterator[None]:
        """Make `stop` wait until the body ends."""
        with self._changed:
            if self._is_stopped:
                raise ServerUnavailableError("the server is stopping; try again when it is back")
            self._calls += 1
        try:
            yield
        finally:
            with self._changed:
                self._calls -= 1
                self._changed.notify_all()

    def _queue_snapshot(self, model: Model) -> None:
        """Write a snapshot in the background, unless one is already queued or being written."""
        with self._changed:
            if self._is_stopped or model in self._queued:
                return
            with contextlib.suppress(RuntimeError):  # the interpreter exits, and `stop` was never called
                self._writers.submit(self._write_quietly, model)
                self._queued.add(model)

    def _run(self) -> None:
        """Queue snapshots of the changed models, once per interval."""
        due = time.monotonic() + self._interval_seconds
        while True:
            with self._changed:
                if self._changed.wait_for(lambda: self._is_stopped, max(0.0, due - time.monotonic())):
                    return
            for model in self._models():
                if model.has_moved:
                    self._queue_snapshot(model)
            due = time.monotonic() + self._interval_seconds

    def _write_quietly(self, model: Model) -> None:
        """Write a snapshot in the background. Logs errors instead of raising them."""
        try:
            with self._call():
                model.snapshot_queue.call(self._write_if_moved, model)
        except (ModelNotFoundError, ServerUnavailableError):  # deleted, or stopped, meanwhile
            pass
        except Exception:  # later snapshots must still be queued after any error
            _log.exception("model %s: the snapshot could not be written; the previous one stays", model.spec.name)
        with self._changed:
            self._queued.discard(model)
        self.note_push(model)  # pushes during the write queued nothing

    def _write_if_moved(self, model: Model) -> None:
        """Write a snapshot, unless another call has just written one."""
        if model.has_moved:
            self._write(model, self._capture)

    def _write(self, model: Model, capture: Callable[[Model, int], tuple[Snapshot, int]]) -> Written:
        """Write a snapshot and wait until it is durable. Runs in the model's snapshot queue.

        Args:
            model: the model.
            capture: gets the descriptor of an empty file, writes the snapshot, and returns its records and size.
        """
        start = time.monotonic()
        model.check_alive()
        model.tried_version = model.version
        captured: list[Snapshot] = []

        def write(descriptor: int) -> int:
            snapshot, size = capture(model, descriptor)
            captured.append(snapshot)
            model.settle()  # the journal that follows the snapshot must be on disk before the snapshot is
            return size

        try:
            if model.keeper is not None:
                model.keeper.prepare_snapshot()
            size = self._data_folder.write(model.spec.name, write)
        except (OSError, ServiceError) as error:
            model.tally.note_failed_snapshot()
            if isinstance(error, ServiceError):  # some are OSErrors too
                raise
            raise SnapshotError(f"model {model.spec.name!r}: its snapshot could not be written ({error})") from error
        model.note_snapshot(captured[0])
        state = model.state()
        state = state._replace(version=state.snapshot_version)  # later pushes may have changed the model
        written = Written(state, size, time.monotonic() - start)
        model.tally.note_snapshot(written.duration_seconds, size, time.time())
        _log.info(
            "model %s: snapshot of version %d, %d bytes, took %.3f s",
            model.spec.name,
            state.version,
            *written[1:],
            extra={"version": state.version},
        )
        return written

    def _capture(self, model: Model, descriptor: int) -> tuple[Snapshot, int]:
        """Copy a model's state and write the copy. Without memory for a copy, pushes wait during the write."""
        arrays = model.arena.state_arrays()
        slot = self._pool.spare(sum(array.nbytes for array in arrays.values()))
        if slot is None:
            return model.apply_queue.call(self._capture_in_place, model, descriptor)
        try:
            slot.bytes[::_PAGE_BYTES] = 0  # touch fresh pages here, not while pushes wait
            snapshot, copies = model.apply_queue.call(_copy, model, slot.bytes)
            return snapshot, snapshots.write(descriptor, snapshot, copies, self._data_folder.keys)
        finally:
            slot.discard()

    def _capture_in_place(self, model: Model, descriptor: int) -> tuple[Snapshot, int]:
        """Write a model's state directly from its arena; nothing may change it meanwhile."""
        snapshot, arrays = model.capture(), model.arena.state_arrays()
        return snapshot, snapshots.write(descriptor, snapshot, arrays, self._data_folder.keys)


def _copy(model: Model, target: Bytes) -> tuple[Snapshot, dict[str, FlatArray]]:
    """Copy a model's state. Runs in its apply queue."""
    snapshot, arrays = model.capture(), model.arena.state_arrays()
    copies, start = {}, 0
    for name, array in arrays.items():
        copies[name] = target[start : start + array.nbytes].view(array.dtype)
        copies[name][:] = array
        start += array.nbytes
    return snapshot, copies
