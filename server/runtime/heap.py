"""Memory that nobody uses goes back to the system: the C library's heaps, and objects that know each other.

Imports the standard library only. What is about the heaps does nothing where the C library is not glibc.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import gc
from collections.abc import Callable

_OPTIONS = {  # of glibc's mallopt
    -8: 2,  # M_ARENA_MAX: the number of heaps
    -3: 6 << 20,  # M_MMAP_THRESHOLD: larger blocks come from the system and go back; messages are smaller
    -1: 8 << 20,  # M_TRIM_THRESHOLD: the most that may stay free at the end of a heap
}


def share_heaps() -> None:
    """Let all threads share two heaps, and limit what stays free at their ends.

    By default glibc makes eight heaps per core, and may keep 64 MiB of free memory at the end of each. With these
    options pushes and pulls take no longer.
    """
    mallopt = _function("mallopt")
    if mallopt is not None:
        for option, value in _OPTIONS.items():
            mallopt(option, value)


def give_back_free_memory() -> None:
    """Return free memory to the system, also from the middle of a heap, where glibc keeps it otherwise.

    Takes about a millisecond: call it after something large and rare.
    """
    malloc_trim = _function("malloc_trim")
    if malloc_trim is not None:
        malloc_trim(0)


def give_back_what_is_forgotten() -> None:
    """Release a deleted model's memory and descriptors.

    A model and its rounds, leases and updates know each other, so Python's collector must find them, and by itself it
    does so only now and then. Takes some ten milliseconds: call it after a deletion, without a reference to the model.
    """
    gc.collect()
    give_back_free_memory()


@functools.cache
def _function(name: str) -> Callable[..., int] | None:
    with contextlib.suppress(OSError, AttributeError, TypeError):
        function: Callable[..., int] = getattr(ctypes.CDLL(None), name)
        return function
    return None
