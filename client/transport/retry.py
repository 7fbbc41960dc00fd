"""Which failures are retried, and when: exponential backoff with full jitter, the server's hints, one deadline.

Retries are safe because every call of the protocol is idempotent. May import our errors and their table.
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

_WARN_AFTER_SECONDS = 5.0  # after this time, a retry is logged as a warning
_LONGEST_SECONDS = 1e9  # thirty years; gRPC treats ten times that as an expired deadline

_RETRYABLE = (
    errors.ServerUnavailableError,
    errors.DeadlineExceededError,
    errors.CorruptTransferError,
    errors.BudgetExceededError,
    errors.PushInProgressError,
    errors.RateLimitedError,
    errors.WorkerAheadError,
)


@dataclass(frozen=True, slots=True)
class Backoff:
    """The pauses between tries."""

    first_seconds: float = 0.05
    """Longest wait before the second try."""

    ceiling_seconds: float = 2.0
    """Longest wait before any try."""

    most_tries: int = 0
    """Maximum number of tries. 0: until the deadline."""

    def ceiling(self, tries: int) -> float:
        """Return the longest wait after a number of failed tries; it doubles with each try."""
        return min(self.ceiling_seconds, self.first_seconds * 2.0 ** min(tries - 1, 60))


class Deadline:
    """The time at which a call, including its retries, must end."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.seconds = seconds
        self._clock = clock
        self._end = clock() + seconds

    def remaining_seconds(self) -> float:
        """Return the time left: 0 after the deadline, and at most what timers can represent."""
        return min(max(0.0, self._end - self._clock()), _LONGEST_SECONDS)


def is_retryable(error: ServiceError) -> bool:
    """Return whether the same call may succeed later."""
    if isinstance(error, (errors.TransferTooLargeError, errors.TlsError)):
        return False
    # gRPC reports INTERNAL, without our detail, if a connection breaks in the middle of a frame.
    broken = isinstance(error, errors.InternalServerError) and detail_of(error) is None
    return broken or isinstance(error, _RETRYABLE)


def pause_seconds(error: ServiceError, tries: int, backoff: Backoff, jitter: Callable[[], float]) -> float:
    """Return how long to wait: the server's hint, if there is one, plus a random part of the backoff.

    Args:
        error: the failure of the last try.
        tries: the number of failed tries.
        backoff: the longest waits.
        jitter: returns a number in [0, 1). "Full jitter" prevents many workers from retrying at the same moment.
    """
    detail = detail_of(error)
    hint = detail.retry_after_milliseconds / 1000 if detail else 0.0
    if isinstance(error, errors.WorkerAheadError):  # not an overload: the others may be there at any moment
        tries = 1
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
    """Call `attempt` until it succeeds, fails permanently or the deadline is too near for another try.

    Args:
        attempt: takes its timeout in seconds; raises ServiceError.
        deadline: of all tries together.
        what: the call's name in messages, such as "push to model 'digits'".
        wait: waits a number of seconds; returns True to stop the retries.
        backoff: the pauses between tries.
        jitter: returns a number in [0, 1).

    Raises:
        ServiceError: the failure of the last try. If that was a timeout: the last other failure, if there was one.
    """
    tries, has_warned = 0, False
    telling: ServiceError | None = None  # the last failure that was no timeout
    while True:
        try:
            return attempt(deadline.remaining_seconds())
        except ServiceError as error:
            if not is_retryable(error):
                raise
            tries += 1
            if telling is None or not isinstance(error, errors.DeadlineExceededError):
                telling = error
            pause = pause_seconds(error, tries, backoff, jitter)
            if tries == backoff.most_tries or pause >= deadline.remaining_seconds():
                raise _gave_up(telling, what, tries, deadline) from error
            is_long = not has_warned and deadline.remaining_seconds() < deadline.seconds - _WARN_AFTER_SECONDS
            has_warned = has_warned or is_long  # warn once: it explains why the program waits
            level = logging.WARNING if is_long else logging.INFO
            _log.log(level, "%s: try %d failed (%s); the next one in %.2f s", what, tries, error, pause)
            if wait(pause):
                raise closed(what) from error


def closed(what: str) -> ServiceError:
    """Return the error for a call on a client that was closed or is closing."""
    return ServiceError(f"{what}: the client was closed; open a new ParameterClient")


def interrupted(what: str) -> ServiceError:
    """Return the error for a call that an interrupt of the main thread ended."""
    return ServiceError(f"{what}: the call was interrupted")


def cut_short(what: str) -> ServiceError:
    """Return the error for a try that ended because its channel was closed, while the client stays open."""
    return errors.ServerUnavailableError(
        f"{what}: the connection was closed, because another call was interrupted or the process forked"
    )


def queued_too_long(what: str, deadline: Deadline) -> ServiceError:
    """Return the error for a push that reached its deadline while it waited for earlier pushes."""
    return errors.DeadlineExceededError(
        f"{what}: it waited for earlier pushes until its deadline of {deadline.seconds:g} s; it was not sent"
    )


def _gave_up(error: ServiceError, what: str, tries: int, deadline: Deadline) -> ServiceError:
    """Return an error of the same class whose message also counts the tries."""
    summary = f"{what}: gave up after {tries} {'try' if tries == 1 else 'tries'} within {deadline.seconds:g} s"
    result = type(error)(f"{summary}; the last one: {error}")
    result.detail = error.detail
    return result
