"""One model on the server: its spec, its memory, its push ledger and the update over its arrays.

Every change of a model runs alone, in its apply queue; reading is safe from any thread. Imports the files above it;
never gRPC.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

from numba_adam.errors import (
    InternalServerError,
    LatePushError,
    ModelNotFoundError,
    PushInProgressError,
    ServerUnavailableError,
)
from numba_adam.ps.detail import StatePoint, with_detail
from numba_adam.ps.mode_settings import ModeSettings
from numba_adam.ps.round_settings import RoundSettings
from numba_adam.server.model.answers import LATE, Answer
from numba_adam.server.model.arena import Arena, FlatArray
from numba_adam.server.model.changes import Changed, ChangeRequest
from numba_adam.server.model.changes import changed as changed_settings
from numba_adam.server.model.digests import content_of, describe
from numba_adam.server.model.events import (
    Acceptance,
    Change,
    Closing,
    Departure,
    Event,
    Holding,
    Opening,
    Rejection,
    replay,
)
from numba_adam.server.model.push_key import Content, PushKey
from numba_adam.server.model.push_ledger import PushLedger
from numba_adam.server.model.requests import PushRequest
from numba_adam.server.model.rounds import Held
from numba_adam.server.model.spec import Spec
from numba_adam.server.model.steering import Steering
from numba_adam.server.runtime.call_queue import CallQueue
from numba_adam.server.runtime.guarding import Guarding
from numba_adam.server.runtime.keeping import PENDING, Keeping
from numba_adam.server.runtime.launcher import Launcher
from numba_adam.server.runtime.leases import Leases
from numba_adam.server.runtime.rounds import Rounds
from numba_adam.server.runtime.slices import SlicedUpdate
from numba_adam.server.runtime.tally import Tally
from numba_adam.server.storage.snapshot import Snapshot

_log = logging.getLogger(__name__)
_R = TypeVar("_R")


class Push(NamedTuple):
    """A push that was received."""

    key: PushKey
    """Identifies it."""

    base_version: int
    """Version of the parameters that the gradient was computed from."""

    present: tuple[bool, ...]
    """For each array of the model, whether the push has its gradient."""

    content: Content
    """Digests of its content."""

    gradient: int = PENDING
    """The number of the file that has the gradient; see Keeper."""

    loss_scale: float = 1.0
    """Divides the gradient."""


class Outcome(NamedTuple):
    """The answer to a push, and whether it is a repeated one."""

    answer: Answer | Held
    """Accepted, rejected, or held in its round."""

    duplicate: bool
    """True: an earlier try got the same answer."""

    awaits_payload: bool = False
    """True: the answer is valid only if the payload equals the earlier one. Not compared yet."""


class Opened(NamedTuple):
    """An open session."""

    epoch: int
    """Its epoch."""

    next_sequence: int
    """Number of its next push."""


class ChangeAnswer(NamedTuple):
    """The answer to a change that was made, now or on an earlier try."""

    changed: Changed
    """Its number, and the model's version at the change."""

    is_duplicate: bool
    """True: an earlier try got the same answer."""


class Settled(NamedTuple):
    """Settings that everybody may learn of."""

    settings: Steering
    """The settings."""

    change: Changed
    """What made them."""


class Counters:
    """Counts of pushes since the server started, by result."""

    def __init__(self) -> None:
        self.applied = 0
        self.repeated = 0
        self.rejected = 0


class Model:
    """One model.

    Args:
        spec: its description.
        request_id: id of the request that created it.
        arena: its memory.
        ledger: its sessions, version and steps.
        saved: the ledger's record in the newest snapshot; None before the first.
        launcher: runs large updates; None: they run on the calling thread.
    """

    def __init__(
        self,
        spec: Spec,
        request_id: str,
        arena: Arena,
        ledger: PushLedger,
        saved: dict[str, Any] | None = None,
        launcher: Launcher | None = None,
    ) -> None:
        self.spec = spec
        self.request_id = request_id
        self.initial = ""
        """Digest of the initial values; empty if restored from a snapshot of format 1."""

        self.arena = arena
        self.ledger = ledger
        if ledger.changes.settings is None:
            ledger.changes.settings = spec.first_settings
        self.settled_changes = Settled(ledger.changes.settings, ledger.changes.newest)
        """The newest settings that are kept as the model's level says."""

        self.saved = saved
        """The ledger's record in the newest snapshot that is on disk."""

        self.keeper: Keeping | None = None
        """Keeps what the model acknowledges in files that outlive the process; None: it does not."""

        self.rounds: Rounds | None = None
        """Its rounds; None unless its mode is "sync"."""

        self.tried_version = ledger.version
        """Version of the last snapshot that was started, even if it is not finished."""

        self.guarding = Guarding(spec.name, spec.guards)
        """Enforces the limits of its pushes."""

        self.counters = Counters()
        self.tally = Tally()
        """Further counts, for the metrics."""

        self.apply_queue = CallQueue()
        """Runs changes of the model and copies of its arrays, so that no copy sees half an update."""

        self.snapshot_queue = CallQueue()
        """Runs writes and removals of the model's snapshots."""

        self.pending_slot = threading.Lock()
        """Held while a transfer uses the arena's own slot."""

        self.pull_copy_lock = threading.Lock()
        """Held while a pull copy is made."""

        self.leases = Leases(self, spec.lease_seconds)
        """When nobody waits for a worker any more."""

        self.new_rounds: Callable[[RoundSettings], Rounds] = lambda settings: Rounds(self, settings, 1)
        """Makes rounds, if the mode has some."""

        ledger.begin(spec.staleness)
        self._described = describe(spec.tensors)
        self._changed = threading.Condition()
        self._is_deleted = False
        self._is_broken = False
        self._sliced = SlicedUpdate(spec, arena, launcher)

    @property
    def version(self) -> int:
        """Number of pushes applied."""
        return self.ledger.version

    @property
    def settings(self) -> Steering:
        """The settings of the next push."""
        return self.ledger.changes.settings or self.spec.first_settings

    @property
    def mode(self) -> ModeSettings:
        """The mode of the next push."""
        return self.settings.mode or self.spec.mode_settings

    @property
    def is_deleted(self) -> bool:
        """Whether it was deleted."""
        return self._is_deleted

    @property
    def is_small(self) -> bool:
        """Whether its update is a single slice."""
        return self._sliced.is_short

    @property
    def snapshot_version(self) -> int:
        """Version of the newest snapshot on disk."""
        return int(self.saved["version"]) if self.saved else 0

    @property
    def has_moved(self) -> bool:
        """Whether there was a push or a change of the settings after the newest snapshot on disk."""
        saved = (self.saved or {}).get("changes", {}).get("number", 0)
        return self.version != self.snapshot_version or self.ledger.changes.newest.number != saved

    @property
    def is_saved(self) -> bool:
        """Whether the newest snapshot on disk has the current state."""
        return self.saved == self.ledger.to_record()

    def state(self) -> StatePoint:
        """Return the current state."""
        with self._changed:
            version = self.ledger.version
            return StatePoint(
                state_id=self.ledger.state_id,
                version=version if self.keeper is None else self.keeper.settled_version(version),
                first_version=self.ledger.first_version,
                snapshot_version=self.snapshot_version,
                durability=self.spec.durability,
            )

    def content_of(self, push: PushRequest) -> Content:
        """Return the digest of a push's header."""
        return content_of(push, self._described if push.tensors is self.spec.tensors else describe(push.tensors))

    @property
    def kept_bytes(self) -> int:
        """Approximate memory of the model without its arrays, when its sessions have all the answers they may keep."""
        return self.spec.description_bytes + self.ledger.kept_bytes

    def check_alive(self) -> None:
        """Refuse a call to a model that is deleted or broken.

        Raises:
            ModelNotFoundError: the model was deleted.
            InternalServerError: an update failed half-way.
        """
        if self._is_deleted:
            raise ModelNotFoundError(f"model {self.spec.name!r}: it was deleted")
        if self._is_broken:
            raise InternalServerError(
                f"model {self.spec.name!r}: an update failed half-way and its state is invalid; restart the server to "
                "restore the last snapshot"
            )

    def judge(self, key: PushKey, base_version: int, content: Content) -> Outcome | None:
        """Return the earlier answer to a push, or None if it is the next one; see PushLedger.judge."""
        with self._changed:
            self.check_alive()
            kept = self.ledger.judge(key, base_version, content)
            if kept is None:
                return None
            depends_on_payload = kept.content is not None and kept.content.payload is not None
            outcome = Outcome(kept.answer, True, awaits_payload=depends_on_payload and content.payload is None)
            self.counters.repeated += not outcome.awaits_payload
            return outcome

    def answer_to(self, key: PushKey) -> Outcome | None:
        """Return the answer to a push, whatever its content; None if it did not arrive; see PushLedger.answer_to."""
        with self._changed:
            self.check_alive()
            kept = self.ledger.answer_to(key)
            return None if kept is None else Outcome(kept.answer, duplicate=False)

    def open_session(self, worker_id: str, nonce: str = "", state_id: str = "", seen_epoch: int = 0) -> Opened:
        """Open a worker's session unless an earlier try did; see PushLedger.open_session. Runs in the apply queue.

        Args:
            worker_id: the worker.
            nonce: id of the request; empty: none.
            state_id: the state that the session is for; empty: any.
            seen_epoch: the newest epoch that the caller knows of.

        Raises:
            RewoundError: the model is in another state.
        """
        with self._changed:
            self.check_alive()
            if state_id:
                self.ledger.check_state(state_id)
            epoch = self.ledger.known_session(worker_id, nonce, seen_epoch)
            if epoch is None:
                if self.keeper is not None:
                    self.keeper.note(Opening(worker_id, nonce))
                epoch = self.ledger.add_session(worker_id, nonce)
            return Opened(epoch, self.ledger.sessions[worker_id].last_sequence + 1)

    def apply(self, push: Push, gradient: FlatArray, checksum: int | None = None) -> Outcome:
        """Make one step unless an earlier try did. Runs in the apply queue.

        Args:
            push: the push.
            gradient: the elements of the present arrays, concatenated.
            checksum: their XXH3 checksum, if it is known.
        """
        known = self.judge(push.key, push.base_version, push.content)
        if known is not None:
            return known
        if self.rounds is not None:
            return self._hold(push, gradient, self.rounds)
        staleness = self.version - push.base_version
        try:
            self.check_fresh(push.base_version)
        except LatePushError as error:
            return self.reject(push, LATE, str(error))
        if self.keeper is not None:
            with self.keeper.noting(Acceptance(*push), gradient, checksum):
                self.update(push.present, gradient, push.loss_scale, staleness)
        else:
            self.update(push.present, gradient, push.loss_scale, staleness)
        with self._changed:
            answer = self.ledger.accept(push.key, push.base_version, push.present, push.content)
            self.counters.applied += 1
            self._changed.notify_all()
        return Outcome(answer, duplicate=False)

    def apply_in(self, rounds: Rounds | None, push: Push, gradient: FlatArray, checksum: int | None) -> Outcome:
        """Apply a push whose gradient was received for these rounds; None: for no round. Runs in the apply queue.

        Raises:
            PushInProgressError: the mode has changed since; nothing was recorded.
        """
        if rounds is not self.rounds:
            error = PushInProgressError("the mode of the model changed while the push was received; send it again")
            raise with_detail(error, retry_after_milliseconds=1)
        return self.apply(push, gradient, checksum)

    def check_fresh(self, base_version: int) -> None:
        """Refuse a push that is staler than the settings allow.

        Raises:
            LatePushError: it is.
        """
        largest, staleness = self.settings.largest_staleness, self.version - base_version
        if largest is not None and staleness > largest:
            raise LatePushError(
                f"staleness {staleness}: the model takes pushes up to largest_staleness={largest}; the push was not "
                "applied. Pull, and compute the next gradient"
            )

    def change(self, request: ChangeRequest) -> tuple[ChangeAnswer, Settled]:
        """Change the settings unless an earlier try did; return the answer, and what may be told after `settle`.

        Runs in the apply queue.
        """
        with self._changed:
            self.check_alive()
            self.ledger.check_state(request.state_id)
            changes = self.ledger.changes
            known = changes.judge(request)
            if known is not None:
                return ChangeAnswer(known, is_duplicate=True), Settled(self.settings, changes.newest)
            names = [tensor.name for tensor in self.spec.tensors]
            settings = changed_settings(self.settings, request.change, names, self.spec.dtype)
            digest = request.change.digest()
            rounds = self._rounds_of(settings)
            if self.rounds is not None and request.change.mode is not None:
                self.rounds.abort("its mode changes")
            if self.keeper is not None:
                self.keeper.note(Change(request.request_id, digest, json.dumps(settings.to_record())))
            answer = self.ledger.change(request.request_id, digest, settings)
            self.rounds = rounds
            return ChangeAnswer(answer, is_duplicate=False), Settled(settings, answer)

    def depart(self, worker_id: str) -> None:
        """Let nobody wait for a worker any more: end its lease. Runs in the apply queue."""
        with self._changed:
            self.check_alive()
            if self.ledger.has_departed(worker_id):
                return
            if self.keeper is not None:
                self.keeper.note(Departure(worker_id))
            self.ledger.depart(worker_id)
        if self.rounds is not None:
            self.rounds.on_end()

    def _rounds_of(self, settings: Steering) -> Rounds | None:
        """Return the rounds for settings: those that there are, if they fit."""
        wanted = (settings.mode or self.spec.mode_settings).rounds
        if wanted is None or (self.rounds is not None and self.rounds.settings == wanted):
            return self.rounds if wanted is not None else None
        return self.new_rounds(wanted)

    def follow_mode(self) -> None:
        """Have the rounds of the mode of now."""
        self.rounds = self._rounds_of(self.settings)

    def note_settled(self, settled: Settled) -> None:
        """Let everybody learn of settings that are kept."""
        with self._changed:
            if settled.change.number > self.settled_changes.change.number:
                self.settled_changes = settled

    def reject(self, push: Push, reason: int, message: str) -> Outcome:
        """Answer a push with a rejection unless an earlier try has an answer. Runs in the apply queue."""
        known = self.judge(push.key, push.base_version, push.content)
        if known is not None:
            return known
        with self._changed:
            if self.keeper is not None:
                self.keeper.note(Rejection(push.key, reason, message, push.content))
            self.counters.rejected += 1
            self.tally.late_pushes += reason == LATE
            return Outcome(self.ledger.reject(push.key, reason, message, push.content), duplicate=False)

    def note(self, change: Callable[[], _R]) -> _R:
        """Change the ledger, and wake the calls that wait for a version. Runs in the apply queue."""
        with self._changed:
            try:
                return change()
            finally:
                self._changed.notify_all()

    def recover(self, events: Sequence[Event], gradient_of: Callable[[int], FlatArray]) -> None:
        """Let events happen once more that an earlier process noted, and finish its last update.

        Args:
            events: what happened since the ledger's record, in order.
            gradient_of: returns all elements of the memory of the gradient with a number.
        """
        for event in events[:-1]:
            replay(self.ledger, event)
        self.follow_mode()
        for event in events[-1:]:
            number = self.version + 1
            if isinstance(event, Acceptance) and any(event.present) and not self._sliced.is_done(number):
                tensors = zip(self.spec.tensors, event.present, strict=True)
                size = sum(tensor.size for tensor, is_present in tensors if is_present)
                staleness = self.version - event.base_version
                self._run(event.present, gradient_of(event.gradient)[:size], event.loss_scale, staleness)
            if isinstance(event, Closing) and self.rounds is not None and not self._sliced.is_done(number):
                self.rounds.apply_mean(self._run)
            replay(self.ledger, event)
            self.follow_mode()
        self.note_settled(Settled(self.settings, self.ledger.changes.newest))

    def redo(self, event: Event, gradient: FlatArray) -> None:
        """Let an event happen once more to the state before it.

        Args:
            event: the event.
            gradient: that of its update; empty if it has none.
        """
        if isinstance(event, Acceptance):
            self._run(event.present, gradient, event.loss_scale, self.version - event.base_version)
        elif isinstance(event, Holding) and self.rounds is not None:
            self.rounds.gradient(event.gradient)[: gradient.size] = gradient
        elif isinstance(event, Closing) and self.rounds is not None:
            self.rounds.apply_mean(self._run)
        replay(self.ledger, event)
        if isinstance(event, Change):
            self.follow_mode()
        self.note_settled(Settled(self.settings, self.ledger.changes.newest))

    def settle(self) -> None:
        """Wait until all that happened before is kept as the model's level says; only then may anybody learn of it."""
        if self.keeper is not None:
            self.keeper.settle()

    def held(self) -> list[tuple[Holding, FlatArray]]:
        """Return the pushes of the open round, as events that take them into it once more, with their gradients."""
        return [] if self.rounds is None else self.rounds.held()

    def capture(self) -> Snapshot:
        """Return the records of a snapshot. Runs in the apply queue, with the copy of the arrays."""
        self.check_alive()
        if self.keeper is not None:
            self.keeper.begin_snapshot()
        return self.records()

    def records(self) -> Snapshot:
        """Return the records of the model as it is now."""
        creation = {"request_id": self.request_id, **({"initial": self.initial} if self.initial else {})}
        return Snapshot({**self.spec.to_record(), **creation}, self.ledger.to_record())

    def note_snapshot(self, snapshot: Snapshot) -> None:
        """Note that a snapshot is on disk."""
        with self._changed:
            self.saved = snapshot.ledger
        if self.keeper is not None:
            self.keeper.end_snapshot()

    def wait_for(
        self, state_id: str, min_version: int, is_over: Callable[[], bool], timeout_seconds: float | None
    ) -> bool:
        """Wait until the model reaches a version; return False when `is_over` or the timeout comes first.

        Raises:
            RewoundError: the version belongs to another state.
            ModelNotFoundError: the model was deleted.
        """
        with self._changed:
            self.ledger.check_state(state_id)
            self._changed.wait_for(
                lambda: self.ledger.version >= min_version or self._is_deleted or is_over(),
                None if timeout_seconds is None else min(timeout_seconds, threading.TIMEOUT_MAX),
            )
            self.check_alive()
            return self.ledger.version >= min_version

    def wake(self) -> None:
        """Make every waiting call check its condition again."""
        with self._changed:
            self._changed.notify_all()

    def mark_deleted(self) -> None:
        """Refuse every call from now on. Runs in the apply queue."""
        with self._changed:
            self._is_deleted = True
            self._changed.notify_all()
        if self.rounds is not None:
            self.rounds.on_end()

    def _hold(self, push: Push, gradient: FlatArray, rounds: Rounds) -> Outcome:
        """Take a push into the open round; reject it if its round is closed."""
        try:
            event = Holding(push.key, push.present, push.content, push.gradient)
            return Outcome(rounds.hold(push.base_version, event, gradient), duplicate=False)
        except LatePushError as error:
            return self.reject(push, LATE, str(error))

    def _run(self, present: Sequence[bool], gradient: FlatArray, loss_scale: float = 1.0, staleness: int = 0) -> None:
        """Make the step of the next version with the settings of now."""
        settings = self.settings.step(self.version, loss_scale, staleness)
        self._sliced.run(present, gradient, self.ledger.steps, self.version + 1, settings)

    def update(self, present: Sequence[bool], gradient: FlatArray, loss_scale: float = 1.0, staleness: int = 0) -> None:
        """Run the update over the arrays that have a gradient."""
        number = self.version + 1
        try:
            self.arena.sharing.begin(number)
            self._run(present, gradient, loss_scale, staleness)
            self.arena.sharing.end(number)
        except ServerUnavailableError:  # the launcher has stopped, and nothing was updated
            raise
        except Exception as error:
            self._is_broken = True
            _log.exception("model %s: an update failed; the model refuses further pushes", self.spec.name)
            raise InternalServerError(f"model {self.spec.name!r}: an update failed; see the server's log") from error
