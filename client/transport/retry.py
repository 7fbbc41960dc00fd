"""Which failures are worth another try, and when: exponential backoff with full jitter, hints obeyed, one deadline.

Sending again is safe because every call of the protocol is idempotent. May import our errors and their table.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from numba_adam import errors
from numba_adam.errors import ServiceError
from numba_adam.ps.errors import detail_of

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

_PATIENCE_SECONDS = 5.0  # after which a call that is still being tried is worth a warning in the log
_LONGEST_SECONDS = 1e9  # thirty years: with ten times that, gRPC takes every deadline for one that has passed

_WORTH_ANOTHER_TRY = (
    errors.ServerUnavailableError,
    errors.DeadlineExceededError,
    errors.CorruptTransferError,
    errors.BudgetExceededError,
    errors.PushInProgressError,
)


@dataclass(frozen=True, slots=True)
class Backoff:
    """How long to wait between tries."""

    first_seconds: float = 0.05
    """Longest wait before the second try."""

    ceiling_seconds: float = 2.0
    """Longest wait before any try."""

    most_tries: int = 0
    """How often a call is tried at most; 0: until its time is up."""

    def ceiling(self, tries: int) -> float:
        """Return the longest wait after a number of failed tries, which doubles with each."""
        return min(self.ceiling_seconds, self.first_seconds * 2.0 ** min(tries - 1, 60))


class Deadline:
    """A moment by which a call, with all its tries, must be over."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.seconds = seconds
        self._clock = clock
        self._end = clock() + seconds

    def remaining_seconds(self) -> float:
        """Return the time left; 0 when it has passed, and never more than timers can count."""
        return min(max(0.0, self._end - self._clock()), _LONGEST_SECONDS)


def worth_another_try(error: ServiceError) -> bool:
    """Say whether the same call may succeed later."""
    if isinstance(error, errors.TransferTooLargeError):
        return False
    # An INTERNAL without our detail was made by gRPC, when a connection broke in the middle of a frame.
    broken = isinstance(error, errors.InternalServerError) and detail_of(error) is None
    return broken or isinstance(error, _WORTH_ANOTHER_TRY)


def pause_seconds(error: ServiceError, tries: int, backoff: Backoff, jitter: Callable[[], float]) -> float:
    """Return how long to wait: the server's hint, if it gave one, and a random part of the backoff on top.

    Args:
        error: what the last try failed with.
        tries: how many have failed.
        backoff: the longest waits.
        jitter: returns a number in [0, 1); "full jitter" keeps many workers from coming back all at once.
    """
    detail = detail_of(error)
    hint = detail.retry_after_milliseconds / 1000 if detail else 0.0
    return hint + jitter() * backoff.ceiling(tries)


def retry(
    attempt: Callable[[float], _T],
    deadline: Deadline,
    *,
    what: str,
    wait: Callable[[float], bool],
    backoff: Backoff,
    jitter: Callable[[], float] = random.random,
) -> _T:
    """Call `attempt` until it succeeds, fails for good or the deadline is too near for another try.

    Args:
        attempt: takes the seconds it may last; raises ServiceError.
        deadline: for all tries together.
        what: what messages call it, such as "push to model 'digits'".
        wait: waits so many seconds; returns True to give up at once.
        backoff: how long to wait between tries.
        jitter: returns a number in [0, 1).

    Raises:
        ServiceError: what the last try failed with (what the one before did, if its time was merely up).
    """
    tries, has_warned = 0, False
    telling: ServiceError | None = None  # the last failure that says more than that the time was up
    while True:
        try:
            return attempt(deadline.remaining_seconds())
        except ServiceError as error:
            if not worth_another_try(error):
                raise
            tries += 1
            if telling is None or not isinstance(error, errors.DeadlineExceededError):
                telling = error
            pause = pause_seconds(error, tries, backoff, jitter)
            if tries == backoff.most_tries or pause >= deadline.remaining_seconds():
                raise _gave_up(telling, what, tries, deadline) from error
            is_long = not has_warned and deadline.remaining_seconds() < deadline.seconds - _PATIENCE_SECONDS
            has_warned = has_warned or is_long  # once: whoever looks at the program shall know why it waits
            level = logging.WARNING if is_long else logging.INFO
            _log.log(level, "%s: try %d failed (%s); the next one in %.2f s", what, tries, error, pause)
            if wait(pause):
                raise closed(what) from error


def closed(what: str) -> ServiceError:
    """Return the error for a call on a client that is closed, or is being closed."""
    return ServiceError(f"{what}: the client was closed; open a new ParameterClient")


def interrupted(what: str) -> ServiceError:
    """Return the error for a call that the main thread was interrupted in; nobody waits for it any more."""
    return ServiceError(f"{what}: the call was interrupted")


def cut_short(what: str) -> ServiceError:
    """Return the error for a try that ended with its channel, while the client goes on."""
    return errors.ServerUnavailableError(
        f"{what}: the connection was closed, because another call was interrupted or the process forked"
    )


def queued_too_long(what: str, deadline: Deadline) -> ServiceError:
    """Return the error for a call whose time was up before its turn came."""
    return errors.DeadlineExceededError(
        f"{what}: the pushes given before it took all its time of {deadline.seconds:g} s; it was not sent"
    )


def _gave_up(error: ServiceError, what: str, tries: int, deadline: Deadline) -> ServiceError:
    """Return an error of the same class, with the story before it."""
    story = f"{what}: gave up after {tries} {'try' if tries == 1 else 'tries'} within {deadline.seconds:g} s"
    result = type(error)(f"{story}; the last one: {error}")
    result.detail = error.detail
    return result
