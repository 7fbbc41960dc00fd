"""Permits: the order of waiting calls."""

import queue
import threading

import pytest

from numba_adam.server.transport.permits import Permits

DEADLINE = 60


class Pressed:
    """Stands for the watch; records which threads have begun to wait."""

    def __init__(self):
        self.waits = {}

    def report_pressure(self):
        self.waits[threading.current_thread()].set()


class Active:
    """Stands for the context of a connected call."""

    def is_active(self):
        return True


@pytest.mark.parametrize("most", [1, 2, 3, 12])
def test_permits_alternate_between_calls_with_and_without_a_message(most):
    """With an even number of permits, calls with a message once waited until all silent ones had ended."""
    watch, granted = Pressed(), queue.Queue()
    permits = Permits(most, watch)
    for _ in range(most):
        permits.acquire(Active())

    def wait_for_a_permit(is_new):
        permits.acquire(Active(), is_new=is_new)
        granted.put(is_new)

    waiters = []
    for is_new in [True, False] * 4:
        waiter = threading.Thread(target=wait_for_a_permit, args=(is_new,))
        watch.waits[waiter] = threading.Event()
        waiter.start()
        assert watch.waits[waiter].wait(DEADLINE)
        waiters.append(waiter)
    order = []
    for _ in waiters:
        permits.release()
        order.append(granted.get(timeout=DEADLINE))
    for waiter in waiters:
        waiter.join()
    assert [sum(order[:count]) for count in (2, 4, 6, 8)] == [1, 2, 3, 4]
