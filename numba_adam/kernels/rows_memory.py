"""Short rows fetched ahead, and copied without asking each time how they lie. Imports Numba and llvmlite.

A loop over elements is made into vector code that first asks whether the two places overlap, and how many elements
there are for each width of vector: for a row of 64 bytes that takes longer than the copy.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from numba_adam.kernels.compile import inline
from numba_adam.kernels.intrinsics import array_at

_LINE = 64  # bytes


_READ, _SECOND_CACHE, _DATA = 0, 2, 1  # arguments of llvm.prefetch


@intrinsic
def _prefetch_line(typingctx: Any, address: Any) -> Any:
    """Ask for the cache line of an address, which need not be one of this process.

    The second cache has more lines under way at once than the first, which has to wait for less in the end.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer, number = ir.IntType(8).as_pointer(), ir.IntType(32)
        type_ = ir.FunctionType(ir.VoidType(), [pointer, number, number, number])
        function = builder.module.declare_intrinsic("llvm.prefetch", [pointer], type_)
        options = [number(_READ), number(_SECOND_CACHE), number(_DATA)]
        builder.call(function, [builder.inttoptr(args[0], pointer), *options])
        return context.get_dummy_value()

    return types.void(types.uint64), codegen


@inline
def prefetch(address, size):  # type: ignore[no-untyped-def]
    """Ask for all cache lines of `size` bytes, 1 or more."""
    for skip in range(np.uint64(0), size, np.uint64(_LINE)):
        _prefetch_line(address + skip)
    _prefetch_line(address + size - np.uint64(1))


@intrinsic
def _copy_line(typingctx: Any, source: Any, target: Any) -> Any:
    """Copy _LINE bytes from one address to another, both multiples of 4."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        line = ir.VectorType(ir.IntType(32), _LINE // 4).as_pointer()
        value = builder.load(builder.inttoptr(args[0], line), align=4)
        builder.store(value, builder.inttoptr(args[1], line), align=4)
        return context.get_dummy_value()

    return types.void(types.uint64, types.uint64), codegen


@inline
def copy(source, target, size, like):  # type: ignore[no-untyped-def]
    """Copy `size` elements of `like`'s dtype from one address to another that does not overlap."""
    line = np.uint64(_LINE)
    rest = np.uint64(size) * np.uint64(like.itemsize)
    while rest >= line:
        _copy_line(source, target)
        source += line
        target += line
        rest -= line
    count = rest // np.uint64(like.itemsize)
    a, b = array_at(source, count, like), array_at(target, count, like)
    for i in range(count):
        b[i] = a[i]
