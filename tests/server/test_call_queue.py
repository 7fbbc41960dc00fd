"""A call queue: one call at a time, in order, on the caller's thread; a stop loses no call."""

import gc
import os
import signal
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from numba_adam.errors import ServerUnavailableError
from numba_adam.server.runtime.call_queue import CallQueue

DEADLINE = 60  # seconds: generous, and never waited for unless something is wrong


class InterruptionError(Exception):
    """The error that a signal handler raises."""


@pytest.fixture
def queue():
    return CallQueue()


@pytest.fixture
def threads():
    with ThreadPoolExecutor(16) as pool:
        yield pool


@pytest.fixture
def held(queue, threads):
    """A call queue with a call in progress that ends when the event is set."""
    begun, over = threading.Event(), threading.Event()

    def hold():
        begun.set()
        assert over.wait(DEADLINE)

    call = threads.submit(queue.call, hold)
    assert begun.wait(DEADLINE)
    yield over
    over.set()
    call.result(DEADLINE)


def wait_until_queued(queue, count):
    """Wait until this number of calls wait; the test's timeout is the limit."""
    pause = threading.Event()
    while queue.waiting != count:
        pause.wait(0.001)


def test_a_call_runs_on_its_callers_thread(queue):
    assert queue.call(threading.get_ident) == threading.get_ident()


def test_two_calls_never_run_at_the_same_time(queue, threads):
    inside, seen = [], []

    def work(number):
        inside.append(number)
        threading.Event().wait(0)  # others get their chance
        seen.append(list(inside))
        inside.remove(number)

    list(threads.map(lambda number: queue.call(work, number), range(200)))
    assert len(seen) == 200
    assert all(len(together) == 1 for together in seen)


def test_calls_run_in_the_order_of_their_arrival(queue, threads, held):
    order = []
    calls = []
    for number in range(10):
        calls.append(threads.submit(queue.call, order.append, number))
        wait_until_queued(queue, number + 1)
    assert order == []
    held.set()
    for call in calls:
        call.result(DEADLINE)
    assert order == list(range(10))
    assert queue.waiting == 0


def test_an_error_goes_to_its_caller_and_the_next_call_runs(queue, threads, held):
    wrong = threads.submit(queue.call, lambda: 1 // 0)
    wait_until_queued(queue, 1)
    right = threads.submit(queue.call, lambda: 7)
    wait_until_queued(queue, 2)
    held.set()
    with pytest.raises(ZeroDivisionError):
        wrong.result(DEADLINE)
    assert right.result(DEADLINE) == 7
    assert queue.call(lambda: 8) == 8


def test_an_error_does_not_keep_a_gradient_alive(queue):
    """Without the garbage collector: a rejected push must release its slot at once."""
    gradient = np.zeros(10)
    alive = weakref.ref(gradient)

    def fail(_):
        raise ValueError("no")

    gc.disable()
    try:
        with pytest.raises(ValueError, match="no"):
            queue.call(fail, gradient)
        queue.call(lambda: None)
        del gradient
        assert alive() is None
    finally:
        gc.enable()


def test_stop_waits_for_earlier_calls(queue, threads, held):
    done = []
    calls = [threads.submit(queue.call, done.append, 1)]
    wait_until_queued(queue, 1)
    end = threads.submit(queue.stop)
    wait_until_queued(queue, 2)
    with pytest.raises(ServerUnavailableError, match="stopping"):
        queue.call(done.append, 2)
    assert not end.done()
    held.set()
    end.result(DEADLINE)
    calls[0].result(DEADLINE)
    assert done == [1]


def test_a_stopped_queue_says_that_the_server_is_stopping(queue):
    assert queue.call(lambda: 1) == 1
    queue.stop()
    queue.stop()  # twice does no harm
    with pytest.raises(ServerUnavailableError, match="stopping"):
        queue.call(lambda: 1)


@pytest.fixture
def on_signal():
    """Sets the handler of SIGUSR1."""
    before = signal.getsignal(signal.SIGUSR1)
    yield lambda handler: signal.signal(signal.SIGUSR1, lambda *_: handler())
    signal.signal(signal.SIGUSR1, before)


def interrupt():
    raise InterruptionError


def test_a_waiting_call_that_is_interrupted_leaves_the_queue(queue, threads, held, on_signal):
    on_signal(interrupt)

    def signal_once_queued():
        wait_until_queued(queue, 1)
        os.kill(os.getpid(), signal.SIGUSR1)

    sender = threads.submit(signal_once_queued)
    with pytest.raises(InterruptionError):
        queue.call(lambda: None)
    sender.result(DEADLINE)
    assert queue.waiting == 0
    held.set()
    assert queue.call(lambda: 7) == 7


def test_a_call_interrupted_at_its_turn_passes_the_turn_on(queue, threads, held, on_signal):
    def interrupt_with_the_turn_given():
        held.set()
        wait_until_queued(queue, 0)
        raise InterruptionError

    on_signal(interrupt_with_the_turn_given)

    def signal_once_queued():
        wait_until_queued(queue, 1)
        os.kill(os.getpid(), signal.SIGUSR1)

    sender = threads.submit(signal_once_queued)
    with pytest.raises(InterruptionError):
        queue.call(lambda: None)
    sender.result(DEADLINE)
    assert threads.submit(queue.call, lambda: 7).result(DEADLINE) == 7
