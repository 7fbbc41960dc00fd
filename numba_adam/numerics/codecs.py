"""Narrow number formats, one element at a time: to float32 and back. No codec stands anywhere else. Imports NumPy.

Like `element`, the functions are plain Python that the kernels of every target compile; the two names that look at a
float's bits, `product`, and `random_bits`' products, are bound to what each compiler has for them. All the rest is
integers, whose arithmetic is the same everywhere, with or without an instruction for the format.

Every intermediate result is cut to 32 bits where it is made: compilers that widen integers then see that none is needed
beyond, and use vectors of 32-bit lanes.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from numba_adam.numerics.operations import bits_of, from_bits, product

Float32 = Any  # a float32: a NumPy scalar, or what a compiler makes of it
Code = Any  # an unsigned integer of the format's width
Word = Any  # a uint32

_SIGN = np.uint32(0x80000000)
_MAGNITUDE = np.uint32(0x7FFFFFFF)
_INFINITY = np.uint32(0x7F800000)
_MANTISSA = np.uint32(0x007FFFFF)
_IMPLICIT = np.uint32(0x00800000)
_ONE = np.uint32(1)

_BFLOAT16_BITS = np.uint32(16)  # what a bfloat16 has fewer than a float32
_LAST = np.uint32(0x10000)  # the last bit that stays
_HALF = np.uint32(0x8000)  # half of it
_HALF_LESS = np.uint32(0x7FFF)  # a little less than half
_UPPER = np.uint32(0xFFFF0000)  # the upper half of a word
_BFLOAT16_QUIET = np.uint32(0x400000)  # the bit that makes a NaN a quiet one

_FLOAT16_BITS = np.uint32(13)  # what float16's mantissa has fewer than float32's
_FLOAT16_REBIAS = np.uint32(112 << 23)  # float32's exponent bias less float16's
_FLOAT16_SMALLEST_NORMAL = np.uint32(113 << 23)  # 2**-14, as float32's bits
_FLOAT16_SIGN = np.uint32(0x8000)
_FLOAT16_INFINITY = np.uint32(0x7C00)
_FLOAT16_NAN = np.uint32(0x7E00)
_FLOAT16_UNIT = np.float32(2.0**-24)  # the smallest number of the format


def single(value: Any) -> Float32:
    """Return a float64 as a float32 that can be rounded once more as if it had not been rounded before.

    What is lost is remembered in the last bit ("round to odd", Boldo & Melquiond 2008): rounding to nearest twice would
    take numbers just beside a tie to the wrong side.
    """
    near = np.float32(value)
    if np.float64(near) == value:
        return near
    bits = bits_of(near)
    towards_zero = np.uint32(bits - _ONE) if abs(np.float64(near)) > abs(value) else bits
    return from_bits(np.uint32(towards_zero | _ONE))


def widen_bfloat16(code: Code) -> Float32:
    """Return the value of a bfloat16, given as its 16 bits; exact."""
    return from_bits(np.uint32(np.uint32(code) << _BFLOAT16_BITS))


def narrow_bfloat16(value: Float32) -> Code:
    """Return the bfloat16 nearest to a value, as its 16 bits; of two equally near the even one. A NaN stays one."""
    bits = bits_of(value)
    return _bfloat16_of(bits, _nearest(bits))


def lower_bfloat16(word: Word) -> Float32:
    """Return the value of the first of two bfloat16, given as one word of 32 bits."""
    return from_bits(np.uint32(word << _BFLOAT16_BITS))


def upper_bfloat16(word: Word) -> Float32:
    """Return the value of the second of two bfloat16, given as one word of 32 bits."""
    return from_bits(np.uint32(word & _UPPER))


def pair_of_bfloat16(lower: Float32, upper: Float32) -> Word:
    """Return the bfloat16 nearest to two values, as one word of 32 bits.

    A NaN must not have the lower half of its bits set, as none has that comes of arithmetic on bfloat16: with it, the
    rounding might carry into the sign.
    """
    first = np.uint32(_nearest(bits_of(lower)) >> _BFLOAT16_BITS)
    return np.uint32(first | np.uint32(_nearest(bits_of(upper)) & _UPPER))


def _nearest(bits: Word) -> Word:
    """Return a float32's bits, of which the upper half is rounded to nearest, of two equally near to even."""
    is_odd = np.uint32(bits & _LAST) != np.uint32(0)
    return np.uint32(np.uint64(bits) + np.uint64(_HALF if is_odd else _HALF_LESS))


def narrow_bfloat16_stochastic(value: Float32, random: Word) -> Code:
    """Return one of the two bfloat16 around a value, each with the probability that makes their mean the value.

    Args:
        value: the value. One that is a bfloat16 already stays what it is.
        random: 32 random bits, of which the lower 16 are used.
    """
    bits = bits_of(value)
    rounded = np.uint32(np.uint64(bits) + np.uint64(random & np.uint32(0xFFFF)))
    return _bfloat16_of(bits, rounded)


def _bfloat16_of(bits: Word, rounded: Word) -> Code:
    """Return the upper half of `rounded`, unless `bits` are a NaN's, whose own upper half is made quiet."""
    is_nan = np.uint32(bits & _MAGNITUDE) > _INFINITY
    return np.uint16(np.uint32(np.uint32(bits | _BFLOAT16_QUIET) if is_nan else rounded) >> _BFLOAT16_BITS)


def widen_float16(code: Code) -> Float32:
    """Return the value of a float16, given as its 16 bits; exact."""
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
    """Return the float16 nearest to a value, as its 16 bits; of two equally near the even one. A NaN stays one."""
    bits = bits_of(value)
    sign = np.uint32(np.uint32(bits >> np.uint32(16)) & _FLOAT16_SIGN)
    magnitude = np.uint32(bits & _MAGNITUDE)
    exponent = np.uint32(magnitude >> np.uint32(23))
    # A number below the smallest normal one loses a bit more for each halving; beyond 31 all are lost anyway.
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


def random_bits(key: Word, index: Word) -> Word:
    """Return 32 random bits that depend on nothing but the key and the index.

    A generator without a state: any thread may draw any number. The index is mixed by multiplications and shifts, as in
    the finalizer of MurmurHash3 (Appleby 2011), with the key in the middle and at the beginning.

    Args:
        key: names the stream: `stream_key` of a seed, a step, an array.
        index: which number of the stream, modulo 2**32.
    """
    word = np.uint32(index ^ key)
    word = _multiply(np.uint32(word ^ np.uint32(word >> np.uint32(16))), np.uint32(0x85EBCA6B))
    word = np.uint32(np.uint64(word) + np.uint64(key))
    word = _multiply(np.uint32(word ^ np.uint32(word >> np.uint32(13))), np.uint32(0xC2B2AE35))
    word = _multiply(np.uint32(word ^ np.uint32(word >> np.uint32(16))), np.uint32(0x9E3779B1))
    return np.uint32(word ^ np.uint32(word >> np.uint32(15)))


def _multiply(a: Word, b: Word) -> Word:
    """Return the lower 32 bits of a product."""
    return np.uint32(np.uint64(np.uint64(a) * np.uint64(b)) & np.uint64(0xFFFFFFFF))


def stream_key(seed: int, step: int, place: int, column: int) -> int:
    """Return the key of the stream of random numbers that rounds one array in one step.

    Args:
        seed: the optimizer's, 0 to 2**63 - 1.
        step: 1 for the first update.
        place: which of the optimizer's parameters.
        column: which of the parameter's arrays.
    """
    word = np.uint32(0)
    for part in (seed, step, place):
        word = random_bits(np.uint32(np.uint64(part) & np.uint64(0xFFFFFFFF)), word)
        word = random_bits(np.uint32(np.uint64(part) >> np.uint64(32)), word)
    return random_bits(np.uint32(column), word)  # type: ignore[no-any-return]


# --- moments in 8 bits; docs/eight-bit-state.md says why they are what they are ---

ROOT_SPAN = np.float32(502.0)  # code 255 is 2 + 502, seen as a float whose first bits it is
RATIO_SPAN = np.float32(29.5)  # code 127 is 2 + 29.5
DITHER_STEP = np.uint32(0xC13FA9A9)  # from one element's dither to the next one's
DITHER_TURN = np.uint32(0x9E3779B9)  # from one step's dither to the next one's
TO_NEAREST = np.uint32(0x80000000)  # the dither that rounds to the nearest code
_TWO = np.float32(2.0)
_TWO_BITS = np.uint32(0x40000000)  # 2.0 as bits: from here on, every CODE_BITS of them are a code
_CODE_BITS = np.uint32(18)
_DITHER_BITS = np.uint32(14)  # the dither's bits that do not count
_THRESHOLD_BITS = np.uint32(0x3FFFF)  # as many as those that are rounded away
_RATIO_SIGN = np.uint32(0x80)
_RATIO_BITS = np.uint32(0x7F << 18)  # where a ratio's magnitude stands
_FIRST_CODE = np.uint32(0x1001)  # code 1, as it stands in the sum of code and _TWO_BITS
_LARGEST = np.uint32(0x7F7FFFFF)  # the largest finite number
_ALMOST_ONE = np.float32(1.0 - 2.0**-20)
_ZERO = np.float32(0.0)
_SMALLEST_BLOCK = np.float32(2.0**-50)  # a block whose largest magnitude is below is stored as zeros
_LOST = np.float32(2.0**-100)  # the square of that: no more of a second moment is lost in a step
_MANY = np.float32(1024.0)


def block_unit(largest: Float32, span: Float32) -> Float32:
    """Return the scale that is stored with a block: what the codes of its elements are multiplied by.

    Args:
        largest: the largest magnitude in the block.
        span: ROOT_SPAN or RATIO_SPAN.
    """
    return _ZERO if largest < _SMALLEST_BLOCK else largest / span


def block_scale(largest: Float32, span: Float32) -> Float32:
    """Return what a block's elements are multiplied by to be encoded; a hair less than 1 / block_unit.

    So the largest element cannot be rounded beyond the last code.
    """
    return _ZERO if largest < _SMALLEST_BLOCK else (span * _ALMOST_ONE) / largest


def eps_beside_blocks(eps: Float32, one_minus_beta2: Float32) -> Float32:
    """Return eps, and where that is tiny the root of what a second moment may have lost in blocks stored as zeros.

    In the long run losses add up to `_LOST` / (1 - beta2). So the update is never larger than without them. Beside an
    eps of 1024 times their root, 3e-11 with the usual beta2, they do not count.
    """
    lost = np.sqrt(_LOST / one_minus_beta2)
    return eps + lost if eps < lost * _MANY else eps


def widen_root(code: Code, unit: Float32) -> Float32:
    """Return a square root's value from its 8 bits. Code 0 is exactly zero.

    Args:
        code: the first bits of 2 + root / unit, less those of 2.
        unit: the block's scale.
    """
    return (from_bits(np.uint32(np.uint32(np.uint32(code) << _CODE_BITS) | _TWO_BITS)) - _TWO) * unit


def narrow_root(root: Float32, scale: Float32, threshold: Word) -> Code:
    """Return a square root in 8 bits, rounded up where the bits that go are more than the threshold leaves room for.

    Only zero becomes code 0: a second moment that were lost would make the next steps too large.

    Args:
        root: at least 0, not the negative zero.
        scale: `block_scale` of its block.
        threshold: 18 bits, as `threshold_of` a dither has them.
    """
    code = np.uint32(np.uint32(bits_of(product(root, scale) + _TWO) + threshold) >> _CODE_BITS)
    least = np.uint32(min(bits_of(root), _FIRST_CODE))  # 0 for zero alone
    return np.uint8(np.uint32(max(code, least)) & np.uint32(0xFF))


def widen_ratio(code: Code, unit: Float32) -> Float32:
    """Return a ratio's value from its 8 bits, a sign and seven as `widen_root` has eight."""
    word = np.uint32(code)
    bits = np.uint32(np.uint32(np.uint32(word << _CODE_BITS) & _RATIO_BITS) | _TWO_BITS)
    sign = np.uint32(np.uint32(word << np.uint32(24)) & _SIGN)
    return from_bits(np.uint32(bits_of((from_bits(bits) - _TWO) * unit) | sign))


def narrow_ratio(ratio: Float32, scale: Float32, threshold: Word) -> Code:
    """Return a ratio in 8 bits, a sign and the magnitude; arguments as for `narrow_root`. Small ones become zero."""
    word = bits_of(ratio)
    magnitude = from_bits(np.uint32(word & _MAGNITUDE))
    code = np.uint32(np.uint32(bits_of(product(magnitude, scale) + _TWO) + threshold) >> _CODE_BITS)
    sign = np.uint32(np.uint32(word >> np.uint32(24)) & _RATIO_SIGN)
    return np.uint8(np.uint32(code | sign) & np.uint32(0xFF))


def ratio_of(exp_avg: Float32, root: Float32) -> Float32:
    """Return the first moment divided by the second one's root, the form in which 8 bits hold it.

    Where the root is zero, the first moment is divided by infinity: the ratio is zero, if the moment is finite. That
    stands just beyond the largest number, as zero, counted down from, stands just before the smallest one: a compiler
    takes two additions, and no comparison. A root that is not a number counts as infinite too.
    """
    one_less = np.uint32(np.uint64(bits_of(root)) + np.uint64(0xFFFFFFFF))
    return exp_avg / from_bits(np.uint32(np.uint32(min(one_less, _LARGEST)) + _ONE))


def following_dither(dither: Word, step: Word) -> Word:
    """Return the next element's dither: a Weyl sequence, whose members fill the range evenly.

    Args:
        dither: the dither of an element.
        step: DITHER_STEP, or 0 to stay at TO_NEAREST.
    """
    return np.uint32(np.uint64(np.uint64(dither) + np.uint64(step)) & np.uint64(0xFFFFFFFF))


def threshold_of(dither: Word) -> Word:
    """Return the 18 bits of a dither that count."""
    return np.uint32(dither >> _DITHER_BITS)


def other_threshold(threshold: Word) -> Word:
    """Return the threshold of an element's first moment, given that of the second."""
    return np.uint32(threshold ^ _THRESHOLD_BITS)
