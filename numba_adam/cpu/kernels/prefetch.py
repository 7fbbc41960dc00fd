"""Memory that is asked for before it is needed. Imports Numba and llvmlite.

A CPU foresees what a loop over arrays reads next, but not across the border of a page of 4 kB; it begins anew behind
each, for every array. Asked for some way ahead, the lines there are under way before the loop comes to them. That helps
loops that wait for memory, and costs those that do not: only steps that are larger than the caches ask.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from numba_adam.cpu.kernels.compile import inline, inlined
from numba_adam.cpu.kernels.intrinsics import LINE

STRETCH = 32  # elements between two times that memory is asked for: a loop of this length is plain vector code
_AHEAD = 512  # elements
_READ, _SECOND_CACHE, _DATA = 0, 2, 1  # arguments of llvm.prefetch


def _ask(builder: Any, address: Any) -> None:
    """Ask for the line of an address, which need not be one of this process.

    The second cache has more lines under way at once than the first, which has to wait for less in the end.
    """
    pointer, number = ir.IntType(8).as_pointer(), ir.IntType(32)
    type_ = ir.FunctionType(ir.VoidType(), [pointer, number, number, number])
    function = builder.module.declare_intrinsic("llvm.prefetch", [pointer], type_)
    options = [number(_READ), number(_SECOND_CACHE), number(_DATA)]
    builder.call(function, [builder.inttoptr(address, pointer), *options])


@intrinsic
def _prefetch_line(typingctx: Any, address: Any) -> Any:
    """Ask for the cache line of an address."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        _ask(builder, args[0])
        return context.get_dummy_value()

    return types.void(types.uint64), codegen


@inline
def prefetch(address, size):  # type: ignore[no-untyped-def]
    """Ask for all cache lines of `size` bytes, 1 or more."""
    for skip in range(np.uint64(0), size, np.uint64(LINE)):
        _prefetch_line(address + skip)
    _prefetch_line(address + size - np.uint64(1))


@intrinsic
def _lines_ahead(typingctx: Any, address: Any, like: Any) -> Any:
    """Ask for the lines of a stretch of `like`'s dtype that begins _AHEAD elements behind an address."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        item_bytes = context.get_abi_sizeof(context.get_value_type(like.dtype))
        word = ir.IntType(64)
        for skip in range(0, STRETCH * item_bytes, LINE):
            _ask(builder, builder.add(args[0], word(_AHEAD * item_bytes + skip)))
        return context.get_dummy_value()

    return types.void(types.uint64, like), codegen


@inlined
def ask_ahead(array, begin):  # type: ignore[no-untyped-def]
    """Ask for what lies some way behind the stretch of an array that begins at an element (uint64)."""
    _lines_ahead(np.uint64(array.ctypes.data) + begin * np.uint64(array.itemsize), array)


@inlined
def stretches(size):  # type: ignore[no-untyped-def]
    """Return for how many stretches of an array memory can be asked for ahead without going beyond its end."""
    return max(size - _AHEAD, 0) // STRETCH
