"""The update of one array, tile by tile: any formats, and all optional work fused into the pass. Imports Numba.

Most steps can take a faster loop, see `mixed_formats`; this one handles every step.

An element is decoded, updated, averaged, copied and encoded while it is in the innermost cache, so the step passes over
memory once. Tiles begin at multiples of TILE of the array, wherever threads divide it, so a block of 8-bit moments is
always within one tile.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from numba_adam.cpu.kernels.compile import inline, inlined, merged
from numba_adam.cpu.kernels.eight_bit import decode_moments, encode_moments, eps_beside_blocks
from numba_adam.cpu.kernels.eight_bit_blocks import REST_BYTES, SCRATCH_BYTES, blocks_at, update_blocks, update_rest
from numba_adam.cpu.kernels.element import adam, amsgrad, average, clear, floorless, is_bare
from numba_adam.cpu.kernels.formats import Operand, bytes_of, compute_format, decoded, store, stream_key
from numba_adam.cpu.kernels.intrinsics import array_at, stream
from numba_adam.cpu.kernels.launch_plan import (
    COPY,
    EMA,
    EXP_AVG,
    EXP_AVG_SQ,
    IS_LARGE,
    IS_STOCHASTIC,
    MAX_EXP_AVG_SQ,
    PARAM,
    SCALE,
    SEED,
    ZERO_GRAD,
)
from numba_adam.cpu.kernels.ranges import TILE
from numba_adam.numerics.eight_bit import BLOCK
from numba_adam.numerics.eight_bit_codecs import DITHER_STEP, DITHER_TURN
from numba_adam.numerics.formats import EIGHT_BIT, FLOAT32

_PADDING = 32  # elements between two scratch arrays, so that their addresses differ in the low bits
PITCH = TILE + _PADDING  # elements from the beginning of one scratch array to the next
_FOR_BLOCKS = 5  # scratch arrays 0 to 4 are for the param, the grad and three moments; from here on, for 8-bit blocks
SCRATCH = PITCH * (_FOR_BLOCKS - (-(SCRATCH_BYTES + REST_BYTES) // (4 * PITCH)))  # elements
_BYTES = np.empty(0, np.uint8)
_NONE = Operand(np.uint64(0), np.uint64(0), EIGHT_BIT, False, np.uint32(0))


class Operands(NamedTuple):
    """The arrays of one parameter, and what a step does to them besides the update."""

    param: Operand
    grad: Operand
    exp_avg: Operand
    exp_avg_sq: Operand
    max_exp_avg_sq: Operand
    ema: Any  # uint64: address, 0 without one; of the compute dtype
    copy: Operand
    is_large: Any  # whether the step is larger than the caches
    zero_grad: Any  # whether the gradient is set to zero
    scratch: Any  # uint64: address of SCRATCH elements of the compute dtype


@inline
def _operand(plan, row, step, column):  # type: ignore[no-untyped-def]
    """Return one of the plan's arrays."""
    format_, is_stochastic, key = plan.formats[row, column], plan.options[IS_STOCHASTIC] != 0, np.uint32(0)
    if format_ == EIGHT_BIT:
        first = stream_key(plan.options[SEED], 0, plan.numbers[row], column)
        key = np.uint32(np.uint64(first) + np.uint64(step) * np.uint64(DITHER_TURN))
    elif is_stochastic:
        key = stream_key(plan.options[SEED], step, plan.numbers[row], column)
    return Operand(plan.addresses[row, column], plan.addresses[row, column + SCALE], format_, is_stochastic, key)


@inline
def operands_of(plan, row, step, scratch):  # type: ignore[no-untyped-def]
    """Return the arrays of one parameter, and what a step does to them.

    Args:
        plan: the plan.
        row: the parameter.
        step: 1 for the first update.
        scratch: uint64: the address of SCRATCH elements of the compute dtype.
    """
    nearest = False, np.uint32(0)
    return Operands(
        _operand(plan, row, step, PARAM),
        Operand(plan.grads[row], np.uint64(0), plan.grad_formats[row], nearest[0], nearest[1]),
        _operand(plan, row, step, EXP_AVG),
        _operand(plan, row, step, EXP_AVG_SQ),
        _operand(plan, row, step, MAX_EXP_AVG_SQ),
        plan.addresses[row, EMA],
        Operand(plan.addresses[row, COPY], np.uint64(0), plan.formats[row, COPY], nearest[0], nearest[1]),
        plan.options[IS_LARGE] != 0,
        plan.options[ZERO_GRAD] != 0,
        scratch,
    )


def tiles_updater(update_moments: Any) -> Any:
    """Return a function that updates an array tile by tile, compiled around the update of decoded parameters.

    Args:
        update_moments: `update_floats`, or `update_moments` where moments may be in 8 bits.
    """

    @merged
    def update_tile(operands, begin, size, c, like):  # type: ignore[no-untyped-def]
        scratch, pitch = operands.scratch, np.uint64(PITCH * like.itemsize)
        param = decoded(operands.param, begin, size, scratch, like)
        grad = decoded(operands.grad, begin, size, scratch + pitch, like)
        update_moments(operands, begin, size, param, grad, c, like)
        store(param, operands.param, begin, like)
        _finish_tile(operands, begin, size, param, c, like)

    @merged
    def update_tiles(operands, begin, size, c, like):  # type: ignore[no-untyped-def]
        """Update `size` elements of one array, from element `begin` on.

        Args:
            operands: the arrays.
            begin: the first element: of a tile, or behind the elements of the tile that a faster loop has updated.
            size: the number of elements.
            c: the constants.
            like: any array of the compute dtype.
        """
        for start in range(begin, begin + size, TILE):
            rest = begin + size - start
            count = TILE if rest > TILE else rest
            update_tile(operands, np.uint64(start), np.uint64(count), c, like)

    return update_tiles


@merged
def update_moments(operands, begin, size, param, grad, c, like):  # type: ignore[no-untyped-def]
    """Update a tile whose moments are floats or in 8 bits."""
    if operands.exp_avg_sq.format == EIGHT_BIT:
        _update_eight_bit(operands, begin, param, grad, c)
    else:
        update_floats(operands, begin, size, param, grad, c, like)


@merged
def update_floats(operands, begin, size, param, grad, c, like):  # type: ignore[no-untyped-def]
    """Update a tile whose moments are floats."""
    scratch, pitch = operands.scratch, np.uint64(PITCH * like.itemsize)
    exp_avg = decoded(operands.exp_avg, begin, size, scratch + np.uint64(2) * pitch, like)
    exp_avg_sq = decoded(operands.exp_avg_sq, begin, size, scratch + np.uint64(3) * pitch, like)
    if operands.max_exp_avg_sq.address == 0:
        adam(param, grad, exp_avg, exp_avg_sq, c)
    else:
        max_exp_avg_sq = decoded(operands.max_exp_avg_sq, begin, size, scratch + np.uint64(4) * pitch, like)
        amsgrad(param, grad, exp_avg, exp_avg_sq, max_exp_avg_sq, c)
        store(max_exp_avg_sq, operands.max_exp_avg_sq, begin, like)
    store(exp_avg, operands.exp_avg, begin, like)
    store(exp_avg_sq, operands.exp_avg_sq, begin, like)


@merged
def _update_eight_bit(operands, begin, param, grad, c):  # type: ignore[no-untyped-def]
    """Update a tile whose moments are in 8 bits."""
    scratch, pitch, size = operands.scratch, np.uint64(PITCH * param.itemsize), np.uint64(param.size)
    exp_avg = array_at(scratch + np.uint64(2) * pitch, size, param)
    exp_avg_sq = array_at(scratch + np.uint64(3) * pitch, size, param)
    has_largest = operands.max_exp_avg_sq.address != 0
    if is_bare(c) and not has_largest:
        _update_bare(operands, begin, param, grad, scratch + np.uint64(_FOR_BLOCKS) * pitch, c)
        return
    decode_moments(operands.exp_avg, operands.exp_avg_sq, begin, exp_avg, exp_avg_sq)
    own = floorless(c, eps_beside_blocks(c.eps, c.one_minus_beta2))
    if has_largest:
        max_exp_avg_sq = array_at(scratch + np.uint64(4) * pitch, size, param)
        decode_moments(_NONE, operands.max_exp_avg_sq, begin, max_exp_avg_sq, max_exp_avg_sq)
        amsgrad(param, grad, exp_avg, exp_avg_sq, max_exp_avg_sq, own)
        encode_moments(max_exp_avg_sq, max_exp_avg_sq, _NONE, operands.max_exp_avg_sq, begin, DITHER_STEP)
    else:
        adam(param, grad, exp_avg, exp_avg_sq, own)
    encode_moments(exp_avg, exp_avg_sq, operands.exp_avg, operands.exp_avg_sq, begin, DITHER_STEP)


@merged
def _update_bare(operands, begin, param, grad, scratch, c):  # type: ignore[no-untyped-def]
    """Update a tile whose moments are in 8 bits, in a step that `is_bare`."""
    addresses = np.uint64(param.ctypes.data), np.uint64(grad.ctypes.data)
    moments = operands.exp_avg, operands.exp_avg_sq
    count = param.size // BLOCK
    if count > 0:
        update_blocks(blocks_at(addresses[0], addresses[1], moments[0], moments[1], begin), count, scratch, c)
    rest = param.size - count * BLOCK
    if rest > 0:
        skip = np.uint64(count * BLOCK)
        bytes_ = skip * np.uint64(param.itemsize)
        last = blocks_at(addresses[0] + bytes_, addresses[1] + bytes_, moments[0], moments[1], begin + skip)
        update_rest(last, rest, scratch, c)


@merged
def _finish_tile(operands, begin, size, param, c, like):  # type: ignore[no-untyped-def]
    """Do the optional work of a step, with the new parameters."""
    if operands.ema != 0:
        average(array_at(operands.ema + begin * np.uint64(like.itemsize), size, like), param, c)
    if operands.copy.address != 0:
        if operands.param.format == FLOAT32 and compute_format(like) != FLOAT32:
            _round_to_float32(param)
        _write_copy(operands, begin, param, like)
    clear_grad(operands, begin, size)


@merged
def clear_grad(operands, begin, size):  # type: ignore[no-untyped-def]
    """Set a tile of the gradient to zero, if the step does so."""
    if operands.zero_grad:
        width = bytes_of(operands.grad.format)
        clear(array_at(operands.grad.address + begin * width, size * width, _BYTES))


@inlined
def is_streamed(operands):  # type: ignore[no-untyped-def]
    """Say whether the copy is written past the caches."""
    return operands.is_large and operands.copy.address != 0


@merged
def _write_copy(operands, begin, param, like):  # type: ignore[no-untyped-def]
    """Write the copy of a tile. A large step writes past the caches, which would read the overwritten lines first."""
    if is_streamed(operands):
        scratch = operands.scratch + np.uint64(2 * PITCH * like.itemsize)
        buffer = Operand(scratch, np.uint64(0), operands.copy.format, False, np.uint32(0))
        store(param, buffer, np.uint64(0), like)
        width = bytes_of(operands.copy.format)
        stream(scratch, operands.copy.address + begin * width, np.uint64(param.size) * width)
    else:
        store(param, operands.copy, begin, like)


@inline
def _round_to_float32(values):  # type: ignore[no-untyped-def]
    """Round values to the float32 that the parameter stores, because the copy is one of the parameter."""
    for i in range(values.size):
        values[i] = np.float32(values[i])
