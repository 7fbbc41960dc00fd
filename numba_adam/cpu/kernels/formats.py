"""Arrays in any format as arrays of the compute dtype: decoded before the update, encoded after it. Imports Numba.

Arrays that have the compute dtype are used in place. Others are decoded into a small scratch buffer, which stays in the
innermost cache, and encoded from it. Each loop does one thing, so compilers vectorize it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from numba_adam.cpu.kernels.compile import array_inline, inline, inlined
from numba_adam.cpu.kernels.intrinsics import array_at
from numba_adam.cpu.kernels.vector_width import vectors_of
from numba_adam.numerics import codecs, random_numbers
from numba_adam.numerics.bind import bind
from numba_adam.numerics.formats import BFLOAT16, FLOAT16, FLOAT32, FLOAT64, ITEM_BYTES

_choose_width = vectors_of("formats")
_UINT16 = np.empty(0, np.uint16)
_FLOAT32, _FLOAT64 = np.empty(0, np.float32), np.empty(0, np.float64)
_SIZES = np.array(ITEM_BYTES, dtype=np.uint64)


@intrinsic
def bits_of(typingctx, value):  # type: ignore[no-untyped-def]
    """Return a float32's bits."""

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        return builder.bitcast(args[0], ir.IntType(32))

    return types.uint32(types.float32), codegen


@intrinsic
def from_bits(typingctx, bits):  # type: ignore[no-untyped-def]
    """Return the float32 with these bits."""

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        return builder.bitcast(args[0], ir.FloatType())

    return types.float32(types.uint32), codegen


_names = {
    "bits_of": bits_of,
    "from_bits": from_bits,
    "rounded_to_upper": inline(codecs.rounded_to_upper),
    "upper_unless_nan": inline(codecs.upper_unless_nan),
}
_widen_bfloat16 = inline(bind(codecs.widen_bfloat16, **_names))
narrow_bfloat16 = inline(bind(codecs.narrow_bfloat16, **_names))
narrow_bfloat16_stochastic = inline(bind(codecs.narrow_bfloat16_stochastic, **_names))
lower_bfloat16 = inline(bind(codecs.lower_bfloat16, **_names))
upper_bfloat16 = inline(bind(codecs.upper_bfloat16, **_names))
pair_of_bfloat16 = inline(bind(codecs.pair_of_bfloat16, **_names))
pair_of_bfloat16_stochastic = inline(bind(codecs.pair_of_bfloat16_stochastic, **_names))
_round_to_odd = inline(bind(codecs.round_to_odd, **_names))
_widen_float16 = inline(bind(codecs.widen_float16, **_names))
_narrow_float16 = inline(bind(codecs.narrow_float16, **_names))
_low_product = inline(random_numbers.low_product)
random_bits = inline(bind(random_numbers.random_bits, low_product=_low_product))
rounding_word = inline(bind(random_numbers.rounding_word, low_product=_low_product))
stream_key = inline(bind(random_numbers.stream_key, random_bits=random_bits))


class Operand(NamedTuple):
    """An array that a step reads or writes, and how."""

    address: Any  # uint64; 0: there is no such array
    scales: Any  # uint64: the address of the scales of its blocks, for moments in 8 bits
    format: Any  # int64: its number format
    is_stochastic: Any  # bool: whether it is rounded stochastically
    key: Any  # uint32: of its random numbers


@inlined
def compute_format(like):  # type: ignore[no-untyped-def]
    """Return the number format of `like`'s dtype: FLOAT32 or FLOAT64."""
    return FLOAT32 if like.itemsize == ITEM_BYTES[FLOAT32] else FLOAT64


@inlined
def bytes_of(format_):  # type: ignore[no-untyped-def]
    """Return the number of bytes of an element."""
    return _SIZES[format_]


@array_inline
def decoded(operand, begin, size, scratch, like):  # type: ignore[no-untyped-def]
    """Return elements of an array as an array of `like`'s dtype: a view of them, or a decoded copy in a scratch buffer.

    Args:
        operand: the array.
        begin: uint64: the first element.
        size: uint64: the number of elements.
        scratch: uint64: the address of a buffer for so many elements of `like`'s dtype.
        like: any array of the compute dtype.
    """
    if operand.format == compute_format(like):
        return array_at(operand.address + begin * np.uint64(like.itemsize), size, like)
    values = array_at(scratch, size, like)
    _decode(operand.address + begin * bytes_of(operand.format), operand.format, values)
    return values


@inline
def _decode(address, format_, values):  # type: ignore[no-untyped-def]
    """Fill `values` with the elements at an address."""
    _choose_width()
    if format_ == FLOAT32:
        _cast(array_at(address, np.uint64(values.size), _FLOAT32), values)
    elif format_ == FLOAT64:
        _cast(array_at(address, np.uint64(values.size), _FLOAT64), values)
    elif format_ == BFLOAT16:
        codes = array_at(address, np.uint64(values.size), _UINT16)
        for i in range(codes.size):
            values[i] = _widen_bfloat16(codes[i])
    elif format_ == FLOAT16:
        codes = array_at(address, np.uint64(values.size), _UINT16)
        for i in range(codes.size):
            values[i] = _widen_float16(codes[i])


@inline
def _cast(values, target):  # type: ignore[no-untyped-def]
    for i in range(values.size):
        target[i] = values[i]


@inline
def store(values, operand, begin, like):  # type: ignore[no-untyped-def]
    """Encode `values` into the array that `decoded` decoded them from; do nothing where it returned a view.

    Args:
        values: the elements from `begin` on, of `like`'s dtype.
        operand: the array.
        begin: uint64: the first element.
        like: any array of the compute dtype.
    """
    if operand.format == compute_format(like):
        return
    address = operand.address + begin * bytes_of(operand.format)
    if operand.format == BFLOAT16 and operand.is_stochastic:
        _encode_stochastic(values, array_at(address, np.uint64(values.size), _UINT16), np.uint32(begin), operand.key)
    else:
        _encode(values, address, operand.format)


@inlined
def _as_float32(values, i):  # type: ignore[no-untyped-def]
    """Return an element as a float32 that can be rounded once more."""
    return np.float32(values[i]) if compute_format(values) == FLOAT32 else _round_to_odd(np.float64(values[i]))


@inline
def _encode(values, address, format_):  # type: ignore[no-untyped-def]
    """Write `values` to an address, rounded to the nearest number of a format."""
    _choose_width()
    if format_ == FLOAT32:
        _cast(values, array_at(address, np.uint64(values.size), _FLOAT32))
    elif format_ == FLOAT64:
        _cast(values, array_at(address, np.uint64(values.size), _FLOAT64))
    elif format_ == FLOAT16:
        codes = array_at(address, np.uint64(values.size), _UINT16)
        for i in range(codes.size):
            codes[i] = _narrow_float16(_as_float32(values, i))
    elif format_ == BFLOAT16:
        codes = array_at(address, np.uint64(values.size), _UINT16)
        for i in range(codes.size):
            codes[i] = narrow_bfloat16(_as_float32(values, i))


@inline
def _encode_stochastic(values, codes, first, key):  # type: ignore[no-untyped-def]
    """Write `values` as stochastically rounded bfloat16; `first`, even, is the index of the first one in its array."""
    _choose_width()
    pairs, first_pair = codes.size // 2, np.uint32(first >> np.uint32(1))
    for pair in range(np.uint64(pairs)):
        word = rounding_word(key, np.uint32(first_pair + np.uint32(pair)))
        i = np.uint64(2) * pair
        codes[i] = narrow_bfloat16_stochastic(np.float32(values[i]), word)
        i += np.uint64(1)
        codes[i] = narrow_bfloat16_stochastic(np.float32(values[i]), np.uint32(word >> np.uint32(16)))
    if codes.size % 2:
        last = codes.size - 1
        word = rounding_word(key, np.uint32(first_pair + np.uint32(pairs)))
        codes[last] = narrow_bfloat16_stochastic(np.float32(values[last]), word)
