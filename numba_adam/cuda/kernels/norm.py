"""The sum of squares of many gradients, on the GPU, bit for bit the CPU's.

The order is that of `numba_adam.kernels.norm`: blocks of BLOCK elements of an array; within a block element i is added
to lane i % LANES, by a thread of its own; then the lanes are added one after the other, and so are the blocks.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from numba_adam.binding import bind
from numba_adam.cuda import seam
from numba_adam.cuda.kernels import access, formats

cuda = seam.cuda

BLOCK = 8192  # elements; as in numba_adam.kernels.job
SUM_LANES = 16  # as in numba_adam.kernels.intrinsics

_load_int64 = access.scalar("int64")[0]
_load_float64, _store_float64 = access.scalar("float64")
_product = seam.product64

# What `bind` fills in.
_load_one: Any = None
_decode: Any = None
_item_bytes = 4
_REAL: Any = np.float32
_LANES = 8


def _sum_lanes(grads, lengths, blocks, block_count, sums):  # type: ignore[no-untyped-def]
    """Sum the squares of every lane of every block; 16 neighbouring threads take a block's.

    Args:
        grads: where (count,) int64 lie: addresses of the gradients, 0 without one.
        lengths: where (count,) int64 lie: numbers of elements.
        blocks: where (block_count, 2) int64 lie: an array, and the element of it at which the block begins.
        block_count: how many blocks there are.
        sums: where (block_count, 16) float64 lie: written.
    """
    thread = np.int64(cuda.blockIdx.x) * np.int64(cuda.blockDim.x) + np.int64(cuda.threadIdx.x)
    reals, codes = cuda.local.array(_LANES, _REAL), cuda.local.array(_LANES, np.uint16)
    block, lane = thread // SUM_LANES, thread % SUM_LANES
    if block < block_count:
        row, begin = _load_int64(blocks + block * 16), _load_int64(blocks + block * 16 + 8)
        grad = _load_int64(grads + row * 8)
        end = min(begin + BLOCK, _load_int64(lengths + row * 8)) if grad != 0 else begin
        total = np.float64(0.0)
        for index in range(begin + lane, end, SUM_LANES):
            _load_one(grad + index * _item_bytes, 0, reals, codes)
            _decode(reals, codes)
            value = np.float64(reals[0])
            total = total + _product(value, value)
        _store_float64(sums + thread * 8, total)


def _sum_blocks(sums, block_count):  # type: ignore[no-untyped-def]
    """Add each block's lanes; the sum takes the place of the first. One thread for each block."""
    block = np.int64(cuda.blockIdx.x) * np.int64(cuda.blockDim.x) + np.int64(cuda.threadIdx.x)
    if block < block_count:
        address = sums + block * (SUM_LANES * 8)
        total = _load_float64(address)
        for lane in range(1, SUM_LANES):
            total = total + _load_float64(address + lane * 8)
        _store_float64(address, total)


def _sum_all(sums, block_count, total):  # type: ignore[no-untyped-def]
    """Add the blocks' sums one after the other, on one thread, since their order is the order of the bits.

    Blocks of arrays without a gradient have the sum 0, which changes nothing: sums of squares are never -0.
    """
    result = np.float64(0.0)
    for block in range(block_count):
        result = result + _load_float64(sums + block * (SUM_LANES * 8))
    _store_float64(total, result)


@functools.cache
def lanes_kernel(grad: str) -> Any:
    """Return the kernel that sums the lanes of gradients of a format."""
    real = "float64" if grad == "float64" else "float32"
    entry = formats.formats(real)[grad]
    names = {"_REAL": getattr(np, real), "_LANES": formats.LANES[real], "_item_bytes": entry.item_bytes}
    return seam.kernel(bind(_sum_lanes, **names, _load_one=entry.column.load_one, _decode=entry.decode), "lanes", grad)


blocks_kernel = seam.kernel(_sum_blocks, "blocks")
total_kernel = seam.kernel(_sum_all, "total")

LANES_ARGUMENTS = ("int64",) * 5
BLOCKS_ARGUMENTS = ("int64",) * 2
TOTAL_ARGUMENTS = ("int64",) * 3
