"""The sum of squares of many gradients, on the GPU, bit for bit the CPU's.

The order of additions is that of the CPU's `norm`. Arrays are cut into blocks of BLOCK elements. Within a block,
element i is added to lane i % SUM_LANES, by one thread for each lane; then the lanes are added one after the other, and
so are the blocks. The same pass finds the largest magnitude.

With the compute dtype float64, the kernels are queued twice. If the first sum shows that squares of float64 gradients
overflow or lose digits, the second one sums scaled gradients; else the second kernels return at once.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from numba_adam.cuda import seam
from numba_adam.cuda.kernels import access, formats
from numba_adam.cuda.kernels.mathematics import compiled
from numba_adam.numerics.norm import SUM_BLOCK, SUM_LANES, scale_of_squares

cuda = seam.cuda

BLOCK = SUM_BLOCK
ROW = 2 * SUM_LANES  # numbers for each block: the lanes' sums, then their largest magnitudes

# Indices into the totals, float64.
SUM, LARGEST, SCALE = range(3)  # SCALE: the factor of the gradients in the sum, or in the next one
TOTALS = 3

_load_int64 = access.scalar("int64")[0]
_load_float64, _store_float64 = access.scalar("float64")
_product = seam.product64
_scale_of_squares = compiled(scale_of_squares)


@seam.device
def _scale_of(totals):  # type: ignore[no-untyped-def]
    """Return the gradients' factor: 1 in the first sum, when `totals` is 0; in the second one 1 says: not needed."""
    return float(_load_float64(totals + SCALE * 8)) if totals != 0 else 1.0


@seam.kernel_builder("lanes")
def lanes_kernel(grad: str) -> Any:
    """Return the kernel that sums the lanes of gradients of a format."""
    dtype = "float64" if grad == "float64" else "float32"
    real, lane_count = getattr(np, dtype), formats.LANES[dtype]
    entry = formats.formats(dtype)[grad]
    load_element, decode = entry.load_element, entry.decode

    def sum_lanes(grads, lengths, blocks, block_count, sums, totals):  # type: ignore[no-untyped-def]
        """Sum the squares of every lane of every block; 16 neighbouring threads take a block.

        Args:
            grads: the address of (count,) int64: the addresses of the gradients, 0 without one.
            lengths: the address of (count,) int64: numbers of elements.
            blocks: the address of (block_count, 2) int64: an array, and the block's first element.
            block_count: how many blocks there are.
            sums: the address of (block_count, ROW) float64: written.
            totals: the address of the first sum's TOTALS; 0: this is the first.
        """
        thread = np.int64(cuda.blockIdx.x) * np.int64(cuda.blockDim.x) + np.int64(cuda.threadIdx.x)
        reals, codes = cuda.local.array(lane_count, real), cuda.local.array(lane_count, np.uint16)
        block, lane = thread // SUM_LANES, thread % SUM_LANES
        scale = _scale_of(totals)
        if block < block_count and (totals == 0 or scale != 1.0):
            row, begin = _load_int64(blocks + block * 16), _load_int64(blocks + block * 16 + 8)
            grad = _load_int64(grads + row * 8)
            end = min(begin + BLOCK, _load_int64(lengths + row * 8)) if grad != 0 else begin
            total, largest = 0.0, 0.0
            for index in range(begin + lane, end, SUM_LANES):
                load_element(grad, index, 0, reals, codes)
                decode(reals, codes)
                value = float(reals[0])
                magnitude = abs(value)
                largest = magnitude if magnitude > largest else largest
                value = _product(value, scale)
                total = total + _product(value, value)
            address = sums + (block * ROW + lane) * 8
            _store_float64(address, total)
            _store_float64(address + SUM_LANES * 8, largest)

    return sum_lanes


@seam.kernel_builder("blocks")
def blocks_kernel() -> Any:
    """Return the kernel that adds each block's lanes."""
    return _sum_blocks


def _sum_blocks(sums, block_count, totals):  # type: ignore[no-untyped-def]
    """Add each block's lanes; the results replace the first lane's. One thread for each block.

    Args:
        sums: as for `_sum_lanes`.
        block_count: how many blocks there are.
        totals: as for `_sum_lanes`.
    """
    block = np.int64(cuda.blockIdx.x) * np.int64(cuda.blockDim.x) + np.int64(cuda.threadIdx.x)
    if block < block_count and (totals == 0 or _scale_of(totals) != 1.0):
        address = sums + block * (ROW * 8)
        total, largest = float(_load_float64(address)), float(_load_float64(address + SUM_LANES * 8))
        for lane in range(1, SUM_LANES):
            total = total + float(_load_float64(address + lane * 8))
            magnitude = float(_load_float64(address + (SUM_LANES + lane) * 8))
            largest = magnitude if magnitude > largest else largest
        _store_float64(address, total)
        _store_float64(address + SUM_LANES * 8, largest)


@seam.kernel_builder("total")
def total_kernel() -> Any:
    """Return the kernel that adds the blocks' sums."""
    return _sum_all


def _sum_all(sums, block_count, totals, is_first, has_doubles):  # type: ignore[no-untyped-def]
    """Add the blocks' sums one after the other, on one thread: their order decides the bits.

    Blocks of arrays without a gradient have the sum 0, which changes nothing: sums of squares are never -0.

    Args:
        sums: as for `_sum_lanes`.
        block_count: how many blocks there are.
        totals: the address of TOTALS float64: written.
        is_first: not 0 for the sum of unscaled gradients.
        has_doubles: not 0 where there may be float64 gradients.
    """
    if is_first != 0 or _scale_of(totals) != 1.0:
        result, largest = 0.0, 0.0
        for block in range(block_count):
            address = sums + block * (ROW * 8)
            result = result + float(_load_float64(address))
            magnitude = float(_load_float64(address + SUM_LANES * 8))
            largest = magnitude if magnitude > largest else largest
        _store_float64(totals + SUM * 8, result)
        _store_float64(totals + LARGEST * 8, largest)
        if is_first != 0:
            _store_float64(totals + SCALE * 8, _scale_of_squares(result) if has_doubles != 0 else 1.0)


LANES_ARGUMENTS = ("int64",) * 6
BLOCKS_ARGUMENTS = ("int64",) * 3
TOTAL_ARGUMENTS = ("int64",) * 5
