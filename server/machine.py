"""The decisions of one model, as a deterministic state machine: order, duplicates, versions, staleness.

Values go in and decisions come out: no gRPC, no clock, no threads, no disk, no random numbers, no arrays. The same
calls in the same order give the same state, before a restart and after it. May import the error tree alone.

A push is named by (state id, worker id, epoch, sequence). Within one session (one epoch of a worker) pushes are
accepted in order without gaps, so one number says which are in; the answers of the last few are kept and given
again. A rejection of a push's content is an answer too. Whatever is refused without an answer leaves no trace.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from numba_adam.errors import InvalidRequestError, RewoundError, SequenceError, SessionFencedError, SessionUnknownError


class Limits(NamedTuple):
    """How much a machine remembers."""

    kept_answers: int = 64
    """Answers kept for retries, of each session."""

    most_sessions: int = 1024
    """Workers whose session is kept; beyond it the one that has been idle for longest is forgotten."""


LIMITS = Limits()


class PushKey(NamedTuple):
    """Names one push."""

    state_id: str
    """State that the gradient was computed for."""

    worker_id: str
    """The worker."""

    epoch: int
    """The worker's session."""

    sequence: int
    """Number of the push within the session, from 1."""


class Accepted(NamedTuple):
    """The answer to a push that became a step."""

    version: int
    """Version that it made."""

    staleness: int
    """Versions between the parameters it was computed from and those it was applied to."""


class Rejected(NamedTuple):
    """The answer to a push whose content cannot be applied."""

    reason: int
    """A Reason of the protocol."""

    message: str
    """What was given, what is needed, what to do."""


Answer = Accepted | Rejected


@dataclass(slots=True)
class Session:
    """What is known of one worker."""

    epoch: int
    """The newest epoch given to it."""

    last_sequence: int = 0
    """The last push that was answered."""

    answers: dict[int, Answer] = field(default_factory=dict)
    """The newest answers by sequence number, oldest first."""


class Machine:
    """One model's sessions, version and steps.

    Args:
        state_id: names its line of history.
        tensor_count: number of arrays, each of which counts its own steps.
        limits: how much it remembers.
    """

    def __init__(self, state_id: str, tensor_count: int, limits: Limits = LIMITS) -> None:
        self._limits = limits
        self.state_id = state_id
        self.version = 0
        self.first_version = 0
        """Version at which this line of history began."""

        self.steps = [0] * tensor_count
        self.sessions: dict[str, Session] = {}
        self._last_epoch = 0

    def open_session(self, worker_id: str) -> int:
        """Open a session and return its epoch: higher than any before it, of whichever worker.

        Epochs count over all workers, so that a worker that was forgotten never gets one it had before.
        """
        self._last_epoch += 1
        self.sessions.pop(worker_id, None)
        self.sessions[worker_id] = Session(self._last_epoch)
        while len(self.sessions) > self._limits.most_sessions:
            del self.sessions[next(iter(self.sessions))]
        return self._last_epoch

    def begin_anew(self, state_id: str) -> None:
        """Begin a new line of history here: what came after this version is lost."""
        self.state_id = state_id
        self.first_version = self.version

    def check_state(self, state_id: str) -> None:
        """Refuse what was meant for another state.

        Raises:
            RewoundError: the model's state is not that one.
        """
        if state_id != self.state_id:
            raise RewoundError(
                f"state_id={state_id[:64]!r}: the model's state is {self.state_id!r}, at version {self.version} (it "
                "went back to a snapshot, or was created anew); open a new session and pull"
            )

    def judge(self, push: PushKey, base_version: int) -> Answer | None:
        """Return the answer that was given to a push, or None for one whose turn it is. Changes nothing.

        Raises:
            RewoundError: it was meant for another state.
            SessionUnknownError: no such session is open.
            SessionFencedError: a newer session of the same worker is open.
            SequenceError: its answer is no longer kept, or one before it is missing.
            InvalidRequestError: its base version has not been made yet.
        """
        self.check_state(push.state_id)
        session = self._session(push)
        if 1 <= push.sequence <= session.last_sequence:
            return self._kept(session, push)
        if push.sequence != session.last_sequence + 1:
            raise SequenceError(
                f"sequence={push.sequence}: the next push of worker {push.worker_id!r} is {session.last_sequence + 1}; "
                "pushes of a session come in order, without gaps"
            )
        if base_version > self.version:
            raise InvalidRequestError(
                f"base_version={base_version}: the model is at version {self.version}; give the version that was pulled"
            )
        return None

    def accept(self, push: PushKey, base_version: int, present: Sequence[bool]) -> Accepted:
        """Count a push, whose turn it is, as the next version, and a step of each array flagged in `present`."""
        answer = Accepted(self.version + 1, self.version - base_version)
        self._record(push, answer)
        self.steps = [step + is_present for step, is_present in zip(self.steps, present, strict=True)]
        self.version = answer.version
        return answer

    def reject(self, push: PushKey, reason: int, message: str) -> Rejected:
        """Answer a push, whose turn it is, with a rejection: its number is used up, nothing else changes."""
        answer = Rejected(reason, message)
        self._record(push, answer)
        return answer

    def to_record(self) -> dict[str, Any]:
        """Return everything as plain values that JSON can hold."""
        return {
            "state_id": self.state_id,
            "version": self.version,
            **({"first_version": self.first_version} if self.first_version else {}),
            "steps": list(self.steps),
            "last_epoch": self._last_epoch,
            "sessions": [
                {
                    "worker_id": worker_id,
                    "epoch": session.epoch,
                    "last_sequence": session.last_sequence,
                    "answers": [[sequence, *answer] for sequence, answer in session.answers.items()],
                }
                for worker_id, session in self.sessions.items()
            ],
        }

    @classmethod
    def from_record(cls, record: Mapping[str, Any], limits: Limits = LIMITS) -> Machine:
        """Return the machine that `to_record` wrote down."""
        machine = cls(record["state_id"], len(record["steps"]), limits)
        machine.version = record["version"]
        machine.first_version = record.get("first_version", 0)
        machine.steps = list(record["steps"])
        machine._last_epoch = record["last_epoch"]
        for item in record["sessions"]:
            answers = {sequence: _answer(*rest) for sequence, *rest in item["answers"]}
            machine.sessions[item["worker_id"]] = Session(item["epoch"], item["last_sequence"], answers)
        return machine

    def _session(self, push: PushKey) -> Session:
        session = self.sessions.get(push.worker_id)
        if session is None or push.epoch > session.epoch:
            raise SessionUnknownError(
                f"worker {push.worker_id!r}, epoch {push.epoch}: no such session is open; open one, then push"
            )
        if push.epoch < session.epoch:
            raise SessionFencedError(
                f"worker {push.worker_id!r}, epoch {push.epoch}: epoch {session.epoch} has taken over; only the newest "
                "session of a worker may push (does a second process use this worker_id?)"
            )
        return session

    def _kept(self, session: Session, push: PushKey) -> Answer:
        answer = session.answers.get(push.sequence)
        if answer is None:
            raise SequenceError(
                f"sequence={push.sequence}: answered long ago, and only the last {self._limits.kept_answers} answers "
                f"are kept; the next push is {session.last_sequence + 1}"
            )
        return answer

    def _record(self, push: PushKey, answer: Answer) -> None:
        """Keep an answer, and move the worker to the end of those that may be forgotten."""
        session = self.sessions.pop(push.worker_id)
        self.sessions[push.worker_id] = session
        session.last_sequence = push.sequence
        session.answers[push.sequence] = answer
        if len(session.answers) > self._limits.kept_answers:
            del session.answers[next(iter(session.answers))]


def _answer(first: int, second: int | str) -> Answer:
    return Rejected(first, second) if isinstance(second, str) else Accepted(first, second)
