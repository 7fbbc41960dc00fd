"""Adam with moments in 8 bits and no other work in the pass: whole blocks, three at a time. Imports Numba.

Roots and divisions occupy one execution unit of the CPU for long, and the rest of a block's work other units. So the
loop that finishes a block, with its roots and divisions, also begins the next block, and encodes the block before,
whose scales are known by then. The scratch buffers of these blocks are much smaller than the innermost cache. Buffers
for all blocks of a tile would compete there with prefetched lines.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from numba_adam.cpu.kernels.compile import array_inlined, inline, inlined, noalias_called, noalias_inlined
from numba_adam.cpu.kernels.eight_bit import (
    blocks_of,
    choose_width,
    encode_both,
    eps_beside_blocks,
    following_dither,
    larger,
    narrow_ratio,
    narrow_root,
    other_threshold,
    ratio_of,
    scale_block,
    threshold_of,
    widen_ratio,
    widen_root,
)
from numba_adam.cpu.kernels.element import NO_DECAY, NO_FLOOR, adapt, bare_with, moments
from numba_adam.cpu.kernels.intrinsics import LINE, array_at, copy_bytes, pointer_at, stay_called
from numba_adam.cpu.kernels.prefetch import prefetch_lines_of
from numba_adam.numerics.eight_bit import BLOCK
from numba_adam.numerics.eight_bit_codecs import DITHER_STEP, RATIO_SPAN, ROOT_SPAN

_SIZE = np.uint64(BLOCK)
_REAL_BYTES, _SCALE_BYTES = np.uint64(4 * BLOCK), np.uint64(4)  # of a block
_SLOTS = 4  # blocks in scratch: three are in progress; with four, the remainder is a mask
_COLUMN = np.uint64(_SLOTS) * _REAL_BYTES
_UNUSED = 2 * BLOCK + 2 * 4  # where codes and scales are written that nobody reads
SCRATCH_BYTES = int(2 * _COLUMN) + _SLOTS * 2 * 4 + _UNUSED  # two numbers for each element in progress, for each block
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
    found = array_at(_found(scratch, block), np.uint64(2), _WORDS)
    return _reals(scratch, slot), _reals(scratch + _COLUMN, slot), found


@inlined
def _found(scratch, block):  # type: ignore[no-untyped-def]
    """Return the address of the bits of a block's largest ratio and root."""
    return scratch + np.uint64(2) * _COLUMN + np.uint64(block) % np.uint64(_SLOTS) * np.uint64(8)


@inlined
def _ratios(scratch, block):  # type: ignore[no-untyped-def]
    """Return a pointer to a block's ratios, which are first moments at first."""
    return pointer_at(scratch + np.uint64(block) % np.uint64(_SLOTS) * _REAL_BYTES, _REALS)


@inlined
def _roots(scratch, block):  # type: ignore[no-untyped-def]
    """Return a pointer to a block's roots, which are second moments at first."""
    return _ratios(scratch + _COLUMN, block)


@inlined
def _constants(c, decay):  # type: ignore[no-untyped-def]
    """Return the constants of a step that `is_bare`, with a decay; None: without one."""
    if decay is None:
        return bare_with(c, NO_DECAY, c.eps, NO_FLOOR, NO_FLOOR, NO_FLOOR)
    return bare_with(c, decay, c.eps, NO_FLOOR, NO_FLOOR, NO_FLOOR)


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


class _Coder(NamedTuple):
    """What the elements of a block are encoded with."""

    own_scale: Any  # float32: of the ratios
    scale: Any  # float32: of the roots
    dither: Any  # uint32: of the first element


@noalias_called
def _finish_begin_encode(begun, finished, encoded, units, coder, decay, c):  # type: ignore[no-untyped-def]
    """Finish a block, begin the next one and encode the one before, element by element.

    The loops of `_finish`, `_begin` and `_encode` in one. Arrays are passed as pointers, in tuples.

    Args:
        begun: of the block that begins: gradients, codes of both moments; receives both moments.
        finished: of the block that is finished: parameters, ratios, roots and the largest ones' bits; updated.
        encoded: of the block that is encoded: ratios and roots; receives the codes of both moments.
        units: float32: the scales of the block that begins.
        coder: what the encoded elements need.
        decay: float32: the decoupled decay; None without one.
        c: the constants; their decay does not count.
    """
    stay_called()
    choose_width()
    grad, own_codes, codes, first, second = begun
    param, ratios, roots, found = finished
    old_ratios, old_roots, own_target, target = encoded
    own = _constants(c, decay)
    largest, largest_root, dither = np.uint32(0), np.uint32(0), coder.dither
    for i in range(BLOCK):
        exp_avg, exp_avg_sq = _moments_of(grad[i], own_codes[i], codes[i], units[0], units[1], own)
        param[i], ratios[i], roots[i] = _adapted(param[i], ratios[i], roots[i], own)
        largest, largest_root = larger(largest, ratios[i]), larger(largest_root, roots[i])
        first[i], second[i] = exp_avg, exp_avg_sq
        threshold = threshold_of(dither)
        own_target[i] = narrow_ratio(old_ratios[i], coder.own_scale, other_threshold(threshold))
        target[i] = narrow_root(old_roots[i], coder.scale, threshold)
        dither = following_dither(dither, DITHER_STEP)
    found[0], found[1] = largest, largest_root


@inlined
def _dither(at, block):  # type: ignore[no-untyped-def]
    """Return the dither of a block's first element."""
    return np.uint32(np.uint64(at.dither) + np.uint64(block * BLOCK) * np.uint64(DITHER_STEP))


@inlined
def _encode(at, block, scratch):  # type: ignore[no-untyped-def]
    """Encode a finished block."""
    ratios, roots, found = _slot(scratch, block)
    codes = _codes(at.exp_avg, block), _codes(at.exp_avg_sq, block)
    units = _scale(at.exp_avg_scale, block), _scale(at.exp_avg_sq_scale, block)
    encode_both(ratios, roots, (found[0], found[1]), codes, units, _dither(at, block), DITHER_STEP)


@inlined
def _targets(at, block, scratch):  # type: ignore[no-untyped-def]
    """Return where a block's codes and scales are written; block -1 is none, and is written into the scratch."""
    if block < 0:
        unused = scratch + np.uint64(SCRATCH_BYTES - _UNUSED)
        scales = unused + np.uint64(2) * _SIZE
        return unused, unused + _SIZE, scales, scales + _SCALE_BYTES
    skip, scale = np.uint64(block) * _SIZE, np.uint64(block) * _SCALE_BYTES
    return at.exp_avg + skip, at.exp_avg_sq + skip, at.exp_avg_scale + scale, at.exp_avg_sq_scale + scale


@inlined
def _turn(at, block, scratch, decay, c):  # type: ignore[no-untyped-def]
    """Begin a block, finish the one before and encode the one before that, if there is one."""
    own_target, target, own_scale, scale = _targets(at, block - 2, scratch)
    found = _slot(scratch, block - 2)[2]
    coder = _Coder(
        scale_block(found[0], RATIO_SPAN, _scale(own_scale, 0)),
        scale_block(found[1], ROOT_SPAN, _scale(scale, 0)),
        _dither(at, block - 2),
    )
    skip, place = np.uint64(block) * _SIZE, np.uint64(block) * _REAL_BYTES
    begun = (
        pointer_at(at.grad + place, _REALS),
        pointer_at(at.exp_avg + skip, _CODES),
        pointer_at(at.exp_avg_sq + skip, _CODES),
        _ratios(scratch, block),
        _roots(scratch, block),
    )
    finished = (
        pointer_at(at.param + place - _REAL_BYTES, _REALS),
        _ratios(scratch, block - 1),
        _roots(scratch, block - 1),
        pointer_at(_found(scratch, block - 1), _WORDS),
    )
    encoded = (
        _ratios(scratch, block - 2),
        _roots(scratch, block - 2),
        pointer_at(own_target, _CODES),
        pointer_at(target, _CODES),
    )
    units = _scale(at.exp_avg_scale, block)[0], _scale(at.exp_avg_sq_scale, block)[0]
    _finish_begin_encode(begun, finished, encoded, units, coder, decay, c)


@inlined
def _prefetch(at, block):  # type: ignore[no-untyped-def]
    """Prefetch a block."""
    reals, codes = 4 * BLOCK // LINE, BLOCK // LINE
    prefetch_lines_of(at.param + np.uint64(block) * _REAL_BYTES, reals)
    prefetch_lines_of(at.grad + np.uint64(block) * _REAL_BYTES, reals)
    prefetch_lines_of(at.exp_avg + np.uint64(block) * _SIZE, codes)
    prefetch_lines_of(at.exp_avg_sq + np.uint64(block) * _SIZE, codes)


@inlined
def _update(at, count, scratch, decay, c):  # type: ignore[no-untyped-def]
    """Update blocks; see `update_blocks`."""
    for block in range(count + 2):
        if block + _PREFETCH_BLOCKS < count:
            _prefetch(at, block + _PREFETCH_BLOCKS)
        first, second, _ = _slot(scratch, block)
        ratios, roots, found = _slot(scratch, block - 1)
        own_unit, unit = _scale(at.exp_avg_scale, block), _scale(at.exp_avg_sq_scale, block)
        grad, own_codes, codes = _reals(at.grad, block), _codes(at.exp_avg, block), _codes(at.exp_avg_sq, block)
        if block == 0:
            _begin(grad, own_codes, codes, own_unit, unit, first, second, c)
        elif block < count:
            _turn(at, block, scratch, decay, c)
        else:
            if block == count:
                _finish(_reals(at.param, block - 1), ratios, roots, found, c)
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
        _update(at, count, scratch, None, bare_with(c, NO_DECAY, eps, NO_FLOOR, NO_FLOOR, NO_FLOOR))
    else:
        own = bare_with(c, c.decoupled_decay, eps, NO_FLOOR, NO_FLOOR, NO_FLOOR)
        _update(at, count, scratch, c.decoupled_decay, own)


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
