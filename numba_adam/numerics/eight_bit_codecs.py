"""Moments in 8 bits, one element at a time: the codes, and the scales of blocks. Imports `operations` and NumPy.

docs/eight-bit-state.md explains the format. A block of elements shares two scales. The second moment is encoded as its
square root, and the first moment as its ratio to this root. The functions are plain Python, and kernels compile them
for every target.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from numba_adam.numerics.operations import bits_of, from_bits, product

Float32 = Any  # a NumPy scalar, or its compiled counterpart
Code = Any  # likewise, uint8
Word = Any  # likewise, uint32

_SIGN = np.uint32(0x80000000)
_MAGNITUDE = np.uint32(0x7FFFFFFF)
_ONE = np.uint32(1)

ROOT_SPAN = np.float32(502.0)  # the largest root has code 255: the leading bits of 2 + 502
RATIO_SPAN = np.float32(29.5)  # the largest ratio has code 127: the leading bits of 2 + 29.5
DITHER_STEP = np.uint32(0xC13FA9A9)  # from the dither of an element to that of the next
DITHER_TURN = np.uint32(0x9E3779B9)  # from the dither of a step to that of the next
TO_NEAREST = np.uint32(0x80000000)  # the dither that rounds to the nearest code
_TWO = np.float32(2.0)
_TWO_BITS = np.uint32(0x40000000)  # the bits of 2.0: one code for every 2**18 of the bits from here on
_CODE_BITS = np.uint32(18)
_DITHER_BITS = np.uint32(14)  # bits of a dither that are not used
_THRESHOLD_BITS = np.uint32(0x3FFFF)  # as many bits as rounding discards
_RATIO_SIGN = np.uint32(0x80)
_RATIO_BITS = np.uint32(0x7F << 18)  # the magnitude of a ratio
_FIRST_CODE = np.uint32(0x1001)  # code 1 in the sum of code and _TWO_BITS, of which the lower 8 bits are the code
_LARGEST = np.uint32(0x7F7FFFFF)  # the largest finite number
_ALMOST_ONE = np.float32(1.0 - 2.0**-20)
_ZERO = np.float32(0.0)
_SMALLEST_BLOCK = np.float32(2.0**-50)  # a block whose largest magnitude is smaller is stored as zeros
_LOST = np.float32(2.0**-100)  # its square: the most that a second moment loses in a step
_MANY = np.float32(1024.0)


def block_unit(largest: Float32, span: Float32) -> Float32:
    """Return the scale that is stored with a block: the factor of its decoded codes.

    Args:
        largest: the largest magnitude in the block.
        span: ROOT_SPAN or RATIO_SPAN.
    """
    return _ZERO if largest < _SMALLEST_BLOCK else largest / span


def block_scale(largest: Float32, span: Float32) -> Float32:
    """Return the factor of a block's elements before they are encoded.

    It is slightly less than 1 / block_unit, so the largest element is not rounded beyond the last code.
    """
    return _ZERO if largest < _SMALLEST_BLOCK else (span * _ALMOST_ONE) / largest


def eps_beside_blocks(eps: Float32, one_minus_beta2: Float32) -> Float32:
    """Return eps, increased if it is tiny by the root of what blocks stored as zeros may have lost of a second moment.

    These losses add up to at most `_LOST` / (1 - beta2), so the update is never larger than without them. If eps is
    1024 times their root or more (3e-11 with the usual beta2), they do not matter.
    """
    lost = np.sqrt(_LOST / one_minus_beta2)
    return eps + lost if eps < lost * _MANY else eps


def widen_root(code: Code, unit: Float32) -> Float32:
    """Return the value of a square root from its code. Code 0 is exactly zero.

    Args:
        code: the leading bits of 2 + root / unit, minus those of 2.
        unit: the scale of the block.
    """
    return (from_bits(np.uint32(np.uint32(np.uint32(code) << _CODE_BITS) | _TWO_BITS)) - _TWO) * unit


def narrow_root(root: Float32, scale: Float32, threshold: Word) -> Code:
    """Return the code of a square root, rounded up if its discarded bits plus the threshold carry.

    Only zero has code 0, because a second moment that becomes zero would make the next steps too large.

    Args:
        root: at least 0, not negative zero.
        scale: `block_scale` of its block.
        threshold: 18 bits, from `threshold_of`.
    """
    code = np.uint32(np.uint32(bits_of(product(root, scale) + _TWO) + threshold) >> _CODE_BITS)
    least = np.uint32(min(bits_of(root), _FIRST_CODE))  # 0 only for zero
    return np.uint8(np.uint32(max(code, least)) & np.uint32(0xFF))


def widen_ratio(code: Code, unit: Float32) -> Float32:
    """Return the value of a ratio from its code: a sign, and a magnitude of 7 bits like the 8 of `widen_root`."""
    word = np.uint32(code)
    bits = np.uint32(np.uint32(np.uint32(word << _CODE_BITS) & _RATIO_BITS) | _TWO_BITS)
    sign = np.uint32(np.uint32(word << np.uint32(24)) & _SIGN)
    return from_bits(np.uint32(bits_of((from_bits(bits) - _TWO) * unit) | sign))


def narrow_ratio(ratio: Float32, scale: Float32, threshold: Word) -> Code:
    """Return the code of a ratio: sign and magnitude. Arguments as for `narrow_root`; small ratios become zero."""
    word = bits_of(ratio)
    magnitude = from_bits(np.uint32(word & _MAGNITUDE))
    code = np.uint32(np.uint32(bits_of(product(magnitude, scale) + _TWO) + threshold) >> _CODE_BITS)
    sign = np.uint32(np.uint32(word >> np.uint32(24)) & _RATIO_SIGN)
    return np.uint8(np.uint32(code | sign) & np.uint32(0xFF))


def ratio_of(exp_avg: Float32, root: Float32) -> Float32:
    """Return the first moment divided by the root of the second one: the form in which it is encoded.

    If the root is zero, the divisor is infinity, so the ratio is zero if the moment is finite. The bits of a zero root
    minus 1 wrap around to the largest word, and the bits of infinity follow those of the largest finite number: so two
    additions and a minimum replace a comparison. A root that is NaN counts as infinity too.
    """
    one_less = np.uint32(np.uint64(bits_of(root)) + np.uint64(0xFFFFFFFF))
    return exp_avg / from_bits(np.uint32(np.uint32(min(one_less, _LARGEST)) + _ONE))


def following_dither(dither: Word, step: Word) -> Word:
    """Return the dither of the next element, in a Weyl sequence, which fills the range evenly.

    Args:
        dither: the dither of an element.
        step: DITHER_STEP; 0 keeps the dither at TO_NEAREST.
    """
    return np.uint32(np.uint64(np.uint64(dither) + np.uint64(step)) & np.uint64(0xFFFFFFFF))


def threshold_of(dither: Word) -> Word:
    """Return the upper 18 bits of a dither: a threshold for rounding."""
    return np.uint32(dither >> _DITHER_BITS)


def other_threshold(threshold: Word) -> Word:
    """Return the threshold of an element's first moment, given that of its second moment."""
    return np.uint32(threshold ^ _THRESHOLD_BITS)
