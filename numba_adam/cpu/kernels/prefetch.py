"""Loads issued before their values are needed. Imports Numba and llvmlite.

A CPU's own prefetcher foresees what a loop over arrays reads next, but not across the border of a page of 4 kB: it
starts again after each border, for every array. With a prefetch some distance ahead, these lines are under way before
the loop needs them. This helps loops that wait for memory and slows down those that do not, so only steps that are
larger than the caches use it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from numba_adam.cpu.kernels.compile import inline, inlined
from numba_adam.cpu.kernels.intrinsics import FIRST_CACHE, LINE, SECOND_CACHE, prefetch_line
from numba_adam.cpu.kernels.vector_width import prefetches_to_first_cache

STRETCH = 32  # elements between two prefetches: a loop of this length is plain vector code
_DISTANCE = 512  # elements from the loop to what it prefetches


@intrinsic
def _prefetch_line(typingctx: Any, address: Any) -> Any:
    """Prefetch the cache line of an address."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        prefetch_line(builder, args[0])
        return context.get_dummy_value()

    return types.void(types.uint64), codegen


@inline
def prefetch(address, size):  # type: ignore[no-untyped-def]
    """Prefetch all cache lines of `size` bytes, 1 or more."""
    for skip in range(np.uint64(0), size, np.uint64(LINE)):
        _prefetch_line(address + skip)
    _prefetch_line(address + size - np.uint64(1))


@inlined
def prefetch_lines_of(address, lines):  # type: ignore[no-untyped-def]
    """Prefetch `lines` cache lines, a constant; the first one is that of an address."""
    for k in range(lines):
        _prefetch_line(address + np.uint64(k * LINE))


@intrinsic
def _prefetch_lines(typingctx: Any, address: Any, like: Any) -> Any:
    """Prefetch the lines of a stretch of `like`'s dtype that begins _DISTANCE elements after an address."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        item_bytes = context.get_abi_sizeof(context.get_value_type(like.dtype))
        word, cache = ir.IntType(64), FIRST_CACHE if prefetches_to_first_cache() else SECOND_CACHE
        for skip in range(0, STRETCH * item_bytes, LINE):
            prefetch_line(builder, builder.add(args[0], word(_DISTANCE * item_bytes + skip)), cache)
        return context.get_dummy_value()

    return types.void(types.uint64, like), codegen


@inlined
def prefetch_stretch(array, begin):  # type: ignore[no-untyped-def]
    """Prefetch for the stretch of an array that begins at element `begin` (uint64): a stretch some distance ahead."""
    _prefetch_lines(np.uint64(array.ctypes.data) + begin * np.uint64(array.itemsize), array)


@inlined
def prefetched_of(count, rest):  # type: ignore[no-untyped-def]
    """Return how many stretches of an array's next `count` elements prefetch within the `rest` of the array."""
    possible, stretches = (rest - _DISTANCE) // STRETCH, count // STRETCH
    if rest < _DISTANCE:
        possible = 0
    return possible if possible < stretches else stretches
