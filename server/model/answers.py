"""The answers to pushes, which a push ledger keeps for retries. Imports the error tree and the check of records."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from numba_adam.errors import (
    GradientTooLargeError,
    LatePushError,
    NonFiniteError,
    PushRejectedError,
    RoundAbortedError,
    SnapshotError,
)
from numba_adam.server.model.push_key import Content
from numba_adam.server.model.records import check_value
from numba_adam.server.model.rounds import Held

PUSH_MISMATCH = 4
"""Reason of a rejection: the push does not fit the model. The protocol and snapshots use the same number."""

NON_FINITE = 5
"""Reason of a rejection: a gradient has a NaN, an infinity, or a value whose square overflows."""

GRADIENT_TOO_LARGE = 21
"""Reason of a rejection: a gradient exceeds the model's guards."""

LATE = 25
"""Reason of a rejection: the round of the push is closed, or the push is too stale."""

ROUND_ABORTED = 26
"""Reason of a rejection: the round of the push was aborted."""

REJECTIONS: Mapping[int, type[PushRejectedError]] = {
    PUSH_MISMATCH: PushRejectedError,
    NON_FINITE: NonFiniteError,
    GRADIENT_TOO_LARGE: GradientTooLargeError,
    LATE: LatePushError,
    ROUND_ABORTED: RoundAbortedError,
}
"""The error class of each reason."""


class Limits(NamedTuple):
    """How much a ledger remembers."""

    kept_answers: int = 64
    """Answers kept for retries, per session."""

    most_sessions: int = 1024
    """Sessions kept, one per worker. Beyond this number, the one that was idle longest is dropped."""

    longest_text: int = 500
    """Largest number of characters kept of a rejection's message."""

    most_text: int = 1 << 20
    """Largest number of characters of all kept messages. Beyond it, new messages are not kept."""


SESSION_BYTES = 42_000
"""Approximate memory of a session with all its answers, here and in the record of the newest snapshot."""

NOT_KEPT = "rejected; the message was dropped, because the server keeps too many messages of rejections already"
LIMITS = Limits()


class Accepted(NamedTuple):
    """The answer to an applied push."""

    version: int
    """The version that the push made."""

    staleness: int
    """Versions between the parameters it was computed from and those it was applied to."""


class Rejected(NamedTuple):
    """The answer to a push with content that cannot be applied."""

    reason: int
    """A Reason of the protocol."""

    message: str
    """The error message."""


Answer = Accepted | Rejected


class Kept(NamedTuple):
    """An answer that is kept for retries."""

    answer: Answer | Held
    """The answer; Held if there is none yet, which no session keeps."""

    content: Content | None
    """The content that was answered. None: not known, because snapshots of format 1 do not have it."""


@dataclass(slots=True)
class Session:
    """The newest session of one worker."""

    epoch: int
    """Its epoch."""

    nonce: str = ""
    """Id of the request that opened it; empty if the request had none."""

    last_sequence: int = 0
    """Sequence number of the last push that was answered."""

    answers: dict[int, Kept] = field(default_factory=dict)
    """The newest answers by sequence number, the oldest first."""


def text_length(kept: Kept) -> int:
    """Return the length of an answer's message."""
    if not isinstance(kept.answer, Rejected) or kept.answer.message == NOT_KEPT:
        return 0
    return len(kept.answer.message)


def kept_from(*values: Any) -> Kept:
    """Return a kept answer from its record: two values, and since format 2 two more for its content."""
    if len(values) not in (2, 4):
        raise SnapshotError(f"an answer's record has {len(values)} values, and this numba-adam knows 2 or 4")
    first, second, *content = values
    if isinstance(second, str):
        check_value(first, "the reason of a rejection", tuple(REJECTIONS))
    answer = Rejected(first, second) if isinstance(second, str) else Accepted(first, second)
    return Kept(answer, Content(*content) if content else None)


def is_same(kept: Content, given: Content) -> bool:
    """Return whether two contents are equal, as far as both are known."""
    return kept.header == given.header and (None in (kept.payload, given.payload) or kept.payload == given.payload)
