"""Retries: conditions, pauses and the end, with a simulated clock."""

from __future__ import annotations

import logging

import pytest

from numba_adam import errors
from numba_adam.client.transport.retry import Backoff, Deadline, is_retryable, pause_seconds, retry
from numba_adam.errors import BudgetExceededError, ServerUnavailableError, ServiceError
from numba_adam.ps.detail import with_detail


class Clock:
    """A clock that advances only when the tested code waits or works."""

    def __init__(self) -> None:
        self.now = 100.0
        self.waits: list[float] = []

    def __call__(self) -> float:
        return self.now

    def wait(self, seconds: float) -> bool:
        self.waits.append(seconds)
        self.now += seconds
        return False


class Failing:
    """Fails a number of times, then returns "done"."""

    def __init__(self, *failures: Exception) -> None:
        self.failures = list(failures)
        self.given: list[float] = []

    def __call__(self, timeout_seconds: float) -> str:
        self.given.append(timeout_seconds)
        if self.failures:
            raise self.failures.pop(0)
        return "done"


def run(attempt, clock, *, seconds=60.0, backoff=Backoff(), jitter=lambda: 0.5, wait=None):  # noqa: B008
    deadline = Deadline(seconds, clock)
    return retry(attempt, deadline, what="push", wait=wait or clock.wait, backoff=backoff, jitter=jitter)


def gone(count: int) -> list[ServerUnavailableError]:
    return [ServerUnavailableError("connection refused") for _ in range(count)]


def busy(milliseconds: int) -> ServiceError:
    return with_detail(errors.BudgetExceededError("memory is taken"), retry_after_milliseconds=milliseconds)


def test_a_call_is_retried_until_it_succeeds():
    clock, attempt = Clock(), Failing(*gone(3))
    assert run(attempt, clock) == "done"
    assert len(attempt.given) == 4


@pytest.mark.parametrize("most_tries", [1, 3])
def test_the_number_of_tries_is_limited(most_tries):
    clock, attempt = Clock(), Failing(*gone(10))
    with pytest.raises(ServerUnavailableError, match=f"gave up after {most_tries} tr"):
        run(attempt, clock, backoff=Backoff(most_tries=most_tries))
    assert (len(attempt.given), len(clock.waits)) == (most_tries, most_tries - 1)


def test_the_pauses_double_up_to_a_ceiling():
    clock = Clock()
    run(Failing(*gone(8)), clock, backoff=Backoff(first_seconds=0.1, ceiling_seconds=2.0), jitter=lambda: 1.0)
    assert clock.waits == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0, 2.0])


def test_the_jitter_scales_the_pause():
    clock, parts = Clock(), iter([0.0, 0.25, 0.999])
    run(Failing(*gone(3)), clock, backoff=Backoff(1.0, 8.0), jitter=lambda: next(parts))
    assert clock.waits == pytest.approx([0.0, 0.5, 3.996])


def test_the_default_jitter_is_random_and_within_the_pause():
    clock = Clock()
    retry(Failing(*gone(40)), Deadline(1e6, clock), what="push", wait=clock.wait, backoff=Backoff(1.0, 1.0))
    assert all(0 <= wait < 1 for wait in clock.waits)
    assert len(set(clock.waits)) > 30


def test_the_pause_is_at_least_the_servers_hint():
    clock = Clock()
    run(Failing(busy(700), busy(300)), clock, backoff=Backoff(0.1, 2.0), jitter=lambda: 0.5)
    assert clock.waits == pytest.approx([0.75, 0.4])


def test_a_hint_beyond_the_deadline_gives_up_at_once():
    clock = Clock()
    with pytest.raises(BudgetExceededError, match=r"push: gave up after 1 try within 5 s; .*: memory is taken"):
        run(Failing(busy(60_000)), clock, seconds=5.0)
    assert clock.waits == []


def test_each_try_gets_the_remaining_time():
    clock, attempt = Clock(), Failing(*gone(2))
    run(attempt, clock, seconds=10.0, backoff=Backoff(1.0, 2.0), jitter=lambda: 1.0)
    assert attempt.given == pytest.approx([10.0, 9.0, 7.0])


def test_at_the_deadline_the_last_error_is_raised_with_a_summary():
    clock, attempt = Clock(), Failing(*gone(1000))
    with pytest.raises(ServerUnavailableError, match=r"gave up after \d+ tries within 3 s; .*connection refused"):
        run(attempt, clock, seconds=3.0)
    assert clock.now - 100.0 <= 3.0


def test_a_timeout_of_the_last_try_does_not_hide_the_earlier_error():
    failures = [busy(10), errors.DeadlineExceededError("time was up")]
    with pytest.raises(BudgetExceededError, match="gave up after 2 tries within 1 s; the last one: memory is taken"):
        run(Failing(*failures), Clock(), seconds=1.0, backoff=Backoff(10.0, 10.0), jitter=iter([0.0, 1.0]).__next__)


def test_of_two_errors_that_are_no_timeouts_the_last_is_raised():
    with pytest.raises(BudgetExceededError, match="gave up after 2 tries within 1 s; the last one: memory is taken"):
        run(Failing(*gone(1), busy(60_000)), Clock(), seconds=1.0)


def test_a_pause_longer_than_the_remaining_time_is_skipped():
    clock = Clock()
    with pytest.raises(BudgetExceededError, match="gave up after 1 try"):
        run(Failing(busy(1000)), clock, seconds=1.0, jitter=lambda: 0.0)
    assert clock.waits == []


def test_after_the_deadline_no_time_remains():
    clock = Clock()
    deadline = Deadline(2.0, clock)
    assert deadline.remaining_seconds() == 2.0
    clock.now += 1.5
    assert deadline.remaining_seconds() == 0.5
    clock.now += 10.0
    assert deadline.remaining_seconds() == 0.0


def test_pauses_match_the_wire_document_and_are_frozen():
    backoff = Backoff()
    assert (backoff.ceiling(1), backoff.ceiling(2), backoff.ceiling(100)) == (0.05, 0.1, 2.0)
    with pytest.raises(AttributeError):
        backoff.first_seconds = 1.0


def test_the_detail_of_the_last_error_is_kept():
    with pytest.raises(BudgetExceededError) as caught:
        run(Failing(busy(60_000)), Clock(), seconds=1.0)
    assert caught.value.detail.retry_after_milliseconds == 60_000


def test_a_call_that_is_retried_for_long_warns_once(caplog):
    with caplog.at_level(logging.INFO, "numba_adam.client.transport.retry"):
        run(Failing(*gone(20)), Clock(), backoff=Backoff(1.0, 1.0), jitter=lambda: 1.0)
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(caplog.records) == 20
    assert warnings == ["push: try 7 failed (connection refused); the next one in 1.00 s"]


def test_closing_ends_the_wait():
    with pytest.raises(ServiceError, match="push: the client was closed"):
        run(Failing(*gone(5)), Clock(), wait=lambda _: True)


def test_pauses_stay_finite_after_very_many_tries():
    assert Backoff().ceiling(10_000) == Backoff().ceiling_seconds
    assert pause_seconds(ServerUnavailableError("x"), 10_000, Backoff(), lambda: 1.0) == Backoff().ceiling_seconds


PASSING = [
    errors.ServerUnavailableError("x"),
    errors.DeadlineExceededError("x"),
    errors.CorruptTransferError("x"),
    errors.BudgetExceededError("x"),
    errors.PushInProgressError("x"),
    errors.InternalServerError("a broken frame: gRPC's own, without our detail"),
    errors.RateLimitedError("x"),
    errors.DiskFullError("x"),
    errors.WorkerAheadError("x"),
]
LASTING = [
    errors.ModelNotFoundError("x"),
    errors.ModelExistsError("x"),
    errors.PushRejectedError("x"),
    errors.LatePushError("x"),
    errors.RoundAbortedError("x"),
    errors.PushHeldError("x"),  # the push itself waits for the answer, in another call
    errors.NonFiniteError("x"),
    errors.InvalidRequestError("x"),
    errors.SequenceError("x"),
    errors.SequenceReusedError("x"),
    errors.GradientTooLargeError("x"),
    errors.SessionFencedError("x"),
    errors.SessionUnknownError("x"),
    errors.SettingsChangedError("x"),
    errors.RewoundError("x"),
    errors.SnapshotError("x"),
    errors.CorruptSnapshotError("x"),
    errors.TransferTooLargeError("x"),
    errors.AccessDeniedError("x"),
    errors.UnauthenticatedError("x"),
    errors.TlsError("x"),
    errors.ConfigurationError("x"),
    errors.ServiceError("x"),
    with_detail(errors.InternalServerError("a bug of the server's")),
]


@pytest.mark.parametrize("error", PASSING, ids=lambda error: type(error).__name__)
def test_transient_errors_are_retried(error):
    assert is_retryable(error)


@pytest.mark.parametrize("error", LASTING, ids=lambda error: type(error).__name__)
def test_permanent_errors_are_raised_at_once(error):
    attempt = Failing(error)
    with pytest.raises(type(error)):
        run(attempt, Clock())
    assert len(attempt.given) == 1


def test_every_service_error_is_either_transient_or_permanent():
    def below(cls: type) -> set[type]:
        return {cls}.union(*(below(child) for child in cls.__subclasses__()))

    assert {type(error) for error in PASSING + LASTING} == below(ServiceError)


def test_a_timeout_beyond_the_range_of_timers_is_shortened(server, connect, arrays, gradients_of):
    client = connect(server.address, timeout_seconds=1e300)
    model = client.create_model("m", arrays)
    assert model.push_async(gradients_of(arrays, 0)).result().version == 1
    assert model.push(gradients_of(arrays, 1)).version == 2
    client.close()
