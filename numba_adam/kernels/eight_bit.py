"""Moments in 8 bits: read, updated and written again, a tile of whole blocks at a time. Imports Numba.

A block of BLOCK elements shares two scales. They are known only when the whole block has been updated, so roots and
ratios wait in the tile's rooms until then.
"""

from __future__ import annotations

import numpy as np

from numba_adam import codecs, eight_bit
from numba_adam.codecs import DITHER_STEP, RATIO_SPAN, ROOT_SPAN
from numba_adam.eight_bit import BLOCK
from numba_adam.kernels.compile import bind, inline, inlined
from numba_adam.kernels.element import adapt, bare, moments
from numba_adam.kernels.formats import bits_of, from_bits
from numba_adam.kernels.intrinsics import array_at

_names = {"bits_of": bits_of, "from_bits": from_bits, "product": inlined(codecs.product)}
_widen_root = inlined(bind(codecs.widen_root, **_names))
_names["widen_root"] = _widen_root
_widen_ratio = inlined(bind(codecs.widen_ratio, **_names))
_narrow_root = inlined(bind(codecs.narrow_root, **_names))
_narrow_ratio = inlined(bind(codecs.narrow_ratio, **_names))
_ratio_of = inlined(codecs.ratio_of)
_block_unit = inlined(codecs.block_unit)
_block_scale = inlined(codecs.block_scale)
blocks_of = inlined(eight_bit.blocks_of)
_following_dither = inlined(codecs.following_dither)
_other_dither = inlined(codecs.other_dither)

_MAGNITUDE = np.uint32(0x7FFFFFFF)
_BYTES, _FLOAT32 = np.empty(0, np.uint8), np.empty(0, np.float32)


@inlined
def _block(source, start, size):  # type: ignore[no-untyped-def]
    """Return the codes of `size` elements from a block's first one on, and where the block's scale stands."""
    codes = array_at(source.address + start, size, _BYTES)
    return codes, array_at(source.scales + start // np.uint64(BLOCK) * np.uint64(4), np.uint64(1), _FLOAT32)


@inlined
def _part(values, start, size):  # type: ignore[no-untyped-def]
    """Return `size` elements of an array, from `start` on."""
    return array_at(np.uint64(values.ctypes.data) + start * np.uint64(values.itemsize), size, values)


@inline
def open_moments(exp_avg, exp_avg_sq, begin, ratios, roots):  # type: ignore[no-untyped-def]
    """Decode a tile of both moments.

    Args:
        exp_avg: the first moment in 8 bits, or one at address 0: then `ratios` is left alone.
        exp_avg_sq: the second one.
        begin: uint64: the tile's first element.
        ratios: where the first moment is put.
        roots: where the second one is put.
    """
    for start in range(0, roots.size, BLOCK):
        here, size = np.uint64(start), np.uint64(min(BLOCK, roots.size - start))
        codes, unit = _block(exp_avg_sq, begin + here, size)
        out = _part(roots, here, size)
        if exp_avg.address != 0:
            own_codes, own_unit = _block(exp_avg, begin + here, size)
            own = _part(ratios, here, size)
            for i in range(out.size):
                own[i] = _widen_ratio(own_codes[i], own_unit[0]) * _widen_root(codes[i], unit[0])
        for i in range(out.size):
            root = _widen_root(codes[i], unit[0])
            out[i] = root * root


@inline
def close_moments(ratios, roots, exp_avg, exp_avg_sq, begin, turn):  # type: ignore[no-untyped-def]
    """Encode a tile of both moments; arguments as for `open_moments`. The moments given are overwritten.

    `turn` is what one element's dither differs by from the next one's: DITHER_STEP, or 0 for all to be the key.
    """
    for start in range(0, roots.size, BLOCK):
        here, size = np.uint64(start), np.uint64(min(BLOCK, roots.size - start))
        own, other = _part(ratios, here, size), _part(roots, here, size)
        largest, largest_root = np.uint32(0), np.uint32(0)
        for i in range(other.size):
            root = np.sqrt(other[i])
            if exp_avg.address != 0:
                own[i] = _ratio_of(own[i], root)
            other[i] = root
        for i in range(other.size):
            ratio, root = own[i], other[i]
            largest = max(largest, np.uint32(bits_of(ratio) & _MAGNITUDE))
            largest_root = max(largest_root, bits_of(root))
        _close_block(own, other, largest, largest_root, exp_avg, exp_avg_sq, begin + here, turn)


@inlined
def _close_block(ratios, roots, largest, largest_root, exp_avg, exp_avg_sq, start, turn):  # type: ignore[no-untyped-def]
    """Encode a block whose largest ratio's and root's bits are known."""
    codes, unit = _block(exp_avg_sq, start, np.uint64(roots.size))
    unit[0] = _block_unit(from_bits(largest_root), ROOT_SPAN)
    scale = _block_scale(from_bits(largest_root), ROOT_SPAN)
    dither = np.uint32(np.uint64(exp_avg_sq.key) + start * np.uint64(turn))
    if exp_avg.address != 0:
        own_codes, own_unit = _block(exp_avg, start, np.uint64(ratios.size))
        own_unit[0] = _block_unit(from_bits(largest), RATIO_SPAN)
        own_scale = _block_scale(from_bits(largest), RATIO_SPAN)
        _encode_both(ratios, roots, own_codes, codes, own_scale, scale, dither, turn)
    else:
        _encode_roots(roots, codes, scale, dither, turn)


@inline
def _encode_both(ratios, roots, own_codes, codes, own_scale, scale, dither, turn):  # type: ignore[no-untyped-def]
    for i in range(roots.size):
        own_dither = dither if turn == 0 else _other_dither(dither)
        own_codes[i] = _narrow_ratio(ratios[i], own_scale, own_dither)
        codes[i] = _narrow_root(roots[i], scale, dither)
        dither = _following_dither(dither, turn)


@inline
def _encode_roots(roots, codes, scale, dither, turn):  # type: ignore[no-untyped-def]
    for i in range(roots.size):
        codes[i] = _narrow_root(roots[i], scale, dither)
        dither = _following_dither(dither, turn)


@inline
def adam_eight_bit(param, grad, exp_avg, exp_avg_sq, begin, ratios, roots, found, constants):  # type: ignore[no-untyped-def]
    """Update a tile: as `open_moments`, `element.adam` and `close_moments` do, with less ado, where `is_bare`.

    First all blocks are updated, then all are encoded, so that no block waits for the divisions of its last elements.

    Args:
        param: the parameters.
        grad: their gradients.
        exp_avg: the first moment in 8 bits.
        exp_avg_sq: the second one.
        begin: uint64: the tile's first element.
        ratios: room for as many elements.
        roots: likewise.
        found: uint32: room for the largest ratio and root of every block of a tile.
        constants: of a step that `is_bare`.
    """
    c = bare(constants, constants.zero, constants.zero)
    for block in range(blocks_of(param.size)):
        here, size = _extent(block, param.size)
        own_codes, own_unit = _block(exp_avg, begin + here, size)
        codes, unit = _block(exp_avg_sq, begin + here, size)
        own, other = _part(ratios, here, size), _part(roots, here, size)
        pair = _part(param, here, size), _part(grad, here, size)
        largest = _adam_block(pair[0], pair[1], own_codes, codes, own_unit[0], unit[0], own, other, c)
        found[2 * block], found[2 * block + 1] = largest
    for block in range(blocks_of(param.size)):
        here, size = _extent(block, param.size)
        own, other = _part(ratios, here, size), _part(roots, here, size)
        largest, largest_root = found[2 * block], found[2 * block + 1]
        _close_block(own, other, largest, largest_root, exp_avg, exp_avg_sq, begin + here, DITHER_STEP)


@inlined
def _extent(block, size):  # type: ignore[no-untyped-def]
    """Return where a block of an array begins, and its size."""
    return np.uint64(block * BLOCK), np.uint64(min(BLOCK, size - block * BLOCK))


@inlined
def _adam_block(param, grad, own_codes, codes, own_unit, unit, ratios, roots, c):  # type: ignore[no-untyped-def]
    """Update a block's parameters; put the new moments into `ratios` and `roots`; return the largest ones' bits."""
    largest, largest_root = np.uint32(0), np.uint32(0)
    for i in range(param.size):
        old_root = _widen_root(codes[i], unit)
        old = _widen_ratio(own_codes[i], own_unit) * old_root
        exp_avg, exp_avg_sq = moments(param[i], grad[i], old, old_root * old_root, c)
        root = np.sqrt(exp_avg_sq)
        ratio = _ratio_of(exp_avg, root)
        ratios[i], roots[i] = ratio, root
        largest = max(largest, np.uint32(bits_of(ratio) & _MAGNITUDE))
        largest_root = max(largest_root, bits_of(root))
        param[i] = adapt(param[i], exp_avg, exp_avg_sq, c)
    return largest, largest_root
