"""Copies of short rows, without tests for overlap. Imports Numba and llvmlite.

Vector code of a loop over elements first tests whether source and target overlap, and how many elements there are for
each vector width. For a row of 64 bytes these tests take longer than the copy.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from numba_adam.cpu.kernels.compile import inline
from numba_adam.cpu.kernels.intrinsics import LINE, array_at


@intrinsic
def _copy_line(typingctx: Any, source: Any, target: Any) -> Any:
    """Copy LINE bytes from one address to another, both multiples of 4."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        line = ir.VectorType(ir.IntType(32), LINE // 4).as_pointer()
        value = builder.load(builder.inttoptr(args[0], line), align=4)
        builder.store(value, builder.inttoptr(args[1], line), align=4)
        return context.get_dummy_value()

    return types.void(types.uint64, types.uint64), codegen


@inline
def copy(source, target, size, like):  # type: ignore[no-untyped-def]
    """Copy `size` elements of `like`'s dtype from one address to another; the two do not overlap."""
    line = np.uint64(LINE)
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
