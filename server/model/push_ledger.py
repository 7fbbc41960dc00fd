"""The decisions about the pushes to one model: order, duplicates, versions, staleness.

Deterministic: values go in, decisions come out. There is no gRPC, clock, thread, disk, random number or array. The
same calls in the same order give the same state, before a restart and after it. Imports the error tree, the changes of
the settings and the check of records.

A push is identified by (state id, worker id, epoch, sequence). Within one session (one epoch of a worker) pushes are
accepted in order without gaps, so one number says which were answered. The ledger keeps the last answers of each
session with digests of the content, and repeats an answer for the same content. A rejection of a push is an answer
too. A refusal without an answer changes nothing.

A request to open a session has a nonce as its id, and says the newest epoch that its caller knew. If a newer session
was opened before it arrives, it changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from numba_adam.errors import (
    InvalidRequestError,
    PushInProgressError,
    RewoundError,
    SequenceError,
    SequenceReusedError,
    SessionFencedError,
    SessionUnknownError,
)
from numba_adam.server.model.answers import (
    LIMITS,
    NOT_KEPT,
    ROUND_ABORTED,
    SESSION_BYTES,
    Accepted,
    Kept,
    Limits,
    Rejected,
    Session,
    is_same,
    kept_from,
    text_length,
)
from numba_adam.server.model.changes import Changed, Changes
from numba_adam.server.model.clocks import Clocks
from numba_adam.server.model.push_key import Content, PushKey
from numba_adam.server.model.records import check_keys
from numba_adam.server.model.rounds import Held, HeldPush, OpenRound
from numba_adam.server.model.steering import Steering

_KEYS = ("state_id", "version", "steps", "last_epoch", "sessions")
_SESSION_KEYS = ("worker_id", "epoch", "last_sequence", "answers")
_OPTIONAL_KEYS = (
    "first_version",
    "forgotten_epoch",
    "changes",
    "clocks",
)  # omitted if 0 or empty; a session's nonce is omitted if empty


class PushLedger:
    """One model's sessions, version and steps.

    Args:
        state_id: id of the model's line of history.
        tensor_count: number of arrays; each has its own step count.
        limits: how much the ledger keeps.
    """

    def __init__(self, state_id: str, tensor_count: int, limits: Limits = LIMITS) -> None:
        self._limits = limits
        self.state_id = state_id
        self.version = 0
        self.first_version = 0
        """Version at which this line of history began."""

        self.steps = [0] * tensor_count
        self.changes = Changes()
        """The settings, and what changed them."""

        self.sessions: dict[str, Session] = {}
        self.last_epoch = 0
        """The newest epoch given to any worker."""

        self.round = OpenRound()
        """The open round, of the mode "sync"."""

        self.clocks = Clocks()
        """The clocks of the workers, of the mode "ssp"."""

        self._first_bound: int | None = None

        self._forgotten_epoch = 0  # the newest epoch of all dropped sessions
        self._text_length = 0

    @property
    def kept_bytes(self) -> int:
        """Approximate memory of the sessions when each has all the answers that it may keep."""
        return len(self.sessions) * SESSION_BYTES + 2 * self._text_length

    def begin(self, bound: int | None) -> None:
        """Have the bound of clocks that the model was created with; None: none. The settings may have another one."""
        self._first_bound = bound
        self._follow()

    def change(self, request_id: str, digest: str, settings: Steering) -> Changed:
        """Use other settings from now on."""
        answer = self.changes.make(request_id, digest, settings, self.version)
        self._follow()
        return answer

    def _follow(self) -> None:
        """Have the mode that the settings say."""
        settings = self.changes.settings
        mode = None if settings is None else settings.mode
        self.clocks.follow(self._first_bound if mode is None else mode.staleness)

    def open_session(self, worker_id: str, nonce: str = "", seen_epoch: int = 0) -> int:
        """Open a session and return its epoch, which is higher than all earlier epochs of all workers.

        All workers share one counter, so a worker whose session was dropped never gets an old epoch again.

        Args:
            worker_id: the worker.
            nonce: id of the request. If the worker's session has the same one, its epoch is returned. Empty, as from
                clients of the first release: always open a new session.
            seen_epoch: the newest epoch that the caller knows of.

        Raises:
            SessionFencedError: the worker has a session that the caller did not know of.
            SessionUnknownError: the worker may have had a session that was dropped.
            InvalidRequestError: `seen_epoch` has not been given to any worker yet.
        """
        known = self.known_session(worker_id, nonce, seen_epoch)
        return self.add_session(worker_id, nonce) if known is None else known

    def known_session(self, worker_id: str, nonce: str, seen_epoch: int) -> int | None:
        """Return the epoch of the session that this request opened, None if it may open one; raises as open_session."""
        session = self.sessions.get(worker_id)
        if not nonce:
            return None
        if session is not None and session.nonce == nonce:
            return session.epoch
        self._check_seen(worker_id, session, seen_epoch)
        return None

    def add_session(self, worker_id: str, nonce: str) -> int:
        """Open a new session in place of the worker's last one; return its epoch."""
        self.last_epoch += 1
        if worker_id in self.sessions:
            self._drop_session(worker_id)
        self.sessions[worker_id] = Session(self.last_epoch, nonce)
        self.clocks.join(worker_id)
        while len(self.sessions) > self._limits.most_sessions:
            oldest = next(iter(self.sessions))
            self.clocks.leave(oldest)
            self._forgotten_epoch = max(self._forgotten_epoch, self._drop_session(oldest).epoch)
        return self.last_epoch

    def rewind(self, state_id: str) -> None:
        """Start a new line of history at this version; later versions are lost."""
        self.state_id = state_id
        self.first_version = self.version
        self.round.take()
        self.clocks.clear()

    def has_departed(self, worker_id: str) -> bool:
        """Return whether nobody waits for a worker: it has no clock, and no push in the open round."""
        return self.clocks.of(worker_id) is None and self.round.of(worker_id) is None

    def depart(self, worker_id: str) -> None:
        """Forget the clock of a worker, and its push in the open round, which has no answer. Its session stays."""
        self.clocks.leave(worker_id)
        self.round.withdraw(worker_id)

    def check_session(self, state_id: str, worker_id: str, epoch: int) -> None:
        """Refuse a request for a session that is not open; raises as `judge` does."""
        self.check_state(state_id)
        self._session(PushKey(state_id, worker_id, epoch, 0))

    def check_state(self, state_id: str) -> None:
        """Refuse a request for another state.

        Raises:
            RewoundError: the model is in another state.
        """
        if state_id != self.state_id:
            raise RewoundError(
                f"state_id={state_id[:64]!r}: the model's state is {self.state_id!r}, at version {self.version} (it "
                "went back to a snapshot, or was created anew); open a new session and pull"
            )

    def judge(self, push: PushKey, base_version: int, content: Content) -> Kept | None:
        """Return the earlier answer to a push, or None if it is the next push. Changes nothing.

        The answer to a push in the open round is Held.

        Without the payload's checksum, the answer is returned for any payload. Judge the push again with the checksum
        before using that answer.

        Raises:
            SequenceReusedError: the number was answered for other content.
            RewoundError: the push is for another state.
            SessionUnknownError: no such session is open.
            SessionFencedError: a newer session of the same worker is open.
            SequenceError: its answer is no longer kept, or an earlier push is missing.
            InvalidRequestError: its base version does not exist yet.
            PushInProgressError: the push before it waits in its round.
            WorkerAheadError: the worker is too many clocks ahead.
        """
        self.check_state(push.state_id)
        session = self._session(push)
        held = self.round.of(push.worker_id)
        if held is not None and push.sequence >= held.key.sequence:
            return self._held(held, push, content)
        if 1 <= push.sequence <= session.last_sequence:
            return self._kept(session, push, content)
        if push.sequence != session.last_sequence + 1:
            raise SequenceError(
                f"sequence={push.sequence}: the next push of worker {push.worker_id!r} is {session.last_sequence + 1}; "
                "pushes of a session come in order, without gaps"
            )
        if base_version > self.version:
            raise InvalidRequestError(
                f"base_version={base_version}: the model is at version {self.version}; give the version that was pulled"
            )
        self.clocks.check(push.worker_id)
        return None

    def answer_to(self, push: PushKey) -> Kept | None:
        """Return the answer to a push, whatever its content; None if it did not arrive. Raises as `judge` does."""
        self.check_state(push.state_id)
        session = self._session(push)
        held = self.round.of(push.worker_id)
        if held is not None and push.sequence == held.key.sequence:
            return Kept(Held(self.version + 1), held.content)
        return self._kept(session, push, None) if 1 <= push.sequence <= session.last_sequence else None

    def accept(self, push: PushKey, base_version: int, present: Sequence[bool], content: Content) -> Accepted:
        """Count the next push as a new version, and as a step of each array marked in `present` that is not frozen."""
        answer = Accepted(self.version + 1, self.version - base_version)
        self._record(push, Kept(answer, content))
        self._count(present)
        return answer

    def _count(self, present: Sequence[bool]) -> None:
        """Count a version, and a step of each array that has a gradient and is not frozen."""
        frozen = set(self.changes.frozen)
        self.steps = [
            step + (is_present and tensor not in frozen)
            for tensor, (step, is_present) in enumerate(zip(self.steps, present, strict=True))
        ]
        self.version += 1

    def reject(self, push: PushKey, reason: int, message: str, content: Content) -> Rejected:
        """Answer the next push with a rejection. Its sequence number is used; nothing else changes."""
        text = message if len(message) <= self._limits.longest_text else message[: self._limits.longest_text] + " ..."
        if self._text_length + len(text) > self._limits.most_text:
            text = NOT_KEPT
        answer = Rejected(reason, text)
        self._record(push, Kept(answer, content))
        return answer

    def hold(self, push: PushKey, present: Sequence[bool], content: Content, gradient: int) -> Held:
        """Take the next push, whose base version is the model's version, into the open round. It has no answer yet."""
        self.round.hold(HeldPush(push, tuple(present), content, gradient))
        return Held(self.version + 1)

    def close_round(self) -> None:
        """Answer the pushes of the open round: together they make the next version."""
        pushes = self.round.take()
        for push in pushes:
            self._record(push.key, Kept(Accepted(self.version + 1, 0), push.content))
        self._count([any(flags) for flags in zip(*(push.present for push in pushes), strict=True)])

    def abort_round(self, message: str) -> None:
        """Reject the pushes of the open round."""
        for push in self.round.take():
            self.reject(push.key, ROUND_ABORTED, message, push.content)

    def to_record(self) -> dict[str, Any]:
        """Return everything but the open round as plain values that JSON can hold."""
        return {
            "state_id": self.state_id,
            "version": self.version,
            **({"first_version": self.first_version} if self.first_version else {}),
            "steps": list(self.steps),
            "last_epoch": self.last_epoch,
            **({"forgotten_epoch": self._forgotten_epoch} if self._forgotten_epoch else {}),
            **({"changes": changes} if (changes := self.changes.to_record()) else {}),
            **({"clocks": clocks} if (clocks := self.clocks.to_record()) else {}),
            "sessions": [
                {
                    "worker_id": worker_id,
                    "epoch": session.epoch,
                    **({"nonce": session.nonce} if session.nonce else {}),
                    "last_sequence": session.last_sequence,
                    "answers": [
                        [sequence, *kept.answer, *(kept.content or ())] for sequence, kept in session.answers.items()
                    ],
                }
                for worker_id, session in self.sessions.items()
            ],
        }

    @classmethod
    def from_record(cls, record: Mapping[str, Any], limits: Limits = LIMITS) -> PushLedger:
        """Return the ledger that `to_record` wrote, in this version or an earlier one.

        Raises:
            SnapshotError: it has a key or value that this version does not know.
        """
        check_keys(record, "the record of a model's pushes", _KEYS, _OPTIONAL_KEYS)
        ledger = cls(record["state_id"], len(record["steps"]), limits)
        ledger.version = record["version"]
        ledger.first_version = record.get("first_version", 0)
        ledger.steps = list(record["steps"])
        ledger.last_epoch = record["last_epoch"]
        ledger._forgotten_epoch = record.get("forgotten_epoch", 0)
        ledger.changes = Changes.from_record(record.get("changes", {}))
        ledger.clocks = Clocks(record.get("clocks"))
        for item in record["sessions"]:
            check_keys(item, "a session's record", _SESSION_KEYS, ("nonce",))
            answers = {sequence: kept_from(*rest) for sequence, *rest in item["answers"]}
            nonce, last = item.get("nonce", ""), item["last_sequence"]
            ledger.sessions[item["worker_id"]] = Session(item["epoch"], nonce, last, answers)
            ledger._text_length += sum(map(text_length, answers.values()))
        return ledger

    def _check_seen(self, worker_id: str, session: Session | None, seen_epoch: int) -> None:
        """Refuse to open a session if the caller does not know the worker's newest one."""
        if seen_epoch > self.last_epoch:
            raise InvalidRequestError(
                f"seen_epoch={seen_epoch}: the newest epoch of this state is {self.last_epoch}; give one that was seen"
            )
        advice = f"to take over, open again with seen_epoch={self.last_epoch}"
        if session is not None and session.epoch > seen_epoch:
            raise SessionFencedError(
                f"worker {worker_id!r}, seen_epoch={seen_epoch}: epoch {session.epoch} has been opened since (does a "
                f"second process use this worker_id?); {advice}"
            )
        if session is None and self._forgotten_epoch > seen_epoch:
            raise SessionUnknownError(
                f"worker {worker_id!r}, seen_epoch={seen_epoch}: sessions up to epoch {self._forgotten_epoch} have "
                f"been forgotten, and one of them may have been this worker's; {advice}"
            )

    def _session(self, push: PushKey) -> Session:
        session = self.sessions.get(push.worker_id)
        if session is None or push.epoch > session.epoch:
            raise SessionUnknownError(
                f"worker {push.worker_id[:200]!r}, epoch {push.epoch}: no such session is open; open one, then push"
            )
        if push.epoch < session.epoch:
            raise SessionFencedError(
                f"worker {push.worker_id!r}, epoch {push.epoch}: epoch {session.epoch} has taken over; only the newest "
                "session of a worker may push (does a second process use this worker_id?)"
            )
        return session

    def _kept(self, session: Session, push: PushKey, content: Content | None) -> Kept:
        kept = session.answers.get(push.sequence)
        if kept is None:
            raise SequenceError(
                f"sequence={push.sequence}: answered long ago, and only the last {self._limits.kept_answers} answers "
                f"are kept; the next push is {session.last_sequence + 1}"
            )
        if kept.content is not None and content is not None and not is_same(kept.content, content):
            raise SequenceReusedError(
                f"sequence={push.sequence}: this number was answered for a push of other content; this one was not "
                "applied. Open a new session for it: a retry sends the same gradients under the same header"
            )
        return kept

    def _held(self, held: HeldPush, push: PushKey, content: Content) -> Kept:
        if push.sequence > held.key.sequence:
            raise PushInProgressError(
                f"sequence={push.sequence}: push {held.key.sequence} of worker {push.worker_id!r} waits in round "
                f"{self.version + 1}; send this one when that one has its answer"
            )
        if not is_same(held.content, content):
            raise SequenceReusedError(
                f"sequence={push.sequence}: round {self.version + 1} has a push of other content with this number; "
                "open a new session for this one: a retry sends the same gradients under the same header"
            )
        return Kept(Held(self.version + 1), held.content)

    def _record(self, push: PushKey, kept: Kept) -> None:
        """Keep an answer, and mark the worker as the most recently used."""
        session = self.sessions.pop(push.worker_id)
        self.sessions[push.worker_id] = session
        session.last_sequence = push.sequence
        self.clocks.tick(push.worker_id)
        session.answers[push.sequence] = kept
        self._text_length += text_length(kept)
        if len(session.answers) > self._limits.kept_answers:
            self._text_length -= text_length(session.answers.pop(next(iter(session.answers))))

    def _drop_session(self, worker_id: str) -> Session:
        self.round.withdraw(worker_id)
        session = self.sessions.pop(worker_id)
        self._text_length -= sum(map(text_length, session.answers.values()))
        return session
