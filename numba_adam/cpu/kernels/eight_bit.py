"""Moments in 8 bits, decoded and encoded a tile of blocks at a time. Imports Numba.

A block of BLOCK elements shares two scales. They are known only when the whole block has been updated, so roots and
ratios wait in the tile's rooms until then.
"""

from __future__ import annotations

import numpy as np

from numba_adam.cpu.kernels.compile import apart_inlined, bind, inline, inlined
from numba_adam.cpu.kernels.formats import bits_of, from_bits
from numba_adam.cpu.kernels.intrinsics import array_at
from numba_adam.numerics import codecs, eight_bit
from numba_adam.numerics.codecs import RATIO_SPAN, ROOT_SPAN
from numba_adam.numerics.eight_bit import BLOCK
from numba_adam.numerics.operations import product

_names = {"bits_of": bits_of, "from_bits": from_bits, "product": inlined(product)}
widen_root = inlined(bind(codecs.widen_root, **_names))
widen_ratio = inlined(bind(codecs.widen_ratio, **_names))
_narrow_root = inlined(bind(codecs.narrow_root, **_names))
_narrow_ratio = inlined(bind(codecs.narrow_ratio, **_names))
ratio_of = inlined(bind(codecs.ratio_of, **_names))
_block_unit = inlined(codecs.block_unit)
_block_scale = inlined(codecs.block_scale)
eps_beside_blocks = inlined(codecs.eps_beside_blocks)
blocks_of = inlined(eight_bit.blocks_of)
_following_dither = inlined(codecs.following_dither)
_threshold_of = inlined(codecs.threshold_of)
_other_threshold = inlined(codecs.other_threshold)

_MAGNITUDE = np.uint32(0x7FFFFFFF)
_ZERO = np.float32(0)
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
                own[i] = widen_ratio(own_codes[i], own_unit[0]) * widen_root(codes[i], unit[0])
        for i in range(out.size):
            root = widen_root(codes[i], unit[0])
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
            root = np.sqrt(other[i]) + _ZERO  # the negative zero becomes zero
            if exp_avg.address != 0:
                own[i] = ratio_of(own[i], root)
            other[i] = root
        for i in range(other.size):
            largest, largest_root = larger(largest, own[i]), larger(largest_root, other[i])
        _close_block(own, other, (largest, largest_root), exp_avg, exp_avg_sq, begin + here, turn)


@inlined
def larger(largest, value):  # type: ignore[no-untyped-def]
    """Return the larger of two magnitudes, as bits, the first one given as bits already."""
    return max(largest, np.uint32(bits_of(value) & _MAGNITUDE))


@inlined
def _close_block(ratios, roots, found, exp_avg, exp_avg_sq, start, turn):  # type: ignore[no-untyped-def]
    """Encode a block whose largest ratio's and root's bits have been found."""
    size = np.uint64(roots.size)
    codes, unit = _block(exp_avg_sq, start, size)
    dither = np.uint32(np.uint64(exp_avg_sq.key) + start * np.uint64(turn))
    if exp_avg.address != 0:
        own_codes, own_unit = _block(exp_avg, start, size)
        encode_both(ratios, roots, found, (own_codes, codes), (own_unit, unit), dither, turn)
    else:
        _encode_roots(roots, codes, _scale_block(found[1], ROOT_SPAN, unit), dither, turn)


@inlined
def encode_both(ratios, roots, found, codes, units, dither, turn):  # type: ignore[no-untyped-def]
    """Encode a block of both moments.

    Args:
        ratios: the first moment's form.
        roots: the second one's.
        found: the bits of the largest ratio and root.
        codes: where both moments' codes are put.
        units: where both scales are put.
        dither: the first element's.
        turn: as for `close_moments`.
    """
    own_scale = _scale_block(found[0], RATIO_SPAN, units[0])
    scale = _scale_block(found[1], ROOT_SPAN, units[1])
    _encode_pairs(ratios, roots, codes[0], codes[1], own_scale, scale, dither, turn)


@inlined
def _scale_block(largest, span, unit):  # type: ignore[no-untyped-def]
    """Set a block's scale; return what its elements are multiplied by."""
    unit[0] = _block_unit(from_bits(largest), span)
    return _block_scale(from_bits(largest), span)


@apart_inlined
def _encode_pairs(ratios, roots, own_codes, codes, own_scale, scale, dither, turn):  # type: ignore[no-untyped-def]
    for i in range(roots.size):
        threshold = _threshold_of(dither)
        own_threshold = threshold if turn == 0 else _other_threshold(threshold)
        own_codes[i] = _narrow_ratio(ratios[i], own_scale, own_threshold)
        codes[i] = _narrow_root(roots[i], scale, threshold)
        dither = _following_dither(dither, turn)


@apart_inlined
def _encode_roots(roots, codes, scale, dither, turn):  # type: ignore[no-untyped-def]
    for i in range(roots.size):
        codes[i] = _narrow_root(roots[i], scale, _threshold_of(dither))
        dither = _following_dither(dither, turn)
