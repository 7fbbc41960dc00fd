"""Asking memory for a row before it is needed. Imports Numba and llvmlite.

Rows far apart are what no CPU foresees: each would be waited for when it is read. Asked for some rows ahead, many are
under way at once.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from numba_adam.kernels.compile import inline

_LINE = 64  # bytes of a cache line
_MOST = 4  # lines of one row: what follows those the CPU foresees


@intrinsic
def _prefetch(typingctx: Any, address: Any) -> Any:
    """Ask for the cache line at an address, to be written to."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer, number = ir.IntType(8).as_pointer(), ir.IntType(32)
        prototype = ir.FunctionType(ir.VoidType(), [pointer, number, number, number])
        function = builder.module.declare_intrinsic("llvm.prefetch", [pointer], prototype)
        how = [number(1), number(3), number(1)]  # to write to; into the nearest cache; data
        builder.call(function, [builder.inttoptr(args[0], pointer), *how])
        return context.get_dummy_value()

    return types.void(types.uint64), codegen


@inline
def prefetch(address, size):  # type: ignore[no-untyped-def]
    """Ask for the lines in which `size` bytes at an address lie, at most _MOST of them."""
    line = np.uint64(_LINE)
    first, last = address // line, (address + size - np.uint64(1)) // line
    for number in range(first, min(last, first + np.uint64(_MOST - 1)) + np.uint64(1)):
        _prefetch(number * line)
