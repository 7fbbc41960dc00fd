"""Adam with moments in 8 bits where a step asks for nothing beside: whole blocks, three at a time. Imports Numba.

Roots and divisions keep one part of the CPU busy for long, all the rest of a block's work another. So the loop that
finishes a block, with its roots and divisions, begins the next one; and the block before, whose scales are known by
then, is encoded. What is under way fits the innermost cache with room to spare: with as many blocks as a tile has, it
would take turns there with the memory that is asked for ahead.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from numba_adam.cpu.kernels.compile import apart_inlined, inline, inlined
from numba_adam.cpu.kernels.eight_bit import (
    blocks_of,
    encode_both,
    eps_beside_blocks,
    larger,
    ratio_of,
    widen_ratio,
    widen_root,
)
from numba_adam.cpu.kernels.element import NO_DECAY, NO_FLOOR, adapt, bare, moments
from numba_adam.cpu.kernels.intrinsics import array_at, copy_bytes
from numba_adam.numerics.codecs import DITHER_STEP
from numba_adam.numerics.eight_bit import BLOCK

_SIZE = np.uint64(BLOCK)
_REAL_BYTES, _SCALE_BYTES = np.uint64(4 * BLOCK), np.uint64(4)  # of a block
_ROOMS = 4  # blocks under way, and one, for a number that is quickly divided by
_COLUMN = np.uint64(_ROOMS) * _REAL_BYTES
WORK_BYTES = int(2 * _COLUMN) + _ROOMS * 2 * 4  # room for two numbers of each element under way, and two of each block
REST_BYTES = 2 * 4 * BLOCK + 2 * BLOCK  # room for the parameters, gradients and codes of a block
_CODES, _WORDS, _REALS = np.empty(0, np.uint8), np.empty(0, np.uint32), np.empty(0, np.float32)


class Blocks(NamedTuple):
    """Where neighbouring blocks lie: the address of the first one's, uint64."""

    param: Any  # float32
    grad: Any  # float32
    exp_avg: Any  # codes
    exp_avg_sq: Any  # codes
    exp_avg_scale: Any
    exp_avg_sq_scale: Any
    dither: Any  # uint32: the first element's


@inlined
def _reals(address, block):  # type: ignore[no-untyped-def]
    return array_at(address + np.uint64(block) * _REAL_BYTES, _SIZE, _REALS)


@inlined
def _codes(address, block):  # type: ignore[no-untyped-def]
    return array_at(address + np.uint64(block) * _SIZE, _SIZE, _CODES)


@inlined
def _scale(address, block):  # type: ignore[no-untyped-def]
    return array_at(address + np.uint64(block) * _SCALE_BYTES, np.uint64(1), _REALS)


@inlined
def _rooms(room, block):  # type: ignore[no-untyped-def]
    """Return where a block's moments are put, which become ratios and roots, and where the largest ones' bits are."""
    place = np.uint64(block) % np.uint64(_ROOMS)
    found = array_at(room + np.uint64(2) * _COLUMN + place * np.uint64(8), np.uint64(2), _WORDS)
    return _reals(room, place), _reals(room + _COLUMN, place), found


@inlined
def _moments_of(grad, own_code, code, own_unit, unit, c):  # type: ignore[no-untyped-def]
    """Return an element's moments after a gradient."""
    root = widen_root(code, unit)
    return moments(c.zero, grad, widen_ratio(own_code, own_unit) * root, root * root, c)


@apart_inlined
def _begin(grad, own_codes, codes, own_unit, unit, first, second, c):  # type: ignore[no-untyped-def]
    """Compute a block's moments."""
    for i in range(BLOCK):
        first[i], second[i] = _moments_of(grad[i], own_codes[i], codes[i], own_unit[0], unit[0], c)


@inlined
def _adapted(param, exp_avg, exp_avg_sq, c):  # type: ignore[no-untyped-def]
    """Return an element's parameter, ratio and root, given its moments."""
    root = np.sqrt(exp_avg_sq)
    return adapt(param, exp_avg, exp_avg_sq, c), ratio_of(exp_avg, root), root


@apart_inlined
def _finish(param, ratios, roots, found, c):  # type: ignore[no-untyped-def]
    """Update a block's parameters, given its moments; make these a ratio and a root."""
    largest, largest_root = np.uint32(0), np.uint32(0)
    for i in range(BLOCK):
        param[i], ratios[i], roots[i] = _adapted(param[i], ratios[i], roots[i], c)
        largest, largest_root = larger(largest, ratios[i]), larger(largest_root, roots[i])
    found[0], found[1] = largest, largest_root


@apart_inlined
def _finish_and_begin(param, ratios, roots, found, grad, own_codes, codes, own_unit, unit, first, second, c):  # type: ignore[no-untyped-def]
    """Finish a block and begin another one, element by element: `_finish` and `_begin` in one loop."""
    largest, largest_root = np.uint32(0), np.uint32(0)
    for i in range(BLOCK):
        exp_avg, exp_avg_sq = _moments_of(grad[i], own_codes[i], codes[i], own_unit[0], unit[0], c)
        param[i], ratios[i], roots[i] = _adapted(param[i], ratios[i], roots[i], c)
        largest, largest_root = larger(largest, ratios[i]), larger(largest_root, roots[i])
        first[i], second[i] = exp_avg, exp_avg_sq
    found[0], found[1] = largest, largest_root


@inlined
def _encode(at, block, room):  # type: ignore[no-untyped-def]
    """Encode a block that is finished."""
    ratios, roots, found = _rooms(room, block)
    codes = _codes(at.exp_avg, block), _codes(at.exp_avg_sq, block)
    units = _scale(at.exp_avg_scale, block), _scale(at.exp_avg_sq_scale, block)
    dither = np.uint32(np.uint64(at.dither) + np.uint64(block * BLOCK) * np.uint64(DITHER_STEP))
    encode_both(ratios, roots, (found[0], found[1]), codes, units, dither, DITHER_STEP)


@inlined
def _update(at, count, room, c):  # type: ignore[no-untyped-def]
    """Update blocks; see `update_blocks`."""
    for block in range(count + 2):
        first, second, _ = _rooms(room, block)
        ratios, roots, found = _rooms(room, block - 1)
        own_unit, unit = _scale(at.exp_avg_scale, block), _scale(at.exp_avg_sq_scale, block)
        grad, own_codes, codes = _reals(at.grad, block), _codes(at.exp_avg, block), _codes(at.exp_avg_sq, block)
        param = _reals(at.param, block - 1)
        if block == 0:
            _begin(grad, own_codes, codes, own_unit, unit, first, second, c)
        elif block < count:
            _finish_and_begin(param, ratios, roots, found, grad, own_codes, codes, own_unit, unit, first, second, c)
        elif block == count:
            _finish(param, ratios, roots, found, c)
        if block >= 2:
            _encode(at, block - 2, room)


@inline
def update_blocks(at, count, room, c):  # type: ignore[no-untyped-def]
    """Update whole blocks, in a step that `is_bare`.

    Args:
        at: where they lie.
        count: how many there are, at least 1.
        room: uint64: where WORK_BYTES may be put.
        c: the constants.
    """
    eps = eps_beside_blocks(c.eps, c.one_minus_beta2)
    if c.decoupled_decay == c.zero:
        _update(at, count, room, bare(c, NO_DECAY, eps, NO_FLOOR, NO_FLOOR, NO_FLOOR))
    else:
        _update(at, count, room, bare(c, c.decoupled_decay, eps, NO_FLOOR, NO_FLOOR, NO_FLOOR))


@inlined
def blocks_at(param, grad, exp_avg, exp_avg_sq, begin):  # type: ignore[no-untyped-def]
    """Return where the blocks lie from one on.

    Args:
        param: uint64: the address of the parameters from the block's first element on.
        grad: uint64: likewise of the gradients.
        exp_avg: the first moment in 8 bits.
        exp_avg_sq: the second one.
        begin: uint64: the block's first element.
    """
    scale = begin // _SIZE * _SCALE_BYTES
    dither = np.uint32(np.uint64(exp_avg_sq.key) + begin * np.uint64(DITHER_STEP))
    return Blocks(
        param,
        grad,
        exp_avg.address + begin,
        exp_avg_sq.address + begin,
        exp_avg.scales + scale,
        exp_avg_sq.scales + scale,
        dither,
    )


@inline
def update_rest(at, size, room, c):  # type: ignore[no-untyped-def]
    """Update an array's last block, which is not whole: in a room, where its last element stands for what it lacks.

    So the largest of the block is the largest of what it has, even where that is not finite.

    Args:
        at: where it lies.
        size: how many elements it has.
        room: uint64: where WORK_BYTES + REST_BYTES may be put.
        c: the constants of a step that `is_bare`.
    """
    param = room + np.uint64(WORK_BYTES)
    grad, exp_avg = param + _REAL_BYTES, param + np.uint64(2) * _REAL_BYTES
    exp_avg_sq = exp_avg + _SIZE
    _fill(at.param, size, _reals(param, 0))
    _fill(at.grad, size, _reals(grad, 0))
    _fill(at.exp_avg, size, _codes(exp_avg, 0))
    _fill(at.exp_avg_sq, size, _codes(exp_avg_sq, 0))
    inside = Blocks(param, grad, exp_avg, exp_avg_sq, at.exp_avg_scale, at.exp_avg_sq_scale, at.dither)
    update_blocks(inside, blocks_of(size), room, c)
    copy_bytes(param, at.param, np.uint64(4 * size))
    copy_bytes(exp_avg, at.exp_avg, np.uint64(size))
    copy_bytes(exp_avg_sq, at.exp_avg_sq, np.uint64(size))


@inline
def _fill(address, size, block):  # type: ignore[no-untyped-def]
    """Copy so many elements, and the last one again as often as the block has room."""
    values = array_at(address, np.uint64(size), block)
    for i in range(block.size):
        block[i] = values[min(i, size - 1)]
