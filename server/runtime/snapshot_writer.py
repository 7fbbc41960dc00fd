"""Snapshots of models: on request, by timer, and after so many pushes.

A model's snapshots are written one after the other, and never wait for another model's. The state is copied in the
model's apply queue and written outside it, so pushes wait for the copy and not for the disk. Where the budget has no
memory for a copy, pushes wait until the state stands in the page cache. Imports the data folder, the budget and the
models.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import NamedTuple, TypeVar

import numpy as np

from numba_adam.errors import ModelNotFoundError, ServerUnavailableError, ServiceError, SnapshotError
from numba_adam.ps.detail import StatePoint
from numba_adam.server.model.arena import FlatArray
from numba_adam.server.runtime.budget import SlotPool
from numba_adam.server.runtime.model import Model
from numba_adam.server.storage import snapshot as snapshots
from numba_adam.server.storage.data_folder import DataFolder
from numba_adam.server.storage.snapshot import Snapshot

_log = logging.getLogger(__name__)
_R = TypeVar("_R")
_MOST_WRITERS = (
    32  # snapshots written at the same time that nobody's own call writes: threads of a server with many models
)
_PAGE_BYTES = 4096


class Written(NamedTuple):
    """A snapshot that is on disk."""

    state: StatePoint
    """State and version that it holds."""

    size_bytes: int
    """Size of the file."""

    duration_seconds: float
    """From the start of writing until it was durable."""


class SnapshotWriter:
    """Keeps models on disk.

    Args:
        data_folder: the data folder.
        pool: where memory for copies comes from.
        interval_seconds: snapshots of models that moved, so often; 0: never.
        every_pushes: a snapshot after so many pushes; 0: never.
        models: returns the models there are.
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
        self._calls = 0  # those that are under way
        self._is_stopped = False
        self._asked_for: set[Model] = set()
        self._writers = ThreadPoolExecutor(_MOST_WRITERS, "numba-adam-snapshots")
        self._timer = threading.Thread(target=self._run, name="numba-adam-timer", daemon=True)

    def start(self) -> None:
        """Start the timer, unless there is none or it was started before."""
        if self._interval_seconds and self._timer.ident is None:
            self._timer.start()

    def stop(self) -> None:
        """Refuse what comes from now on, and return once everything that is under way is done."""
        with self._changed:
            self._is_stopped = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._calls)
        self._writers.shutdown()
        if self._timer.ident is not None:
            self._timer.join()

    def snapshot(self, model: Model) -> Written:
        """Write a snapshot and return once it is on disk.

        Raises:
            SnapshotError: it could not be written.
            ModelNotFoundError: the model was deleted.
        """
        with self._call():
            return model.snapshot_queue.call(self._write, model, self._capture)

    def snapshot_all(self, models: Iterable[Model]) -> list[tuple[Model, Written]]:
        """Write a snapshot of each model, beside each other; those that are deleted meanwhile are left out.

        Raises:
            SnapshotError: the first that could not be written; the others are written all the same.
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
        """Write the first snapshot of a model that nobody knows yet: nothing changes it, so nothing is copied."""
        with self._call():
            model.snapshot_queue.call(self._write, model, _capture_in_place)

    def save(self, model: Model) -> None:
        """Write a snapshot unless the newest one is there and is the model as it is.

        Raises:
            SnapshotError, ModelNotFoundError: see snapshot.
        """
        if not (model.apply_queue.call(lambda: model.is_saved) and self._data_folder.holds(model.spec.name)):
            self.snapshot(model)

    def save_all(self, models: Sequence[Model]) -> dict[str, bool]:
        """Save each model, beside each other; return for each that is not deleted meanwhile whether it is saved now."""
        saved = {}
        try:
            calls = self._each(self.save, models)
        except ServerUnavailableError:  # nothing is written any more
            return {model.spec.name: False for model in models}
        for model, call in calls:
            try:
                call.result()
                saved[model.spec.name] = True
            except ModelNotFoundError:
                continue
            except Exception:  # whatever it is, the other models are saved
                _log.exception("model %s: no last snapshot", model.spec.name)
                saved[model.spec.name] = False
        return saved

    def delete(self, model: Model) -> None:
        """Remove a model's folder.

        Raises:
            SnapshotError: it could not be removed, or not for good.
        """
        try:
            with self._call():
                model.snapshot_queue.call(self._data_folder.delete, model.spec.name)
        except ServiceError:
            raise
        except OSError as error:
            raise SnapshotError(f"model {model.spec.name!r}: its folder could not be removed ({error})") from error

    def note_push(self, model: Model) -> None:
        """Ask for a snapshot in the background if the model has moved far enough from its last one."""
        if self._every_pushes and model.version - model.tried_version >= self._every_pushes:
            self._ask_for(model)

    def _each(self, function: Callable[[Model], _R], models: Iterable[Model]) -> list[tuple[Model, Future[_R]]]:
        """Call a function with each model on the writers' threads; return once all calls are over."""
        with self._call():
            calls = [(model, self._writers.submit(function, model)) for model in models]
            wait(call for _, call in calls)
        return calls

    @contextlib.contextmanager
    def _call(self) -> Iterator[None]:
        """Have `stop` wait for what is under way."""
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

    def _ask_for(self, model: Model) -> None:
        """Have a snapshot written in the background, unless one is asked for or being written there already."""
        with self._changed:
            if self._is_stopped or model in self._asked_for:
                return
            with contextlib.suppress(RuntimeError):  # the interpreter is about to exit, and nobody has stopped us
                self._writers.submit(self._write_quietly, model)
                self._asked_for.add(model)

    def _run(self) -> None:
        """Ask for snapshots of the models that moved, once in each interval."""
        due = time.monotonic() + self._interval_seconds
        while True:
            with self._changed:
                if self._changed.wait_for(lambda: self._is_stopped, max(0.0, due - time.monotonic())):
                    return
            for model in self._models():
                if model.version != model.snapshot_version:
                    self._ask_for(model)
            due = time.monotonic() + self._interval_seconds

    def _write_quietly(self, model: Model) -> None:
        """Write a snapshot that nobody waits for."""
        try:
            with self._call():
                model.snapshot_queue.call(self._write_if_moved, model)
        except (ModelNotFoundError, ServerUnavailableError):  # deleted, or stopped, meanwhile
            pass
        except Exception:  # whatever it is, the models' later snapshots must be asked for
            _log.exception("model %s: no snapshot was written; the one before it stays", model.spec.name)
        with self._changed:
            self._asked_for.discard(model)
        self.note_push(model)  # pushes that came in while it was written asked for nothing

    def _write_if_moved(self, model: Model) -> None:
        """Write a snapshot unless another came first."""
        if model.version != model.snapshot_version:
            self._write(model, self._capture)

    def _write(self, model: Model, capture: Callable[[Model, int], tuple[Snapshot, int]]) -> Written:
        """Write a snapshot and wait until it is durable. In the model's snapshot queue.

        Args:
            model: the model.
            capture: called with the descriptor of an empty file; writes the snapshot, returns its records and size.
        """
        start = time.monotonic()
        model.check_alive()
        model.tried_version = model.version
        captured: list[Snapshot] = []

        def write(descriptor: int) -> int:
            snapshot, size = capture(model, descriptor)
            captured.append(snapshot)
            return size

        try:
            size = self._data_folder.write(model.spec.name, write)
        except ServiceError:  # some are OSErrors too
            raise
        except OSError as error:
            raise SnapshotError(f"model {model.spec.name!r}: its snapshot could not be written ({error})") from error
        model.note_snapshot(captured[0])
        state = model.state()
        state = state._replace(version=state.snapshot_version)  # the model may have moved on
        written = Written(state, size, time.monotonic() - start)
        _log.info(
            "model %s: snapshot of version %d, %d bytes, took %.3f s", model.spec.name, state.version, *written[1:]
        )
        return written

    def _capture(self, model: Model, descriptor: int) -> tuple[Snapshot, int]:
        """Copy a model's state and write the copy; without memory for one, have pushes wait while it is written."""
        arrays = model.arena.state_arrays()
        slot = self._pool.spare(sum(array.nbytes for array in arrays.values()))
        if slot is None:
            return model.apply_queue.call(_capture_in_place, model, descriptor)
        try:
            slot.bytes[::_PAGE_BYTES] = 0  # fresh pages are touched here, not while pushes wait
            snapshot, copies = model.apply_queue.call(_copy, model, slot.bytes.view(model.arena.dtype))
            return snapshot, snapshots.write(descriptor, snapshot, copies)
        finally:
            slot.discard()


def _capture_in_place(model: Model, descriptor: int) -> tuple[Snapshot, int]:
    """Write a model's state as it lies there; nothing may change it meanwhile."""
    snapshot = model.capture()
    return snapshot, snapshots.write(descriptor, snapshot, model.arena.state_arrays())


def _copy(model: Model, target: FlatArray) -> tuple[Snapshot, dict[str, FlatArray]]:
    """Copy a model's state; in its apply queue."""
    snapshot, arrays = model.capture(), model.arena.state_arrays()
    copies = dict(zip(arrays, np.split(target, len(arrays)), strict=True))
    for name, copy in copies.items():
        copy[:] = arrays[name]
    return snapshot, copies
