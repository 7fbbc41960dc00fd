"""Adam with moments in 8 bits and no other work in the pass: whole blocks, several at a time. Imports Numba.

Roots and divisions occupy one execution unit of the CPU for long, and the rest of a block's work other units. So the
loop that finishes a block, with its roots and divisions, also begins the next block, and encodes an earlier one. That
is not the block just before: its scales need its largest numbers, two divisions and a broadcast, one after the other,
for which the CPU would wait in each block (a sixth of the time on AMD Zen 5). The scratch buffers of these blocks are
much smaller than the innermost cache. Buffers for all blocks of a tile would compete there with prefetched lines.
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
    scales_of,
    threshold_of,
    widen_ratio,
    widen_root,
)
from numba_adam.cpu.kernels.element import NO_DECAY, NO_FLOOR, adapt, bare_with, moments
from numba_adam.cpu.kernels.intrinsics import LINE, array_at, copy_bytes, nonzero, pointer_at, stay_called
from numba_adam.cpu.kernels.prefetch import prefetch_lines_of
from numba_adam.numerics.eight_bit import BLOCK
from numba_adam.numerics.eight_bit_codecs import DITHER_STEP, RATIO_SPAN, ROOT_SPAN

_SIZE = np.uint64(BLOCK)
_REAL_BYTES, _SCALE_BYTES = np.uint64(4 * BLOCK), np.uint64(4)  # of a block
_AHEAD = 3  # blocks from the one that is encoded to the one that begins
_DELAY = _AHEAD - 1  # blocks from the one that is finished to the one that is encoded: as many are in scratch
_FOUND = np.uint64((2 + 2 * _DELAY) * 4 * BLOCK)  # bytes in scratch before the bits of the largest numbers
SCRATCH_BYTES = int(_FOUND) + _DELAY * 2 * 4  # two moments of a block; ratios, roots and the largest ones of the others
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
def _slot(block):  # type: ignore[no-untyped-def]
    """Return which of the places in scratch belongs to a finished block."""
    return np.uint64(block) % np.uint64(_DELAY)


@inlined
def _coded(scratch, block):  # type: ignore[no-untyped-def]
    """Return a finished block's scratch arrays: ratios, roots, and the bits of the largest of each."""
    slot = _slot(block)
    found = array_at(scratch + _FOUND + slot * np.uint64(8), np.uint64(2), _WORDS)
    return _reals(scratch, np.uint64(2) + slot), _reals(scratch, np.uint64(2 + _DELAY) + slot), found


@inlined
def _pointers(scratch):  # type: ignore[no-untyped-def]
    """Return pointers to the two moments of a block, to the ratios and roots of all others, and to the largest ones."""
    ratios = scratch + np.uint64(2) * _REAL_BYTES
    roots = ratios + np.uint64(_DELAY) * _REAL_BYTES
    moments = pointer_at(scratch, _REALS), pointer_at(scratch + _REAL_BYTES, _REALS)
    return moments, (pointer_at(ratios, _REALS), pointer_at(roots, _REALS)), pointer_at(scratch + _FOUND, _WORDS)


@inlined
def _constants(c, decay):  # type: ignore[no-untyped-def]
    """Return the constants of a step that `is_bare`, with a decay, which is not zero; None: without one."""
    if decay is None:
        return bare_with(c, NO_DECAY, c.eps, NO_FLOOR, NO_FLOOR, NO_FLOOR)
    return bare_with(c, nonzero(decay), c.eps, NO_FLOOR, NO_FLOOR, NO_FLOOR)


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
def _finish(param, first, second, ratios, roots, found, c):  # type: ignore[no-untyped-def]
    """Update the parameters of a block, given its moments, and compute ratios and roots."""
    choose_width()
    largest, largest_root = np.uint32(0), np.uint32(0)
    for i in range(BLOCK):
        param[i], ratios[i], roots[i] = _adapted(param[i], first[i], second[i], c)
        largest, largest_root = larger(largest, ratios[i]), larger(largest_root, roots[i])
    found[0], found[1] = largest, largest_root


@inlined
def _dither(first, block):  # type: ignore[no-untyped-def]
    """Return the dither of a block's first element, given that of the first block."""
    return np.uint32(np.uint64(first) + np.uint64(block) * np.uint64(BLOCK) * np.uint64(DITHER_STEP))


@inlined
def _prefetch(at, block):  # type: ignore[no-untyped-def]
    """Prefetch a block."""
    reals, codes = 4 * BLOCK // LINE, BLOCK // LINE
    prefetch_lines_of(at.param + np.uint64(block) * _REAL_BYTES, reals)
    prefetch_lines_of(at.grad + np.uint64(block) * _REAL_BYTES, reals)
    prefetch_lines_of(at.exp_avg + np.uint64(block) * _SIZE, codes)
    prefetch_lines_of(at.exp_avg_sq + np.uint64(block) * _SIZE, codes)


@noalias_called
def _finish_begin_encode(at, reals, codes, scales, scratch, count, decay, c):  # type: ignore[no-untyped-def]
    """Finish a block, begin the next one and encode an earlier one, element by element, for all blocks from _AHEAD on.

    The loops of `_finish`, `_begin` and `_encode` in one. Arrays are passed as pointers, in tuples. An element of the
    block that begins takes the place in scratch of the element that is finished, and this that of the encoded one.

    Args:
        at: the blocks.
        reals: the parameters and gradients of all blocks.
        codes: the codes of both moments of all blocks.
        scales: the scales of both.
        scratch: from `_pointers`.
        count: uint64: the number of blocks, more than _AHEAD.
        decay: float32: the decoupled decay, not zero; None without one.
        c: the constants; their decay does not count.
    """
    stay_called()
    choose_width()
    param, grad = reals
    own_codes, all_codes = codes
    own_units, all_units = scales
    (first, second), (ratios, roots), found = scratch
    own = _constants(c, decay)
    for block in range(np.uint64(_AHEAD), count):
        if block + np.uint64(_PREFETCH_BLOCKS) < count:
            _prefetch(at, block + np.uint64(_PREFETCH_BLOCKS))
        own_unit, unit, encoded = own_units[block], all_units[block], block - np.uint64(_AHEAD)
        slot = _slot(encoded)  # and that of the block that is finished
        own_scale, own_units[encoded] = scales_of(found[np.uint64(2) * slot], RATIO_SPAN)
        scale, all_units[encoded] = scales_of(found[np.uint64(2) * slot + np.uint64(1)], ROOT_SPAN)
        largest, largest_root, dither = np.uint32(0), np.uint32(0), _dither(at.dither, encoded)
        begin = block * _SIZE
        for i in range(_SIZE):
            here, coded = begin + i, slot * _SIZE + i
            exp_avg, exp_avg_sq, ratio, root = first[i], second[i], ratios[coded], roots[coded]
            first[i], second[i] = _moments_of(grad[here], own_codes[here], all_codes[here], own_unit, unit, own)
            param_at, code_at = here - _SIZE, here - np.uint64(_AHEAD) * _SIZE
            param[param_at], ratios[coded], roots[coded] = _adapted(param[param_at], exp_avg, exp_avg_sq, own)
            largest, largest_root = larger(largest, ratios[coded]), larger(largest_root, roots[coded])
            threshold = threshold_of(dither)
            own_codes[code_at] = narrow_ratio(ratio, own_scale, other_threshold(threshold))
            all_codes[code_at] = narrow_root(root, scale, threshold)
            dither = following_dither(dither, DITHER_STEP)
        found[np.uint64(2) * slot], found[np.uint64(2) * slot + np.uint64(1)] = largest, largest_root


@inlined
def _encode(at, block, scratch):  # type: ignore[no-untyped-def]
    """Encode a finished block."""
    ratios, roots, found = _coded(scratch, block)
    codes = _codes(at.exp_avg, block), _codes(at.exp_avg_sq, block)
    units = _scale(at.exp_avg_scale, block), _scale(at.exp_avg_sq_scale, block)
    encode_both(ratios, roots, (found[0], found[1]), codes, units, _dither(at.dither, block), DITHER_STEP)


@inlined
def _turns(at, count, scratch, decay, c):  # type: ignore[no-untyped-def]
    """Begin every block from _AHEAD on, finish the one before it and encode the block _AHEAD before it."""
    reals = pointer_at(at.param, _REALS), pointer_at(at.grad, _REALS)
    codes = pointer_at(at.exp_avg, _CODES), pointer_at(at.exp_avg_sq, _CODES)
    scales = pointer_at(at.exp_avg_scale, _REALS), pointer_at(at.exp_avg_sq_scale, _REALS)
    _finish_begin_encode(at, reals, codes, scales, _pointers(scratch), np.uint64(count), decay, c)


@inlined
def _update(at, count, scratch, decay, c):  # type: ignore[no-untyped-def]
    """Update blocks; see `update_blocks`."""
    first, second = _reals(scratch, 0), _reals(scratch, 1)
    block = 0
    while block < count + _AHEAD:
        if block == _AHEAD and block < count:
            _turns(at, count, scratch, decay, c)
            block = count
        if block >= _AHEAD:
            _encode(at, block - _AHEAD, scratch)
        if 1 <= block <= count:
            ratios, roots, found = _coded(scratch, block - 1)
            _finish(_reals(at.param, block - 1), first, second, ratios, roots, found, c)
        if block < count:
            own_unit, unit = _scale(at.exp_avg_scale, block), _scale(at.exp_avg_sq_scale, block)
            grad, own_codes, codes = _reals(at.grad, block), _codes(at.exp_avg, block), _codes(at.exp_avg_sq, block)
            _begin(grad, own_codes, codes, own_unit, unit, first, second, c)
        block += 1


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
