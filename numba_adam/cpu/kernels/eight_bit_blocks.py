"""Adam with moments in 8 bits and no other work in the pass: whole blocks, three at a time. Imports Numba.

Roots and divisions occupy one execution unit of the CPU for long, and the rest of a block's work other units. So the
loop that finishes a block, with its roots and divisions, also begins the next block; then the block before is encoded,
whose scales are known by then. The scratch buffers of these blocks are much smaller than the innermost cache. Buffers
for all blocks of a tile would compete there with prefetched lines.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from numba_adam.cpu.kernels.compile import array_inlined, inline, inlined, noalias_inlined
from numba_adam.cpu.kernels.eight_bit import (
    blocks_of,
    choose_width,
    encode_both,
    eps_beside_blocks,
    larger,
    ratio_of,
    widen_ratio,
    widen_root,
)
from numba_adam.cpu.kernels.element import NO_DECAY, NO_FLOOR, adapt, bare_with, moments
from numba_adam.cpu.kernels.intrinsics import LINE, array_at, copy_bytes
from numba_adam.cpu.kernels.prefetch import prefetch_lines_of
from numba_adam.numerics.eight_bit import BLOCK
from numba_adam.numerics.eight_bit_codecs import DITHER_STEP

_SIZE = np.uint64(BLOCK)
_REAL_BYTES, _SCALE_BYTES = np.uint64(4 * BLOCK), np.uint64(4)  # of a block
_SLOTS = 4  # blocks in scratch: three are in progress; with four, the remainder is a mask
_COLUMN = np.uint64(_SLOTS) * _REAL_BYTES
SCRATCH_BYTES = int(2 * _COLUMN) + _SLOTS * 2 * 4  # two numbers for each element in progress, and two for each block
_PREFETCH_BLOCKS = 8  # from the block that begins to the one that is prefetched
REST_BYTES = 2 * 4 * BLOCK + 2 * BLOCK  # the parameters, gradients and codes of one block
_CODES, _WORDS, _REALS = np.empty(0, np.uint8), np.empty(0, np.uint32), np.empty(0, np.float32)


class Blocks(NamedTuple):
    """Neighbouring blocks: the address of the first one in each array, uint64."""

    param: Any  # float32
    grad: Any  # float32
    exp_avg: Any  # codes
    exp_avg_sq: Any  # codes
    exp_avg_scale: Any
    exp_avg_sq_scale: Any
    dither: Any  # uint32: of the first element


@array_inlined
def _reals(address, block):  # type: ignore[no-untyped-def]
    return array_at(address + np.uint64(block) * _REAL_BYTES, _SIZE, _REALS)


@array_inlined
def _codes(address, block):  # type: ignore[no-untyped-def]
    return array_at(address + np.uint64(block) * _SIZE, _SIZE, _CODES)


@array_inlined
def _scale(address, block):  # type: ignore[no-untyped-def]
    return array_at(address + np.uint64(block) * _SCALE_BYTES, np.uint64(1), _REALS)


@inlined
def _slot(scratch, block):  # type: ignore[no-untyped-def]
    """Return a block's scratch arrays: of its moments, which become ratios and roots, and of the largest ones' bits."""
    slot = np.uint64(block) % np.uint64(_SLOTS)
    found = array_at(scratch + np.uint64(2) * _COLUMN + slot * np.uint64(8), np.uint64(2), _WORDS)
    return _reals(scratch, slot), _reals(scratch + _COLUMN, slot), found


@inlined
def _moments_of(grad, own_code, code, own_unit, unit, c):  # type: ignore[no-untyped-def]
    """Return an element's moments after a gradient."""
    root = widen_root(code, unit)
    return moments(c.zero, grad, widen_ratio(own_code, own_unit) * root, root * root, c)


@noalias_inlined
def _begin(grad, own_codes, codes, own_unit, unit, first, second, c):  # type: ignore[no-untyped-def]
    """Compute the moments of a block."""
    choose_width()
    for i in range(BLOCK):
        first[i], second[i] = _moments_of(grad[i], own_codes[i], codes[i], own_unit[0], unit[0], c)


@inlined
def _adapted(param, exp_avg, exp_avg_sq, c):  # type: ignore[no-untyped-def]
    """Return the new parameter, ratio and root of an element, given its moments."""
    root = np.sqrt(exp_avg_sq)
    return adapt(param, exp_avg, exp_avg_sq, c), ratio_of(exp_avg, root), root


@noalias_inlined
def _finish(param, ratios, roots, found, c):  # type: ignore[no-untyped-def]
    """Update the parameters of a block, given its moments, and replace these by ratios and roots."""
    choose_width()
    largest, largest_root = np.uint32(0), np.uint32(0)
    for i in range(BLOCK):
        param[i], ratios[i], roots[i] = _adapted(param[i], ratios[i], roots[i], c)
        largest, largest_root = larger(largest, ratios[i]), larger(largest_root, roots[i])
    found[0], found[1] = largest, largest_root


@noalias_inlined
def _finish_and_begin(param, ratios, roots, found, grad, own_codes, codes, own_unit, unit, first, second, c):  # type: ignore[no-untyped-def]
    """Finish a block and begin the next one, element by element: `_finish` and `_begin` in one loop."""
    choose_width()
    largest, largest_root = np.uint32(0), np.uint32(0)
    for i in range(BLOCK):
        exp_avg, exp_avg_sq = _moments_of(grad[i], own_codes[i], codes[i], own_unit[0], unit[0], c)
        param[i], ratios[i], roots[i] = _adapted(param[i], ratios[i], roots[i], c)
        largest, largest_root = larger(largest, ratios[i]), larger(largest_root, roots[i])
        first[i], second[i] = exp_avg, exp_avg_sq
    found[0], found[1] = largest, largest_root


@inlined
def _encode(at, block, scratch):  # type: ignore[no-untyped-def]
    """Encode a finished block."""
    ratios, roots, found = _slot(scratch, block)
    codes = _codes(at.exp_avg, block), _codes(at.exp_avg_sq, block)
    units = _scale(at.exp_avg_scale, block), _scale(at.exp_avg_sq_scale, block)
    dither = np.uint32(np.uint64(at.dither) + np.uint64(block * BLOCK) * np.uint64(DITHER_STEP))
    encode_both(ratios, roots, (found[0], found[1]), codes, units, dither, DITHER_STEP)


@inlined
def _prefetch(at, block):  # type: ignore[no-untyped-def]
    """Prefetch a block."""
    reals, codes = 4 * BLOCK // LINE, BLOCK // LINE
    prefetch_lines_of(at.param + np.uint64(block) * _REAL_BYTES, reals)
    prefetch_lines_of(at.grad + np.uint64(block) * _REAL_BYTES, reals)
    prefetch_lines_of(at.exp_avg + np.uint64(block) * _SIZE, codes)
    prefetch_lines_of(at.exp_avg_sq + np.uint64(block) * _SIZE, codes)


@inlined
def _update(at, count, scratch, c):  # type: ignore[no-untyped-def]
    """Update blocks; see `update_blocks`."""
    for block in range(count + 2):
        if block + _PREFETCH_BLOCKS < count:
            _prefetch(at, block + _PREFETCH_BLOCKS)
        first, second, _ = _slot(scratch, block)
        ratios, roots, found = _slot(scratch, block - 1)
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
            _encode(at, block - 2, scratch)


@inline
def update_blocks(at, count, scratch, c):  # type: ignore[no-untyped-def]
    """Update whole blocks, in a step that `is_bare`.

    Args:
        at: the blocks.
        count: the number of blocks, at least 1.
        scratch: uint64: the address of SCRATCH_BYTES.
        c: the constants.
    """
    choose_width()
    eps = eps_beside_blocks(c.eps, c.one_minus_beta2)
    if c.decoupled_decay == c.zero:
        _update(at, count, scratch, bare_with(c, NO_DECAY, eps, NO_FLOOR, NO_FLOOR, NO_FLOOR))
    else:
        _update(at, count, scratch, bare_with(c, c.decoupled_decay, eps, NO_FLOOR, NO_FLOOR, NO_FLOOR))


@inlined
def blocks_at(param, grad, exp_avg, exp_avg_sq, begin):  # type: ignore[no-untyped-def]
    """Return neighbouring blocks, of which the first begins at element `begin`.

    Args:
        param: uint64: the address of the first block's parameters.
        grad: uint64: the address of the first block's gradients.
        exp_avg: the first moment in 8 bits.
        exp_avg_sq: the second moment.
        begin: uint64: the first block's first element.
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
def update_rest(at, size, scratch, c):  # type: ignore[no-untyped-def]
    """Update the last block of an array, which is not whole, in a buffer padded with copies of its last element.

    So the largest number of the padded block is that of the elements it has, even where that is not finite.

    Args:
        at: the block.
        size: the number of its elements.
        scratch: uint64: the address of SCRATCH_BYTES + REST_BYTES.
        c: the constants of a step that `is_bare`.
    """
    param = scratch + np.uint64(SCRATCH_BYTES)
    grad, exp_avg = param + _REAL_BYTES, param + np.uint64(2) * _REAL_BYTES
    exp_avg_sq = exp_avg + _SIZE
    _fill(at.param, size, _reals(param, 0))
    _fill(at.grad, size, _reals(grad, 0))
    _fill(at.exp_avg, size, _codes(exp_avg, 0))
    _fill(at.exp_avg_sq, size, _codes(exp_avg_sq, 0))
    padded = Blocks(param, grad, exp_avg, exp_avg_sq, at.exp_avg_scale, at.exp_avg_sq_scale, at.dither)
    update_blocks(padded, blocks_of(size), scratch, c)
    copy_bytes(param, at.param, np.uint64(4 * size))
    copy_bytes(exp_avg, at.exp_avg, np.uint64(size))
    copy_bytes(exp_avg_sq, at.exp_avg_sq, np.uint64(size))


@inline
def _fill(address, size, block):  # type: ignore[no-untyped-def]
    """Copy `size` elements into a block, and fill the rest of it with the last one."""
    values = array_at(address, np.uint64(size), block)
    for i in range(block.size):
        block[i] = values[min(i, size - 1)]
