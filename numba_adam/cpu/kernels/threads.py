"""How many threads an update takes, and the lock that makes parallel launches safe. Imports Numba.

Two Python threads inside parallel kernels at once abort the process when Numba's threading layer is `workqueue`, which
is the one it falls back to where neither TBB nor OpenMP is found. The kernels use all threads anyway, so a second
launch would gain nothing by running beside the first: one lock for the process costs nothing and holds everywhere.

A forked child has none of its parent's threads: OpenMP ends it at its first parallel launch. Such a child works on the
calling thread alone, with the same bits. A fork waits for the steps in flight, so that the child finds every state
whole and no lock held by a thread that it does not have.
"""

from __future__ import annotations

import os
import threading
import weakref

import numba
from numba.np.ufunc import parallel

ELEMENTS_PER_TASK = 16_384  # fewer are done sooner than a thread is woken

_registry_lock = threading.Lock()  # held while locks are added, and throughout a fork
_step_locks: weakref.WeakSet[threading.RLock] = weakref.WeakSet()
_held_for_fork: list[threading.RLock] = []
_pool_is_lost = False


def step_lock() -> threading.RLock:
    """Return a new lock that a fork waits for. `launch_lock` may be taken while it is held, never the reverse.

    The thread that holds it may take it again: a schedule, which a step calls, may look at its optimizer's state.
    """
    lock = threading.RLock()
    with _registry_lock:
        _step_locks.add(lock)
    return lock


# The thread that holds it may take it again: a signal's handler, which runs between a launch and what comes after, may
# call the library too.
launch_lock = threading.RLock()


def _before_fork() -> None:
    _registry_lock.acquire()
    locks: list[threading.RLock] = [*_step_locks, launch_lock]
    for lock in locks:
        lock.acquire()
        _held_for_fork.append(lock)


def _after_fork() -> None:
    while _held_for_fork:
        _held_for_fork.pop().release()
    _registry_lock.release()


def _after_fork_in_child() -> None:
    global _pool_is_lost
    _pool_is_lost = _pool_is_lost or parallel._is_initialized
    _after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork_in_child)


def tasks_for(elements: int) -> int:
    """Return the number of threads for an update of so many elements."""
    if _pool_is_lost or elements < 2 * ELEMENTS_PER_TASK:
        return 1
    return min(thread_count(), elements // ELEMENTS_PER_TASK)


def thread_count() -> int:
    """Return the number of threads that a large update takes: `numba.set_num_threads`, else NUMBA_NUM_THREADS."""
    return int(numba.get_num_threads())


def threading_layer() -> str:
    """Return Numba's threading layer, such as "omp"; empty before the first parallel launch of this process."""
    return str(numba.threading_layer()) if parallel._is_initialized else ""
