"""16-bit number formats, one element at a time: from float32 and to float32. Imports `operations` and NumPy.

The functions are plain Python, and kernels compile them for every target, like `element`. All arithmetic here but one
product is on integers, so the bits are the same on every machine, with or without an instruction for the format.

Each intermediate result is truncated to 32 bits at once, so compilers that widen integers can still use vectors of
32-bit lanes.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from numba_adam.numerics.operations import bits_of, from_bits

Float32 = Any  # a NumPy scalar, or its compiled counterpart
Code = Any  # likewise, uint16: the bits of a number
Word = Any  # likewise, uint32

_SIGN = np.uint32(0x80000000)
_MAGNITUDE = np.uint32(0x7FFFFFFF)
_INFINITY = np.uint32(0x7F800000)
_MANTISSA = np.uint32(0x007FFFFF)
_IMPLICIT = np.uint32(0x00800000)
_ONE = np.uint32(1)

_BFLOAT16_BITS = np.uint32(16)  # bits that a bfloat16 has fewer than a float32
_LAST = np.uint32(0x10000)  # the lowest bit of the upper half
_HALF = np.uint32(0x8000)  # half of that
_HALF_LESS = np.uint32(0x7FFF)  # just below half of it
_UPPER = np.uint32(0xFFFF0000)  # the upper half of a word
_BFLOAT16_QUIET = np.uint32(0x400000)  # the bit that makes a NaN quiet

_FLOAT16_BITS = np.uint32(13)  # bits that float16's mantissa has fewer than float32's
_FLOAT16_REBIAS = np.uint32(112 << 23)  # float32's exponent bias less float16's
_FLOAT16_SMALLEST_NORMAL = np.uint32(113 << 23)  # 2**-14, as float32's bits
_FLOAT16_SIGN = np.uint32(0x8000)
_FLOAT16_INFINITY = np.uint32(0x7C00)
_FLOAT16_NAN = np.uint32(0x7E00)
_FLOAT16_UNIT = np.float32(2.0**-24)  # the smallest number of the format


def round_to_odd(value: Any) -> Float32:
    """Return a float64 as a float32 that can be rounded once more, with the result of a single rounding.

    The last bit is set if any digit was lost ("round to odd", Boldo & Melquiond 2008). Two roundings to nearest would
    take numbers very near a tie to the wrong side.
    """
    near = np.float32(value)
    if np.float64(near) == value:
        return near
    bits = bits_of(near)
    towards_zero = np.uint32(bits - _ONE) if abs(np.float64(near)) > abs(value) else bits
    return from_bits(np.uint32(towards_zero | _ONE))


def widen_bfloat16(code: Code) -> Float32:
    """Return the value of a bfloat16, given as 16 bits; exact."""
    return from_bits(np.uint32(np.uint32(code) << _BFLOAT16_BITS))


def narrow_bfloat16(value: Float32) -> Code:
    """Return the bfloat16 nearest to a value, as 16 bits; ties go to the even one. NaN stays NaN."""
    bits = bits_of(value)
    return upper_unless_nan(bits, rounded_to_upper(bits))


def lower_bfloat16(word: Word) -> Float32:
    """Return the value of the first bfloat16 in a word of two."""
    return from_bits(np.uint32(word << _BFLOAT16_BITS))


def upper_bfloat16(word: Word) -> Float32:
    """Return the value of the second bfloat16 in a word of two."""
    return from_bits(np.uint32(word & _UPPER))


def pair_of_bfloat16(lower: Float32, upper: Float32) -> Word:
    """Return the bfloat16 nearest to each of two values, as one word.

    The lower 16 bits of a NaN must be 0, as they are after arithmetic on bfloat16: rounding could carry into its sign.
    """
    first = np.uint32(rounded_to_upper(bits_of(lower)) >> _BFLOAT16_BITS)
    return np.uint32(first | np.uint32(rounded_to_upper(bits_of(upper)) & _UPPER))


def pair_of_bfloat16_stochastic(lower: Float32, upper: Float32, random: Word) -> Word:
    """Return one of the two bfloat16 around each of two values, as one word; NaN as for `pair_of_bfloat16`.

    Args:
        lower: rounded as by `narrow_bfloat16_stochastic` with the lower 16 random bits.
        upper: rounded with the upper 16.
        random: 32 random bits.
    """
    first = np.uint32(np.uint64(bits_of(lower)) + np.uint64(random & np.uint32(0xFFFF)))
    second = np.uint32(np.uint64(bits_of(upper)) + np.uint64(random >> np.uint32(16)))
    return np.uint32(np.uint32(first >> _BFLOAT16_BITS) | np.uint32(second & _UPPER))


def rounded_to_upper(bits: Word) -> Word:
    """Return the bits of a float32, of which the upper half is rounded to nearest, ties to even."""
    is_odd = np.uint32(bits & _LAST) != np.uint32(0)
    return np.uint32(np.uint64(bits) + np.uint64(_HALF if is_odd else _HALF_LESS))


def narrow_bfloat16_stochastic(value: Float32, random: Word) -> Code:
    """Return one of the two bfloat16 around a value, with probabilities that make their mean the value.

    Args:
        value: stays unchanged if it is a bfloat16 already.
        random: 32 random bits, of which the lower 16 are used.
    """
    bits = bits_of(value)
    rounded = np.uint32(np.uint64(bits) + np.uint64(random & np.uint32(0xFFFF)))
    return upper_unless_nan(bits, rounded)


def upper_unless_nan(bits: Word, rounded: Word) -> Code:
    """Return the upper half of `rounded`; of `bits`, made a quiet NaN, if these are the bits of a NaN."""
    is_nan = np.uint32(bits & _MAGNITUDE) > _INFINITY
    return np.uint16(np.uint32(np.uint32(bits | _BFLOAT16_QUIET) if is_nan else rounded) >> _BFLOAT16_BITS)


def widen_float16(code: Code) -> Float32:
    """Return the value of a float16, given as 16 bits; exact."""
    word = np.uint32(code)
    sign = np.uint32(np.uint32(word & _FLOAT16_SIGN) << np.uint32(16))
    magnitude = np.uint32(np.uint32(word & np.uint32(0x7FFF)) << _FLOAT16_BITS)
    normal = np.uint32(magnitude + _FLOAT16_REBIAS)
    special = np.uint32(magnitude | _INFINITY)
    small = bits_of(np.float32(np.int32(word & np.uint32(0x3FF))) * _FLOAT16_UNIT)
    bits = special if np.uint32(word & _FLOAT16_INFINITY) == _FLOAT16_INFINITY else normal
    bits = small if np.uint32(word & _FLOAT16_INFINITY) == np.uint32(0) else bits
    return from_bits(np.uint32(bits | sign))


def narrow_float16(value: Float32) -> Code:
    """Return the float16 nearest to a value, as 16 bits; ties go to the even one. NaN stays NaN."""
    bits = bits_of(value)
    sign = np.uint32(np.uint32(bits >> np.uint32(16)) & _FLOAT16_SIGN)
    magnitude = np.uint32(bits & _MAGNITUDE)
    exponent = np.uint32(magnitude >> np.uint32(23))
    # Each halving below the smallest normal number loses one more bit; a shift of 31 loses all of them.
    is_small = magnitude < _FLOAT16_SMALLEST_NORMAL
    lost = np.uint32(np.uint32(126) - min(exponent, np.uint32(112)))
    shift = np.uint32(min(lost, np.uint32(31))) if is_small else _FLOAT16_BITS
    whole = np.uint32(np.uint32(magnitude & _MANTISSA) | _IMPLICIT)
    kept = whole if is_small else np.uint32(np.uint64(magnitude) + np.uint64(2**32) - np.uint64(_FLOAT16_REBIAS))
    odd = np.uint32(np.uint32(kept >> shift) & _ONE)
    half = np.uint32(np.uint32(_ONE << np.uint32(shift - _ONE)) - _ONE)
    rounded = np.uint32(np.uint32(np.uint64(kept) + np.uint64(half) + np.uint64(odd)) >> shift)
    finite = min(rounded, _FLOAT16_INFINITY)
    quiet = np.uint32(np.uint32(np.uint32(magnitude & _MANTISSA) >> _FLOAT16_BITS) | _FLOAT16_NAN)
    return np.uint16(np.uint32(quiet if magnitude > _INFINITY else finite) | sign)
