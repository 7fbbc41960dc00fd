"""The threads of calls: few calls start at a time, and no call that waits keeps others from starting."""

from __future__ import annotations

import threading

import pytest

from numba_adam.server.transport.executor import CallExecutor

SECONDS = 800
FOR_EVER = 1e6


@pytest.fixture
def make_executor():
    made = []

    def make(slots, patience_seconds=0.05):
        made.append(CallExecutor(32, "test", slots=slots, patience_seconds=patience_seconds))
        return made[-1]

    yield make
    for executor in made:
        executor.shutdown()


class Call:
    """A call that begins, and ends when it is told to."""

    def __init__(self, executor, *, frees=False, waits_for_peer=False):
        self.executor, self.frees, self.waits_for_peer = executor, frees, waits_for_peer
        self.has_begun, self.may_end = threading.Event(), threading.Event()
        self.thread = None
        self.future = executor.submit(self.run)

    def run(self):
        self.thread = threading.get_ident()
        if self.frees:
            self.executor.free_slot()
        self.has_begun.set()
        if self.waits_for_peer:
            with self.executor.waiting_for_peer():
                assert self.may_end.wait(SECONDS)
        else:
            assert self.may_end.wait(SECONDS)
        return self.thread


def test_calls_start_in_the_order_of_their_arrival(make_executor):
    executor = make_executor(1, FOR_EVER)
    order = []
    for future in [executor.submit(order.append, number) for number in range(50)]:
        future.result(SECONDS)
    assert order == list(range(50))


def test_a_call_that_frees_its_slot_lets_the_next_one_start(make_executor):
    executor = make_executor(1, FOR_EVER)
    calls = [Call(executor, frees=True) for _ in range(20)]
    for call in calls:
        assert call.has_begun.wait(SECONDS)
    assert len({call.thread for call in calls}) == len(calls)
    for call in reversed(calls):
        call.may_end.set()
    assert [call.future.result(SECONDS) for call in calls] == [call.thread for call in calls]


def test_a_second_release_of_a_slot_frees_no_other(make_executor):
    executor = make_executor(1, FOR_EVER)

    def frees_twice():
        executor.free_slot()
        executor.free_slot()

    for _ in range(10):
        executor.submit(frees_twice).result(SECONDS)
    running, most, lock = 0, 0, threading.Lock()

    def counted():
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        with lock:
            running -= 1

    for future in [executor.submit(counted) for _ in range(200)]:
        future.result(SECONDS)
    assert most == 1


@pytest.mark.parametrize("waits_for_peer", [True, False])
def test_calls_that_stay_silent_in_all_slots_do_not_keep_others_from_starting(make_executor, waits_for_peer):
    executor = make_executor(3)
    silent = [Call(executor, waits_for_peer=waits_for_peer) for _ in range(3)]
    assert all(call.has_begun.wait(SECONDS) for call in silent)
    assert [executor.submit(lambda number=number: number).result(SECONDS) for number in range(20)] == list(range(20))
    for call in silent:
        call.may_end.set()


def test_one_silent_peer_does_not_hold_back_calls_that_progress_slowly(make_executor):
    executor = make_executor(2)
    silent = Call(executor, waits_for_peer=True)
    slow = [Call(executor) for _ in range(10)]
    for call in slow:  # each may end only after all have begun
        assert call.has_begun.wait(SECONDS)
    for call in [silent, *slow]:
        call.may_end.set()


def test_a_call_that_waits_for_a_slot_can_be_cancelled(make_executor):
    executor = make_executor(1, FOR_EVER)
    first = Call(executor)
    assert first.has_begun.wait(SECONDS)
    has_run = threading.Event()
    later = executor.submit(has_run.set)
    assert later.cancel()
    first.may_end.set()
    assert executor.submit(int).result(SECONDS) == 0
    assert not has_run.is_set()


def test_an_error_of_a_call_is_its_futures(make_executor):
    executor = make_executor(1)

    def fail():
        raise KeyError("why")

    futures = [executor.submit(fail) for _ in range(5)]
    for future in futures:
        with pytest.raises(KeyError, match="why"):
            future.result(SECONDS)
    assert executor.submit(int).result(SECONDS) == 0


def test_a_shutdown_starts_the_calls_that_wait(make_executor):
    executor = make_executor(1, FOR_EVER)
    calls = [Call(executor) for _ in range(5)]
    for call in calls:
        call.may_end.set()
    executor.shutdown()
    assert all(call.future.done() for call in calls)
