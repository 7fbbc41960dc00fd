"""How many threads a launch takes, and the lock that makes parallel launches safe. Imports Numba.

With Numba's threading layer `workqueue`, which it uses where it finds neither TBB nor OpenMP, the process aborts if two
Python threads run parallel kernels at the same time. A kernel uses all threads anyway, so a second launch would gain
nothing from running at the same time: one lock for the process costs nothing and is safe with every layer.

A forked child has none of its parent's threads, and OpenMP aborts at its first parallel launch. So a child runs kernels
on the calling thread alone, with the same bits. A fork waits for the steps in progress: the child finds every state
complete, and no lock held by a thread that it does not have.
"""

from __future__ import annotations

import os
import threading
import weakref
from typing import Any

import numba
import numpy as np
from numba import typeof
from numba.np.ufunc import parallel

from numba_adam.cpu.kernels.tasks import COUNTER_PITCH, run_tasks
from numba_adam.numerics.array import Array

ELEMENTS_PER_TASK = 16_384  # the calling thread updates fewer than this before another thread wakes up
ELEMENTS_PER_SHARE = 2**18  # of a large launch: about 0.3 ms

_registry_lock = threading.Lock()  # held while a lock is added, and during a fork
_step_locks: weakref.WeakSet[threading.RLock] = weakref.WeakSet()
_held_for_fork: list[threading.RLock] = []
_pool_is_lost = False
_addresses: dict[tuple[Any, Any], int] = {}
_counters: dict[int, Array] = {}


def step_lock() -> threading.RLock:
    """Return a new lock that a fork waits for. Its holder may acquire `launch_lock`, never the reverse.

    The lock is reentrant: a step calls the learning-rate schedule, which may read its optimizer's state.
    """
    lock = threading.RLock()
    with _registry_lock:
        _step_locks.add(lock)
    return lock


# Reentrant: a signal handler may run between a launch and the next instruction, and may call the library too.
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
    """Return the number of threads for a launch over `elements` elements."""
    if _pool_is_lost or elements < 2 * ELEMENTS_PER_TASK:
        return 1
    return min(thread_count(), elements // ELEMENTS_PER_TASK)


def shares_for(elements: int) -> int:
    """Return the number of shares for a launch over `elements` elements: one for each thread, or equally many."""
    if elements < 2 * ELEMENTS_PER_TASK:
        return 1
    tasks = tasks_for(elements)
    return tasks * max(1, elements // (tasks * ELEMENTS_PER_SHARE)) if tasks > 1 else 1


def launch(kernel: Any, tasks: int, packed: Array, like: Array, extra: Array, count: int) -> None:
    """Run a kernel on one thread if there is one task, else on as many as there are, at most one for each task.

    The kernel is called with (packed, like, extra, count, task, tasks): for each task from 0 to `tasks` - 1 on any
    thread, and, if there are several tasks, after them all with `task` equal to `tasks`.

    Args:
        kernel: a compiled function.
        tasks: number of shares, from `tasks_for` or `shares_for`.
        packed: (n, 2) uint64: from `launch_plan.pack`.
        like: two-dimensional, of the compute dtype. In the kernel only its dtype and its address are valid, nothing
            else, not even its itemsize.
        extra: one-dimensional, of a dtype of 64 bits.
        count: number of arrays.
    """
    if tasks == 1:
        kernel(packed, like, extra, count, 0, 1)
        return
    address = _address(kernel, packed, like, extra, count)
    with launch_lock:
        counters = _counters_for(min(tasks, thread_count()))
        run_tasks(address, packed, like.view(np.uint64), extra.view(np.uint64), count, tasks, counters)


def _counters_for(threads: int) -> Array:
    """Return the counters of a launch on so many threads. The holder of `launch_lock` may use them."""
    counters = _counters.get(threads)
    if counters is None:
        counters = _counters[threads] = np.zeros(threads * COUNTER_PITCH, np.int64)
    return counters


def make_ready() -> None:
    """Compile or load what launches on several threads need besides their kernel."""
    packed = np.zeros((1, 2), np.uint64)
    arguments = 0, packed, packed, packed[0], 0, 0, _counters_for(1)
    run_tasks.compile(tuple(typeof(argument) for argument in arguments))


def _address(kernel: Any, packed: Array, like: Array, extra: Array, count: int) -> int:
    """Return the address of the machine code of a kernel for these arguments, compiled if necessary."""
    address = _addresses.get((kernel, like.dtype))
    if address is None:
        signature = tuple(typeof(argument) for argument in (packed, like, extra, count, 0, 1))
        kernel.compile(signature)
        compiled = kernel.overloads[signature]
        address = compiled.library.get_pointer_to_function(compiled.fndesc.llvm_func_name)
        _addresses[kernel, like.dtype] = address
    return address


def thread_count() -> int:
    """Return the number of threads of a large launch: that of `numba.set_num_threads`, else NUMBA_NUM_THREADS."""
    if parallel._is_initialized:  # the same number in 0.1 us instead of 0.5
        return int(parallel._get_num_threads())
    return int(numba.get_num_threads())


def threading_layer() -> str:
    """Return Numba's threading layer, such as "omp"; empty before the first parallel launch of this process."""
    return str(numba.threading_layer()) if parallel._is_initialized else ""
