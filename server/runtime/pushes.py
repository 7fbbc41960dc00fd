"""Pushes: judge the header, receive the gradient, apply it or reject it. Imports the models and the receiver.

A push runs on its call's thread. Only the step itself waits for other pushes to the same model.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from numba_adam.errors import (
    GradientTooLargeError,
    LatePushError,
    NonFiniteError,
    PushHeldError,
    PushInProgressError,
    PushRejectedError,
)
from numba_adam.numerics.norm import LARGEST_GRADIENT
from numba_adam.ps.checksum import XXH3_64
from numba_adam.ps.detail import StatePoint, with_detail
from numba_adam.ps.transfer import Parts, Reader, receive
from numba_adam.server.model.answers import GRADIENT_TOO_LARGE, LATE, NON_FINITE, PUSH_MISMATCH, REJECTIONS, Rejected
from numba_adam.server.model.digests import with_payload
from numba_adam.server.model.push_key import PushKey
from numba_adam.server.model.requests import Payload, PushRequest, payload_of, present_arrays
from numba_adam.server.model.rounds import Held
from numba_adam.server.runtime.budget import Bytes, SlotPool
from numba_adam.server.runtime.keeping import PENDING
from numba_adam.server.runtime.launcher import Launcher
from numba_adam.server.runtime.model import Model, Outcome, Push
from numba_adam.server.runtime.model_errors import saying_state_of
from numba_adam.server.runtime.receive import Receiver
from numba_adam.server.runtime.rounds import Rounds, check_unscaled
from numba_adam.server.runtime.sessions import count_memory
from numba_adam.server.runtime.small_calls import small_call
from numba_adam.server.runtime.snapshot_writer import SnapshotWriter
from numba_adam.server.runtime.widening import WideningReceiver
from numba_adam.settings.limits import LIMITS

_RETRY_MILLISECONDS = 50
_HELD_RETRY_MILLISECONDS = 200  # for clients that send the push again in place of AwaitPush


class Pushed(NamedTuple):
    """The answer to a push that was applied, now or on an earlier try."""

    version: int
    """The version that the push made."""

    staleness: int
    """Versions between the parameters it was computed from and those it was applied to."""

    is_duplicate: bool
    """True: an earlier try got the same answer."""

    state: StatePoint
    """The model's current state."""


class Pushes:
    """Handles pushes to all models.

    Args:
        pool: the memory budget.
        launcher: gives way to pushes to small models.
        snapshots: is told of each step.
    """

    def __init__(self, pool: SlotPool, launcher: Launcher, snapshots: SnapshotWriter) -> None:
        self._pool = pool
        self._launcher = launcher
        self._snapshots = snapshots
        self._lock = threading.Lock()
        self.receiving: set[tuple[Model, PushKey]] = set()
        """Pushes whose payload is being received."""

    def push(self, model: Model, request: PushRequest, parts: Parts) -> Pushed:
        """Apply one push, or repeat the answer to an earlier try.

        Raises:
            ServiceError: see PushLedger.judge and Receiver; PushRejectedError for content that cannot be applied.
        """
        model.leases.renew(request.key.worker_id, request.key.epoch)
        with saying_state_of(model), small_call(model, self._launcher):
            if isinstance(parts, tuple) and model.is_small:
                # All has arrived. In one turn, pushes from many sessions share one staging slot, and one thread runs.
                outcome = model.apply_queue.call(self._outcome, model, request, parts, _at_once)
            else:
                outcome = self._outcome(model, request, parts, model.apply_queue.call)
            return self._answer(model, outcome)

    def answer(self, model: Model, key: PushKey) -> Pushed | None:
        """Return the answer to a push that was held in its round; None if the model does not have the push.

        Raises:
            PushHeldError: its round is still open.
            ServiceError: see PushLedger.judge; PushRejectedError if it was rejected.
        """
        model.leases.renew(key.worker_id, key.epoch)
        with saying_state_of(model):
            outcome = model.answer_to(key)
            return None if outcome is None else self._answer(model, outcome)

    def _answer(self, model: Model, outcome: Outcome) -> Pushed:
        """Return the answer to a push, once the model's level is kept; raise it if it is an error."""
        answer, is_duplicate, _ = outcome
        model.settle()
        if isinstance(answer, Held):
            error = PushHeldError(f"the push waits in round {answer.round}, which is still open")
            raise with_detail(error, retry_after_milliseconds=_HELD_RETRY_MILLISECONDS)
        if isinstance(answer, Rejected):
            count_memory(model, self._pool, must=True)
            raise with_detail(REJECTIONS[answer.reason](answer.message), sequence_recorded=True)
        self._snapshots.note_push(model)
        return Pushed(answer.version, answer.staleness, is_duplicate, model.state())

    def _outcome(self, model: Model, request: PushRequest, parts: Parts, in_turn: Callable[..., Outcome]) -> Outcome:
        """Return the answer to an earlier try, or to this one; `in_turn` calls a function in the model's queue."""
        key, base_version = request.key, request.base_version
        content = model.content_of(request)
        known = model.judge(key, base_version, content)
        if known is not None and known.awaits_payload:
            reader = Reader(request.total_bytes, request.checksum_kind)
            receive(parts, reader)
            known = model.judge(key, base_version, with_payload(content, reader.checksum))
        if known is not None:
            return known
        model.guarding.admit()
        rounds = model.rounds
        push = Push(key, base_version, (), content, loss_scale=request.loss_scale)
        try:
            present = present_arrays(model.spec, request)
            if rounds is not None:
                rounds.check_open(base_version)
                check_unscaled(request.loss_scale)
            else:
                model.check_fresh(base_version)
            payload = payload_of(model.spec, request)
            nbytes = payload.elements * model.arena.dtype.itemsize
            if model.keeper is not None:
                model.keeper.check_room(nbytes)
            with self._receiving(model, key), self._staging(model, rounds, nbytes) as (number, target):
                receiver = _receiver(model, request, payload, target)
                receive(parts, receiver)
                model.guarding.check_norm(target.view(model.arena.dtype), request.loss_scale)
                content = with_payload(content, receiver.checksum)
                checksum = _checksum_of(request, payload, receiver)
                push = push._replace(present=present, content=content, gradient=number)
                return in_turn(model.apply_in, rounds, push, target.view(model.arena.dtype), checksum)
        except NonFiniteError as error:
            push = push._replace(content=with_payload(content, receiver.checksum))
            return in_turn(model.reject, push, NON_FINITE, str(error))
        except GradientTooLargeError as error:
            push = push._replace(content=with_payload(content, receiver.checksum))
            return in_turn(model.reject, push, GRADIENT_TOO_LARGE, str(error))
        except LatePushError as error:
            return in_turn(model.reject, push, LATE, str(error))
        except PushRejectedError as error:  # because of its header: the payload does not matter
            return in_turn(model.reject, push, PUSH_MISMATCH, str(error))

    @contextlib.contextmanager
    def _receiving(self, model: Model, key: PushKey) -> Iterator[None]:
        """Refuse a second try of the same push while the first is being received."""
        with self._lock:
            if (model, key) in self.receiving:
                error = PushInProgressError(
                    f"sequence={key.sequence}: this push is being received on another stream; try again"
                )
                raise with_detail(error, retry_after_milliseconds=_RETRY_MILLISECONDS)
            self.receiving.add((model, key))
        try:
            yield
        finally:
            with self._lock:
                self.receiving.discard((model, key))

    @contextlib.contextmanager
    def _staging(self, model: Model, rounds: Rounds | None, nbytes: int) -> Iterator[tuple[int, Bytes]]:
        """Yield memory for a gradient, and its number for the keeper: the arena's own slot if it is free."""
        if rounds is not None:
            with rounds.slots.take(f"a push to model {model.spec.name!r}") as (number, memory):
                yield number, memory[:nbytes]
            return
        if model.pending_slot.acquire(blocking=False):
            try:
                yield PENDING, model.arena.pending.view(np.uint8)[:nbytes]
            finally:
                model.pending_slot.release()
            return
        what = f"a push to model {model.spec.name!r}"
        if model.keeper is not None:
            with model.keeper.gradient(what) as (number, memory):
                yield number, memory[:nbytes]
            return
        with self._pool.acquire(nbytes, what) as slot:
            yield PENDING, slot.bytes


def _at_once(function: Callable[..., Outcome], *args: Any) -> Outcome:
    return function(*args)


def _largest_gradient(dtype: str, loss_scale: float) -> float:
    """Return the magnitude from which on a gradient is refused, before it is divided by its loss scale."""
    largest = LARGEST_GRADIENT[dtype]
    if loss_scale == 1.0:
        return largest
    scaled = largest * loss_scale * (1 - 2.0**-20)  # the division rounds
    return scaled if scaled < LIMITS[dtype].largest else math.inf


def _checksum_of(request: PushRequest, payload: Payload, receiver: Receiver) -> int | None:
    """Return the XXH3 checksum of a received gradient, if it is that of its payload."""
    is_same = request.checksum_kind == XXH3_64 and not payload.narrow_dtype
    return receiver.checksum if is_same else None


def _receiver(model: Model, request: PushRequest, payload: Payload, target: Bytes) -> Receiver:
    """Return what receives a push's payload into memory."""
    limit = _largest_gradient(model.spec.dtype, request.loss_scale)
    what = (target, model.arena.dtype, request.tensors, request.checksum_kind, "gradient", limit)
    largest = model.guarding.largest_element * request.loss_scale
    if payload.narrow_dtype:
        return WideningReceiver(*what, narrow_dtype=payload.narrow_dtype, largest=largest)
    return Receiver(*what, largest=largest)
