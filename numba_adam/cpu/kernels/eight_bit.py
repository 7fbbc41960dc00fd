"""Moments in 8 bits, decoded and encoded a tile of blocks at a time. Imports Numba.

A block of BLOCK elements shares two scales. They depend on all updated elements of the block, so roots and ratios stay
in scratch buffers until then.
"""

from __future__ import annotations

import numpy as np

from numba_adam.cpu.kernels.compile import array_inlined, inline, inlined, noalias_inlined
from numba_adam.cpu.kernels.formats import bits_of, from_bits
from numba_adam.cpu.kernels.intrinsics import array_at
from numba_adam.cpu.kernels.vector_width import vectors_of
from numba_adam.numerics import eight_bit, eight_bit_codecs
from numba_adam.numerics.bind import bind
from numba_adam.numerics.eight_bit import BLOCK
from numba_adam.numerics.eight_bit_codecs import RATIO_SPAN, ROOT_SPAN
from numba_adam.numerics.operations import product

choose_width = vectors_of("8-bit")
_names = {"bits_of": bits_of, "from_bits": from_bits, "product": inlined(product)}
widen_root = inlined(bind(eight_bit_codecs.widen_root, **_names))
widen_ratio = inlined(bind(eight_bit_codecs.widen_ratio, **_names))
narrow_root = inlined(bind(eight_bit_codecs.narrow_root, **_names))
narrow_ratio = inlined(bind(eight_bit_codecs.narrow_ratio, **_names))
ratio_of = inlined(bind(eight_bit_codecs.ratio_of, **_names))
_block_unit = inlined(eight_bit_codecs.block_unit)
_block_scale = inlined(eight_bit_codecs.block_scale)
eps_beside_blocks = inlined(eight_bit_codecs.eps_beside_blocks)
blocks_of = inlined(eight_bit.blocks_of)
following_dither = inlined(eight_bit_codecs.following_dither)
threshold_of = inlined(eight_bit_codecs.threshold_of)
other_threshold = inlined(eight_bit_codecs.other_threshold)

_MAGNITUDE = np.uint32(0x7FFFFFFF)
_ZERO = np.float32(0)
_BYTES, _FLOAT32 = np.empty(0, np.uint8), np.empty(0, np.float32)


@inlined
def _block(operand, start, size):  # type: ignore[no-untyped-def]
    """Return the codes of a block of `size` elements that begins at `start`, and its scale, as an array of 1."""
    codes = array_at(operand.address + start, size, _BYTES)
    return codes, array_at(operand.scales + start // np.uint64(BLOCK) * np.uint64(4), np.uint64(1), _FLOAT32)


@array_inlined
def _slice(values, start, size):  # type: ignore[no-untyped-def]
    """Return `size` elements of an array, from `start` on. Numba's own slicing is slower."""
    return array_at(np.uint64(values.ctypes.data) + start * np.uint64(values.itemsize), size, values)


@inline
def decode_moments(exp_avg, exp_avg_sq, begin, ratios, roots):  # type: ignore[no-untyped-def]
    """Decode a tile of both moments.

    Args:
        exp_avg: the first moment in 8 bits; with address 0, `ratios` stays unchanged.
        exp_avg_sq: the second moment.
        begin: uint64: the tile's first element.
        ratios: receives the first moment.
        roots: receives the second moment.
    """
    choose_width()
    for start in range(0, roots.size, BLOCK):
        here, size = np.uint64(start), np.uint64(min(BLOCK, roots.size - start))
        codes, unit = _block(exp_avg_sq, begin + here, size)
        out = _slice(roots, here, size)
        if exp_avg.address != 0:
            own_codes, own_unit = _block(exp_avg, begin + here, size)
            own = _slice(ratios, here, size)
            for i in range(out.size):
                own[i] = widen_ratio(own_codes[i], own_unit[0]) * widen_root(codes[i], unit[0])
        for i in range(out.size):
            root = widen_root(codes[i], unit[0])
            out[i] = root * root


@inline
def encode_moments(ratios, roots, exp_avg, exp_avg_sq, begin, turn):  # type: ignore[no-untyped-def]
    """Encode a tile of both moments; arguments as for `decode_moments`. Overwrites `ratios` and `roots`.

    `turn` is the difference between the dithers of neighbours: DITHER_STEP, or 0 for every dither to be the key.
    """
    choose_width()
    for start in range(0, roots.size, BLOCK):
        here, size = np.uint64(start), np.uint64(min(BLOCK, roots.size - start))
        own, other = _slice(ratios, here, size), _slice(roots, here, size)
        largest, largest_root = np.uint32(0), np.uint32(0)
        for i in range(other.size):
            root = np.sqrt(other[i]) + _ZERO  # negative zero becomes zero
            if exp_avg.address != 0:
                own[i] = ratio_of(own[i], root)
            other[i] = root
        for i in range(other.size):
            largest, largest_root = larger(largest, own[i]), larger(largest_root, other[i])
        _encode_block(own, other, (largest, largest_root), exp_avg, exp_avg_sq, begin + here, turn)


@inlined
def larger(largest, value):  # type: ignore[no-untyped-def]
    """Return the bits of the larger magnitude: of `largest`, which is bits already, and of `value`."""
    return max(largest, np.uint32(bits_of(value) & _MAGNITUDE))


@inlined
def _encode_block(ratios, roots, found, exp_avg, exp_avg_sq, start, turn):  # type: ignore[no-untyped-def]
    """Encode a block, given the bits of its largest ratio and its largest root."""
    size = np.uint64(roots.size)
    codes, unit = _block(exp_avg_sq, start, size)
    dither = np.uint32(np.uint64(exp_avg_sq.key) + start * np.uint64(turn))
    if exp_avg.address != 0:
        own_codes, own_unit = _block(exp_avg, start, size)
        encode_both(ratios, roots, found, (own_codes, codes), (own_unit, unit), dither, turn)
    else:
        _encode_roots(roots, codes, scale_block(found[1], ROOT_SPAN, unit), dither, turn)


@inlined
def encode_both(ratios, roots, found, codes, units, dither, turn):  # type: ignore[no-untyped-def]
    """Encode a block of both moments.

    Args:
        ratios: the first moment as ratios.
        roots: the second moment as roots.
        found: the bits of the largest ratio and of the largest root.
        codes: receives the codes of both moments.
        units: receives both scales.
        dither: of the first element.
        turn: as for `encode_moments`.
    """
    own_scale = scale_block(found[0], RATIO_SPAN, units[0])
    scale = scale_block(found[1], ROOT_SPAN, units[1])
    _encode_pairs(ratios, roots, codes[0], codes[1], own_scale, scale, dither, turn)


@inlined
def scale_block(largest, span, unit):  # type: ignore[no-untyped-def]
    """Set a block's scale; return the factor that its elements are multiplied by."""
    scale, unit[0] = scales_of(largest, span)
    return scale


@inlined
def scales_of(largest, span):  # type: ignore[no-untyped-def]
    """Return the factor that a block's elements are multiplied by, and the scale that is stored, given `largest`."""
    return _block_scale(from_bits(largest), span), _block_unit(from_bits(largest), span)


@noalias_inlined
def _encode_pairs(ratios, roots, own_codes, codes, own_scale, scale, dither, turn):  # type: ignore[no-untyped-def]
    choose_width()
    for i in range(roots.size):
        threshold = threshold_of(dither)
        own_threshold = threshold if turn == 0 else other_threshold(threshold)
        own_codes[i] = narrow_ratio(ratios[i], own_scale, own_threshold)
        codes[i] = narrow_root(roots[i], scale, threshold)
        dither = following_dither(dither, turn)


@noalias_inlined
def _encode_roots(roots, codes, scale, dither, turn):  # type: ignore[no-untyped-def]
    choose_width()
    for i in range(roots.size):
        codes[i] = narrow_root(roots[i], scale, threshold_of(dither))
        dither = following_dither(dither, turn)
