"""The server without its network: models by name, sessions, pushes, pulls, snapshots.

Calls come from many threads. Errors about a model say where its state stands. Imports everything above it; of gRPC
only what the error table needs.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from numba_adam.errors import (
    DeadlineExceededError,
    InvalidRequestError,
    ModelNotFoundError,
    NonFiniteError,
    PushRejectedError,
    ServerUnavailableError,
)
from numba_adam.numerics.norm import LARGEST_GRADIENT
from numba_adam.ps.errors import refusal
from numba_adam.ps.v1 import parameter_service_pb2 as pb
from numba_adam.ps.v1.error_pb2 import Reason
from numba_adam.ps.v1.model_pb2 import StatePoint
from numba_adam.server.config import ServerConfig
from numba_adam.server.model.digests import with_payload
from numba_adam.server.model.push_ledger import SESSION_BYTES, PushKey, Rejected
from numba_adam.server.model.spec import PushShape, Spec, check_random_id, check_worker_id, present_arrays
from numba_adam.server.runtime.budget import Bytes, SlotPool
from numba_adam.server.runtime.creation import is_ours
from numba_adam.server.runtime.launcher import Launcher
from numba_adam.server.runtime.model import Model, Opened, Outcome, Push
from numba_adam.server.runtime.model_errors import saying_epoch_of, saying_state_of
from numba_adam.server.runtime.model_loader import ModelLoader
from numba_adam.server.runtime.pages import page_of, status_of
from numba_adam.server.runtime.pull_copy import PullCopies, PullCopy
from numba_adam.server.runtime.receive import Parts, Reader, Receiver, receive
from numba_adam.server.runtime.snapshot_writer import SnapshotWriter
from numba_adam.server.storage.data_folder import DataFolder
from numba_adam.server.storage.deletions import Deletion, Deletions

_log = logging.getLogger(__name__)
_RETRY_MILLISECONDS = 50


class Caller(NamedTuple):
    """What the host needs to know of whoever is waiting for an answer."""

    time_remaining: Callable[[], float | None]
    """Seconds until the call's deadline; None without one."""

    is_gone: Callable[[], bool]
    """Whether the answer would reach nobody any more."""

    on_gone: Callable[[Callable[[], None]], object]
    """Registers what to call when that happens."""


class Host:
    """Everything a server holds.

    Args:
        config: the settings.

    Raises:
        ConfigurationError: the data folder cannot be used.
        CorruptSnapshotError: a model has snapshots, and none of them holds.
    """

    def __init__(self, config: ServerConfig) -> None:
        self._config = config
        self._started = time.monotonic()
        self._models: dict[str, Model] = {}
        self._creating: set[str] = set()
        self._transfers: set[tuple[Model, PushKey]] = set()
        self._lock = threading.Lock()
        self._is_stopping = threading.Event()
        self._waiters = threading.Semaphore(config.rpc_threads // 2)
        self.pool = SlotPool(config.memory_budget_bytes)
        self._launcher = Launcher(config.threads)
        self._pull_copies = PullCopies(self.pool)
        self._data_folder = DataFolder(config.data_dir, config.snapshots_kept)
        self._snapshots = SnapshotWriter(
            self._data_folder, self.pool, config.snapshot_interval_seconds, config.snapshot_every_pushes, self.models
        )
        self._loader = ModelLoader(self.pool, self._data_folder, self._snapshots, self._launcher)
        try:
            self._deletions = Deletions(self._data_folder.path)
            for name in self._data_folder.model_names():
                self._models[name] = self._loader.restore(name)
        except BaseException:
            self._data_folder.close()
            raise
        self._is_started = False

    def start(self) -> None:
        """Begin a run on the data folder, and start what works in the background.

        Raises:
            ConfigurationError: the data folder cannot be written.
        """
        if self._config.threads > self._launcher.threads:
            _log.warning(
                "threads=%d: large updates run on %d, which are all that Numba has here; threads=0 takes them all, and "
                "NUMBA_NUM_THREADS sets how many there are",
                self._config.threads,
                self._launcher.threads,
            )
        try:
            self._data_folder.begin()
        except BaseException:
            self._data_folder.close()
            raise
        self._snapshots.start()
        self._is_started = True

    def begin_stop(self) -> None:
        """Have those who wait for a version be told that the server is stopping."""
        self._is_stopping.set()
        for model in self.models():
            model.wake()

    def save(self) -> dict[str, bool]:
        """Write a snapshot of every model that has changed since its last; return for each whether it is saved now."""
        return self._snapshots.save_all(self.models())

    def stop(self) -> bool:
        """Write the last snapshots and let the data folder go; False if one of them could not be written.

        Without a start it lets the folder go as it was found.
        """
        self.begin_stop()
        saved = {}
        if self._is_started:
            saved = self.save()
        self._snapshots.stop()
        for model in self.models():
            model.apply_queue.stop()
        self._launcher.stop()
        try:
            are_there = self._data_folder.close([name for name, is_saved in saved.items() if is_saved])
        except OSError:
            _log.exception("data folder %s: it could not be closed; is it still there?", self._config.data_dir)
            return False
        return are_there and all(saved.values())

    def models(self) -> list[Model]:
        """Return all models, by name."""
        with self._lock:
            return [self._models[name] for name in sorted(self._models)]

    def model(self, name: str) -> Model:
        """Return a model.

        Raises:
            ModelNotFoundError: there is none of that name.
        """
        with self._lock:
            model = self._models.get(name)
        if model is None:
            raise ModelNotFoundError(f"model {name[:200]!r}: the server has no such model; create it first")
        return model

    def create_model(self, header: pb.CreateModelHeader, parts: Parts) -> tuple[Model, bool]:
        """Create a model from its initial values; return it, and whether this call or an earlier try created it.

        Raises:
            ModelExistsError: there is another of that name.
            ModelNotFoundError, RewoundError: the model was deleted meanwhile; see Deletions.check.
            InvalidRequestError, HyperparameterError: the description or the transfer makes no sense.
            BudgetExceededError: there is no memory for it.
            PushInProgressError: another call is creating it.
        """
        spec = Spec.from_proto(header.spec)
        check_random_id("request_id", header.request_id)
        existing = self._models.get(spec.name)
        if existing is not None:
            return existing, is_ours(existing, spec, header, parts)
        with self._claim(spec.name) as existing:
            if existing is not None:  # it came in this very moment
                return existing, is_ours(existing, spec, header, parts)
            self._deletions.check(header)
            model = self._loader.create(spec, header, parts)
            with self._lock:
                self._models[spec.name] = model
            return model, True

    def delete_model(self, name: str, state_id: str) -> StatePoint:
        """Delete a model and its snapshots; return where its state stood.

        Raises:
            RewoundError: the model is not in the state that was to be deleted; an empty id is any.
        """
        model = self.model(name)
        if state_id:
            with saying_state_of(model):
                model.ledger.check_state(state_id)
        with self._claim(name) as existing:
            if existing is not model:
                raise ModelNotFoundError(f"model {name!r}: the server has no such model")
            self._deletions.note(name, Deletion(model.request_id, model.ledger.state_id, model.version))
            model.apply_queue.call(model.mark_deleted)
            with self._lock:
                del self._models[name]
            self.pool.release_model(name)
            self._snapshots.delete(model)
        _log.info("model %s: deleted at version %d", name, model.version)
        return model.state()

    def open_session(self, request: pb.OpenSessionRequest) -> tuple[Opened, StatePoint]:
        """Open a session; return it and where the state stands.

        Raises:
            RewoundError: the model is in another state than the session is for.
            SessionFencedError, SessionUnknownError: see PushLedger.open_session.
        """
        model = self.model(request.model)
        with saying_state_of(model), saying_epoch_of(model):
            worker_id = check_worker_id(request.worker_id)
            nonce = request.nonce and check_random_id("nonce", request.nonce)
            if request.seen_epoch and not request.state_id:
                raise InvalidRequestError(f"seen_epoch={request.seen_epoch}: give the state_id that it belongs to")
            self._keep(model, one_more=worker_id not in model.ledger.sessions)
            opened = model.apply_queue.call(model.open_session, worker_id, nonce, request.state_id, request.seen_epoch)
        _log.info(
            "model %s: worker %r opened session %d at version %d", request.model, worker_id, opened.epoch, model.version
        )
        return opened, model.state()

    def push(self, header: pb.PushHeader, parts: Parts) -> pb.PushAck:
        """Take one push and make it a step, or give the answer it was given before.

        Raises:
            ServiceError: see PushLedger.judge and Receiver; PushRejectedError for content that cannot be applied.
        """
        model = self.model(header.model)
        with saying_state_of(model), self._small_call(model):
            outcome = self._push(model, header, parts)
            if isinstance(outcome.answer, Rejected):
                self._keep(model, must=True)
                raise refusal(outcome.answer.reason, outcome.answer.message, sequence_recorded=True)
            self._snapshots.note_push(model)
            return pb.PushAck(
                version=outcome.answer.version,
                state=model.state(),
                staleness=outcome.answer.staleness,
                duplicate=outcome.duplicate,
            )

    def pull(self, request: pb.PullRequest, caller: Caller) -> PullCopy:
        """Return a copy of the parameters, at least as new as asked for.

        Raises:
            RewoundError: the version asked for belongs to a state that is gone.
            BudgetExceededError: there is no memory, or too many wait already.
            DeadlineExceededError: the version did not come in time.
        """
        model = self.model(request.model)
        with saying_state_of(model):
            if request.min_version or request.state_id:
                self._wait_for_version(model, request, caller)
            with self._small_call(model):
                return self._pull_copies.take(model)

    def snapshot(self, name: str) -> list[pb.SnapshotInfo]:
        """Write a snapshot of one model, or of all where the name is empty.

        Raises:
            SnapshotError: one could not be written; of all models, the others are written all the same.
            BudgetExceededError: too many calls wait already.
        """
        with self._waiting("a snapshot"):
            if name:
                model = self.model(name)
                written = [(model, self._snapshots.snapshot(model))]
            else:
                written = self._snapshots.snapshot_all(self.models())
        return [
            pb.SnapshotInfo(model=model.spec.name, state=state, size_bytes=size_bytes, duration_seconds=seconds)
            for model, (state, size_bytes, seconds) in written
        ]

    def list_models(self, request: pb.ListModelsRequest) -> pb.ListModelsResponse:
        """Describe the models, or a page of them."""
        page = page_of(self.models(), request, Model.to_proto)
        return pb.ListModelsResponse(models=page.messages, next_page_token=page.next_page_token)

    def status(self, request: pb.GetServerStatusRequest) -> pb.GetServerStatusResponse:
        """Return what the server holds and has done; the models, or a page of them."""
        import numba_adam
        from numba_adam.cpu.kernels.threads import threading_layer

        page = page_of(self.models(), request, status_of)
        return pb.GetServerStatusResponse(
            server_version=numba_adam.__version__,
            uptime_seconds=time.monotonic() - self._started,
            models=page.messages,
            next_page_token=page.next_page_token,
            memory_used_bytes=self.pool.used_bytes,
            memory_budget_bytes=self.pool.budget_bytes,
            threading_layer=threading_layer(),
            threads=self._launcher.threads,
        )

    def _keep(self, model: Model, *, one_more: bool = False, must: bool = False) -> None:
        """Count what a model keeps beside its arrays; `one_more`: with a session that it does not have yet."""
        nbytes = model.kept_bytes + (SESSION_BYTES if one_more else 0)
        self.pool.keep(
            model.spec.name, nbytes, f"model {model.spec.name!r}: what it keeps beside its arrays", must=must
        )

    @contextlib.contextmanager
    def _small_call(self, model: Model) -> Iterator[None]:
        """Have large updates give way to the body, if the model is small."""
        if model.is_small:
            self._launcher.note_small_call()
        try:
            yield
        finally:
            if model.is_small:
                self._launcher.note_small_call()

    @contextlib.contextmanager
    def _claim(self, name: str) -> Iterator[Model | None]:
        """Keep others from creating or deleting a model meanwhile; yields the one there is."""
        with self._lock:
            if name in self._creating:
                raise refusal(
                    Reason.REASON_IN_PROGRESS,
                    f"model {name!r}: another call is creating or deleting it; try again",
                    retry_after_milliseconds=_RETRY_MILLISECONDS,
                )
            self._creating.add(name)
            existing = self._models.get(name)
        try:
            yield existing
        finally:
            with self._lock:
                self._creating.discard(name)

    def _push(self, model: Model, header: pb.PushHeader, parts: Parts) -> Outcome:
        key = PushKey(header.state_id, header.worker_id, header.epoch, header.sequence)
        tensors = model.tensors_of(header)
        content = model.content_of(header, tensors)
        known = model.judge(key, header.base_version, content)
        if known is not None and known.awaits_payload:
            reader = Reader(header.total_bytes, header.checksum_kind)
            receive(parts, reader)
            known = model.judge(key, header.base_version, with_payload(content, reader.checksum))
        if known is not None:
            return known
        push = Push(key, header.base_version, (), content)
        try:
            present = present_arrays(model.spec, PushShape(header.dtype, tensors, header.absent, header.total_bytes))
            with self._receiving(model, key), self._staging(model, header.total_bytes) as target:
                limit = LARGEST_GRADIENT[model.spec.dtype]
                receiver = Receiver(target, model.arena.dtype, tensors, header.checksum_kind, "gradient", limit)
                receive(parts, receiver)
                push = push._replace(present=present, content=with_payload(content, receiver.checksum))
                return model.apply_queue.call(model.apply, push, target.view(model.arena.dtype))
        except NonFiniteError as error:
            push = push._replace(content=with_payload(content, receiver.checksum))
            return model.apply_queue.call(model.reject, push, Reason.REASON_NON_FINITE, str(error))
        except PushRejectedError as error:  # for what its header says, whatever the payload
            return model.apply_queue.call(model.reject, push, Reason.REASON_PUSH_MISMATCH, str(error))

    @contextlib.contextmanager
    def _receiving(self, model: Model, key: PushKey) -> Iterator[None]:
        """Keep a second try of the same push out while the first is under way."""
        with self._lock:
            if (model, key) in self._transfers:
                raise refusal(
                    Reason.REASON_IN_PROGRESS,
                    f"sequence={key.sequence}: this push is being received on another stream; try again",
                    retry_after_milliseconds=_RETRY_MILLISECONDS,
                )
            self._transfers.add((model, key))
        try:
            yield
        finally:
            with self._lock:
                self._transfers.discard((model, key))

    @contextlib.contextmanager
    def _staging(self, model: Model, nbytes: int) -> Iterator[Bytes]:
        """Yield memory for a gradient: the arena's own slot if it is free, else one from the pool."""
        if model.pending_slot.acquire(blocking=False):
            try:
                yield model.arena.pending.view(np.uint8)[:nbytes]
            finally:
                model.pending_slot.release()
            return
        with self.pool.acquire(nbytes, f"a push to model {model.spec.name!r}") as slot:
            yield slot.bytes

    @contextlib.contextmanager
    def _waiting(self, what: str) -> Iterator[None]:
        """Have no more calls wait than leave threads for those who push."""
        if not self._waiters.acquire(blocking=False):
            raise refusal(
                Reason.REASON_BUDGET,
                f"{what}: too many calls wait already, for versions and for snapshots; try again later",
                retry_after_milliseconds=_RETRY_MILLISECONDS,
            )
        try:
            yield
        finally:
            self._waiters.release()

    def _wait_for_version(self, model: Model, request: pb.PullRequest, caller: Caller) -> None:
        """Wait for a version in the future."""
        model.ledger.check_state(request.state_id)
        if model.version >= request.min_version:
            return
        with self._waiting(f"version {request.min_version}"):
            caller.on_gone(model.wake)
            has_come = model.wait_for(
                request.state_id,
                request.min_version,
                lambda: self._is_stopping.is_set() or caller.is_gone(),
                caller.time_remaining(),
            )
        if self._is_stopping.is_set():
            raise ServerUnavailableError("the server is stopping; try again when it is back")
        if not has_come:
            raise DeadlineExceededError(
                f"min_version={request.min_version}: the model was at version {model.version} when the time was up"
            )
