"""One model on the server: its spec, its memory, its push ledger and the update over its arrays.

Whatever changes a model runs in its apply queue, alone; reading is safe from any thread. Imports the files above it;
never gRPC.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from numba_adam.errors import InternalServerError, ModelNotFoundError, ServerUnavailableError
from numba_adam.ps.detail import StatePoint
from numba_adam.server.model.arena import Arena, FlatArray
from numba_adam.server.model.digests import content_of, describe
from numba_adam.server.model.push_ledger import Answer, Content, PushKey, PushLedger
from numba_adam.server.model.requests import PushRequest
from numba_adam.server.model.spec import Spec
from numba_adam.server.runtime.call_queue import CallQueue
from numba_adam.server.runtime.launcher import Launcher
from numba_adam.server.runtime.slices import SlicedUpdate
from numba_adam.server.storage.snapshot import Snapshot

_log = logging.getLogger(__name__)


class Push(NamedTuple):
    """A push that was received."""

    key: PushKey
    """Names it."""

    base_version: int
    """Version of the parameters that the gradient was computed from."""

    present: tuple[bool, ...]
    """For each array of the model, whether there is a gradient for it."""

    content: Content
    """Digests of its content."""


class Outcome(NamedTuple):
    """The answer to a push, and where it comes from."""

    answer: Answer
    """Accepted or rejected."""

    duplicate: bool
    """True when an earlier try was given this answer already."""

    awaits_payload: bool = False
    """True when the answer is valid only if the payload equals the earlier one, which is not compared yet."""


class Opened(NamedTuple):
    """A session that is open."""

    epoch: int
    """Its epoch."""

    next_sequence: int
    """Number of its next push."""


class Counters:
    """Pushes since the server started, by what was done with them."""

    def __init__(self) -> None:
        self.applied = 0
        self.repeated = 0
        self.rejected = 0


class Model:
    """One model.

    Args:
        spec: its description.
        request_id: names the request that created it.
        arena: its memory.
        ledger: its sessions, version and steps.
        saved: the ledger's record in the newest snapshot; None before the first.
        launcher: runs large updates; None: the calling thread does.
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
        """Digest of the initial values; empty where a snapshot of format 1 has none."""

        self.arena = arena
        self.ledger = ledger
        self.saved = saved
        """The ledger's record in the newest snapshot that is on disk."""

        self.tried_version = ledger.version
        """Version of the last snapshot that was started, finished or not."""

        self.counters = Counters()
        self.apply_queue = CallQueue()
        """Runs what changes the model, and what copies its arrays: no copy sees half an update."""

        self.snapshot_queue = CallQueue()
        """Runs what writes or removes the model's snapshots."""

        self.pending_slot = threading.Lock()
        """Held by the transfer that uses the arena's own slot."""

        self.pull_copy_lock = threading.Lock()
        """Held while a pull copy is made."""

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
    def is_small(self) -> bool:
        """Whether an update of it is a single slice."""
        return self._sliced.is_short

    @property
    def snapshot_version(self) -> int:
        """Version that the newest snapshot on disk holds."""
        return int(self.saved["version"]) if self.saved else 0

    @property
    def is_saved(self) -> bool:
        """Whether the newest snapshot on disk is the model as it is."""
        return self.saved == self.ledger.to_record()

    def state(self) -> StatePoint:
        """Return where the state stands."""
        with self._changed:
            return StatePoint(
                state_id=self.ledger.state_id,
                version=self.ledger.version,
                first_version=self.ledger.first_version,
                snapshot_version=self.snapshot_version,
                durability=self.spec.durability,
            )

    def content_of(self, push: PushRequest) -> Content:
        """Return the digest of what a push's header says."""
        return content_of(push, self._described if push.tensors is self.spec.tensors else describe(push.tensors))

    @property
    def kept_bytes(self) -> int:
        """About how much memory the model takes beside its arrays, once its sessions have all the answers they keep."""
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
                f"model {self.spec.name!r}: an update failed half-way and its state cannot be trusted; restart the "
                "server to go back to the last snapshot"
            )

    def judge(self, key: PushKey, base_version: int, content: Content) -> Outcome | None:
        """Return the answer that a push was given before, or None where it is the next one; see PushLedger.judge."""
        with self._changed:
            self.check_alive()
            kept = self.ledger.judge(key, base_version, content)
            if kept is None:
                return None
            depends_on_payload = kept.content is not None and kept.content.payload is not None
            outcome = Outcome(kept.answer, True, awaits_payload=depends_on_payload and content.payload is None)
            self.counters.repeated += not outcome.awaits_payload
            return outcome

    def open_session(self, worker_id: str, nonce: str = "", state_id: str = "", seen_epoch: int = 0) -> Opened:
        """Open a worker's session unless an earlier try did; see PushLedger.open_session. Runs in the apply queue.

        Args:
            worker_id: the worker.
            nonce: names the opening; empty: it has no name.
            state_id: the state that the session is for; empty: any.
            seen_epoch: the newest epoch that the caller knows of.

        Raises:
            RewoundError: the model is in another state.
        """
        with self._changed:
            self.check_alive()
            if state_id:
                self.ledger.check_state(state_id)
            epoch = self.ledger.open_session(worker_id, nonce, seen_epoch)
            return Opened(epoch, self.ledger.sessions[worker_id].last_sequence + 1)

    def apply(self, push: Push, gradient: FlatArray) -> Outcome:
        """Make one step unless an earlier try did. Runs in the apply queue.

        Args:
            push: the push.
            gradient: the present arrays' elements, one after the other.
        """
        known = self.judge(push.key, push.base_version, push.content)
        if known is not None:
            return known
        self._update(push.present, gradient)
        with self._changed:
            answer = self.ledger.accept(push.key, push.base_version, push.present, push.content)
            self.counters.applied += 1
            self._changed.notify_all()
        return Outcome(answer, duplicate=False)

    def reject(self, push: Push, reason: int, message: str) -> Outcome:
        """Answer a push with a rejection unless an earlier try has an answer. Runs in the apply queue."""
        known = self.judge(push.key, push.base_version, push.content)
        if known is not None:
            return known
        with self._changed:
            self.counters.rejected += 1
            return Outcome(self.ledger.reject(push.key, reason, message, push.content), duplicate=False)

    def capture(self) -> Snapshot:
        """Return the records of a snapshot. Runs in the apply queue, with the copy of the arrays."""
        self.check_alive()
        creation = {"request_id": self.request_id, **({"initial": self.initial} if self.initial else {})}
        return Snapshot({**self.spec.to_record(), **creation}, self.ledger.to_record())

    def note_snapshot(self, snapshot: Snapshot) -> None:
        """Note that a snapshot is on disk."""
        with self._changed:
            self.saved = snapshot.ledger

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

    def _update(self, present: Sequence[bool], gradient: FlatArray) -> None:
        """Run the update over the arrays that have a gradient."""
        try:
            self._sliced.run(present, gradient, self.ledger.steps)
        except ServerUnavailableError:  # the launcher has stopped: nothing was updated
            raise
        except Exception as error:
            self._is_broken = True
            _log.exception("model %s: an update failed; the model takes no more pushes", self.spec.name)
            raise InternalServerError(f"model {self.spec.name!r}: an update failed; the log says more") from error
