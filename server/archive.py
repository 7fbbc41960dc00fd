"""The one thread that writes to the data folder: snapshots on request, by timer and after so many pushes.

While a snapshot is captured the engine only writes into the page cache; making it durable happens here, beside the
engine. Imports the engine, the store and the models.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import NamedTuple, TypeVar

from numba_adam.errors import ModelNotFoundError, ServerUnavailableError, ServiceError, SnapshotError
from numba_adam.ps.v1 import model_pb2 as pb
from numba_adam.server import snapshot as snapshots
from numba_adam.server.engine import Engine
from numba_adam.server.model import Model
from numba_adam.server.snapshot import Snapshot
from numba_adam.server.store import Store

_log = logging.getLogger(__name__)
_R = TypeVar("_R")
_Runner = Callable[[Callable[[int], int], int], int]


class Written(NamedTuple):
    """A snapshot that is on disk."""

    state: pb.StatePoint
    """State and version that it holds."""

    size_bytes: int
    """Size of the file."""

    duration_seconds: float
    """From the start of writing until it was durable."""


class Archive:
    """Keeps models on disk.

    Args:
        store: the data folder.
        engine: what orders a snapshot among the updates.
        interval_seconds: snapshots of models that moved, so often; 0: never.
        every_pushes: a snapshot after so many pushes; 0: never.
        models: returns the models there are.
    """

    def __init__(
        self,
        store: Store,
        engine: Engine,
        interval_seconds: float,
        every_pushes: int,
        models: Callable[[], Iterable[Model]],
    ) -> None:
        self._store = store
        self._engine = engine
        self._interval_seconds = interval_seconds
        self._every_pushes = every_pushes
        self._models = models
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._asked_for: set[Model] = set()
        self._is_stopped = False
        self._asking = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="numba-adam-archive", daemon=True)

    def start(self) -> None:
        """Start the thread, unless it was started before."""
        if self._thread.ident is None:
            self._thread.start()

    def stop(self) -> None:
        """Finish what was asked for, then end the thread."""
        with self._asking:
            self._is_stopped = True
            self._jobs.put(None)
        self._thread.join()

    def snapshot(self, model: Model) -> Written:
        """Write a snapshot and return once it is on disk.

        Raises:
            SnapshotError: it could not be written.
            ModelNotFoundError: the model was deleted.
        """
        return self._do(lambda: self._write(model, self._engine.call))

    def begin(self, model: Model) -> None:
        """Write the first snapshot of a model that nobody knows yet: the engine need not wait for it."""
        self._do(lambda: self._write(model, lambda capture, descriptor: capture(descriptor)))

    def save(self, model: Model) -> None:
        """Write a snapshot unless the newest one is the model as it is. Nothing else may change it meanwhile."""
        if not model.is_saved:
            self.snapshot(model)

    def delete(self, model: Model) -> None:
        """Remove a model's folder."""
        self._do(lambda: self._store.delete(model.spec.name))

    def note_push(self, model: Model) -> None:
        """Ask for a snapshot in the background if the model has moved far enough from its last one."""
        if self._every_pushes and model.version - model.tried_version >= self._every_pushes:
            self._ask_for(model)

    def _ask_for(self, model: Model) -> None:
        with self._asking:
            if model in self._asked_for:
                return
            self._asked_for.add(model)
            self._jobs.put(lambda: self._write_quietly(model))

    def _do(self, function: Callable[[], _R]) -> _R:
        """Run a function on the archive's thread and return what it returns."""
        future: Future[_R] = Future()

        def job() -> None:
            try:
                future.set_result(function())
            except BaseException as error:
                future.set_exception(error)

        with self._asking:
            if self._is_stopped:
                raise ServerUnavailableError("the server is stopping; try again when it is back")
            self._jobs.put(job)
        return future.result()

    def _run(self) -> None:
        due = time.monotonic() + self._interval_seconds
        while True:
            try:
                job = self._jobs.get(timeout=max(0.0, due - time.monotonic()) if self._interval_seconds else None)
            except queue.Empty:
                for model in self._models():
                    if model.version != model.snapshot_version:
                        self._write_quietly(model)
                due = time.monotonic() + self._interval_seconds
                continue
            if job is None:
                return
            job()

    def _write_quietly(self, model: Model) -> None:
        """Write a snapshot that nobody waits for."""
        with self._asking:
            self._asked_for.discard(model)
        try:
            self._write(model, self._engine.call)
        except ModelNotFoundError:  # deleted meanwhile
            return
        except Exception:  # whatever it is, the thread goes on: others wait for their snapshots
            _log.exception("model %s: no snapshot was written; the one before it stays", model.spec.name)

    def _write(self, model: Model, run: _Runner) -> Written:
        """Write a snapshot and wait until it is durable; `run` runs what must not see half an update."""
        start = time.monotonic()
        model.check_alive()
        model.tried_version = model.version
        captured: list[Snapshot] = []

        def capture(descriptor: int) -> int:
            captured.append(model.capture())
            return snapshots.write(descriptor, captured[0], model.arena.state_arrays())

        try:
            size = self._store.write(model.spec.name, lambda descriptor: run(capture, descriptor))
        except ServiceError:  # some are OSErrors too
            raise
        except OSError as error:
            raise SnapshotError(f"model {model.spec.name!r}: its snapshot could not be written ({error})") from error
        model.note_snapshot(captured[0])
        state = model.state()
        state.version = state.snapshot_version  # it may have moved on
        written = Written(state, size, time.monotonic() - start)
        _log.info(
            "model %s: snapshot of version %d, %d bytes, took %.3f s", model.spec.name, state.version, *written[1:]
        )
        return written
