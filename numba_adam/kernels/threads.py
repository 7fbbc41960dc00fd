"""How many threads an update takes, and the lock that makes parallel launches safe. Imports Numba.

Two Python threads inside parallel kernels at once abort the process when Numba's threading layer is `workqueue`, which
is the one it falls back to where neither TBB nor OpenMP is found. The kernels use all threads anyway, so a second
launch would gain nothing by running beside the first: one lock for the process costs nothing and holds everywhere.

A forked child has none of its parent's threads: OpenMP ends it at its first parallel launch. Such a child works on the
calling thread alone, with the same bits.
"""

from __future__ import annotations

import os
import threading

import numba

ELEMENTS_PER_TASK = 16_384  # fewer are done sooner than a thread is woken
launch_lock = threading.Lock()
_launched = False
_forked_after_launch = False


def _after_fork_in_child() -> None:
    global launch_lock, _forked_after_launch
    launch_lock = threading.Lock()  # the parent's may have been held by a thread that the child does not have
    _forked_after_launch = _forked_after_launch or _launched


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


def tasks_for(elements: int) -> int:
    """Return the number of threads for an update of so many elements."""
    if _forked_after_launch or elements < 2 * ELEMENTS_PER_TASK:
        return 1
    return min(thread_count(), elements // ELEMENTS_PER_TASK)


def note_launch() -> None:
    """Remember that Numba's threads exist from now on. Call it with `launch_lock` held."""
    global _launched
    _launched = True


def thread_count() -> int:
    """Return the number of threads that a large update takes: `numba.set_num_threads`, else NUMBA_NUM_THREADS."""
    return int(numba.get_num_threads())


def threading_layer() -> str:
    """Return Numba's threading layer, such as "omp"; empty before the first parallel launch."""
    return str(numba.threading_layer()) if _launched else ""
