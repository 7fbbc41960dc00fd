"""Arrays in any format, as arrays of the dtype in which an update computes: opened before, closed after. Imports Numba.

Arrays of that dtype are used where they lie. Others are decoded into a small room that stays in the innermost cache,
and encoded from it again. Each loop does one thing, so compilers make vector code of it.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, overload

from numba_adam import codecs
from numba_adam.formats import BFLOAT16, FLOAT16, FLOAT32, FLOAT64, ITEM_BYTES
from numba_adam.kernels.compile import bind, inline
from numba_adam.kernels.intrinsics import array_at

_UINT16, _INT16 = np.empty(0, np.uint16), np.empty(0, np.int16)  # bfloat16's bits, float16's bits
_FLOAT32, _FLOAT64 = np.empty(0, np.float32), np.empty(0, np.float64)
_SIZES = np.array(ITEM_BYTES, dtype=np.uint64)


@intrinsic
def _bits_of(typingctx, value):  # type: ignore[no-untyped-def]
    """Return a float32's bits."""

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        return builder.bitcast(args[0], ir.IntType(32))

    return types.uint32(types.float32), codegen


@intrinsic
def _from_bits(typingctx, bits):  # type: ignore[no-untyped-def]
    """Return the float32 with these bits."""

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        return builder.bitcast(args[0], ir.FloatType())

    return types.float32(types.uint32), codegen


_bfloat16_of = inline(codecs._bfloat16_of)
_multiply = inline(codecs._multiply)
_names = {"bits_of": _bits_of, "from_bits": _from_bits, "_bfloat16_of": _bfloat16_of, "_multiply": _multiply}
_widen_bfloat16 = inline(bind(codecs.widen_bfloat16, **_names))
_narrow_bfloat16 = inline(bind(codecs.narrow_bfloat16, **_names))
_narrow_bfloat16_stochastic = inline(bind(codecs.narrow_bfloat16_stochastic, **_names))
_widen_float16 = inline(bind(codecs.widen_float16, **_names))
_narrow_float16 = inline(bind(codecs.narrow_float16, **_names))
_random_bits = inline(bind(codecs.random_bits, **_names))
stream_key = inline(bind(codecs.stream_key, random_bits=_random_bits))


def load(array, i, like):  # type: ignore[no-untyped-def]
    """Return an element's value, of `like`'s dtype. The array's dtype says its format: int16 for float16's bits."""
    raise NotImplementedError("compiled code only")


def store(array, i, value):  # type: ignore[no-untyped-def]
    """Write a value into an element, rounded to the nearest of its format."""
    raise NotImplementedError("compiled code only")


@overload(load)
def _load(array, i, like):  # type: ignore[no-untyped-def]
    if array.dtype == types.uint16:
        return lambda array, i, like: _widen_bfloat16(array[i])
    if array.dtype == types.int16:
        return lambda array, i, like: _widen_float16(array[i])
    if array.dtype == types.float64 and like.dtype == types.float32:
        return lambda array, i, like: np.float32(array[i])
    return lambda array, i, like: array[i]


@overload(store)
def _store(array, i, value):  # type: ignore[no-untyped-def]
    def as_bfloat16(array, i, value):  # type: ignore[no-untyped-def]
        array[i] = _narrow_bfloat16(np.float32(value))

    def as_float16(array, i, value):  # type: ignore[no-untyped-def]
        array[i] = _narrow_float16(np.float32(value))

    def as_it_is(array, i, value):  # type: ignore[no-untyped-def]
        array[i] = value

    return {types.uint16: as_bfloat16, types.int16: as_float16}.get(array.dtype, as_it_is)


@inline
def native(like):  # type: ignore[no-untyped-def]
    """Return the format of arrays of `like`'s dtype."""
    return FLOAT32 if like.itemsize == ITEM_BYTES[FLOAT32] else FLOAT64


@inline
def bytes_of(format_):  # type: ignore[no-untyped-def]
    """Return how many bytes an element takes."""
    return _SIZES[format_]


@inline
def opened(address, scales, format_, begin, size, room, like):  # type: ignore[no-untyped-def]
    """Return elements of an array, as an array of `like`'s dtype.

    Args:
        address: uint64: where the array lies.
        scales: uint64: where the scales of its blocks lie, if its format has such.
        format_: its format.
        begin: uint64: the first element.
        size: uint64: how many.
        room: uint64: where so many elements of `like`'s dtype may be put, unless the array has that dtype itself.
        like: any array of the dtype in which is computed.
    """
    if format_ == native(like):
        return array_at(address + begin * np.uint64(like.itemsize), size, like)
    values = array_at(room, size, like)
    _decode(address + begin * bytes_of(format_), format_, values)
    return values


@inline
def _decode(address, format_, values):  # type: ignore[no-untyped-def]
    """Fill `values` with the elements that begin at an address."""
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
def _cast(source, target):  # type: ignore[no-untyped-def]
    for i in range(source.size):
        target[i] = source[i]


@inline
def close(values, address, scales, format_, begin, rounding, like):  # type: ignore[no-untyped-def]
    """Encode `values` into an array of another format than theirs; one of their own holds them already.

    Args:
        values: the elements from `begin` on, of `like`'s dtype.
        address: uint64: where the array lies.
        scales: uint64: where the scales of its blocks lie, if its format has such.
        format_: its format.
        begin: uint64: the first element.
        rounding: (whether it is stochastic, the uint32 key of the stream of random numbers).
        like: any array of the dtype in which is computed.
    """
    if format_ != native(like):
        _encode(values, address + begin * bytes_of(format_), format_, begin, rounding)


@inline
def _encode(values, address, format_, begin, rounding):  # type: ignore[no-untyped-def]
    """Write `values` to an address; arguments as for `close`."""
    if format_ == FLOAT32:
        _cast(values, array_at(address, np.uint64(values.size), _FLOAT32))
    elif format_ == FLOAT64:
        _cast(values, array_at(address, np.uint64(values.size), _FLOAT64))
    elif format_ == FLOAT16:
        codes = array_at(address, np.uint64(values.size), _UINT16)
        for i in range(codes.size):
            codes[i] = _narrow_float16(np.float32(values[i]))
    elif format_ == BFLOAT16:
        codes = array_at(address, np.uint64(values.size), _UINT16)
        is_stochastic, key = rounding
        if is_stochastic:
            first = np.uint32(begin)
            for i in range(codes.size):
                random = _random_bits(key, np.uint32(first + np.uint32(i)))
                codes[i] = _narrow_bfloat16_stochastic(np.float32(values[i]), random)
        else:
            for i in range(codes.size):
                codes[i] = _narrow_bfloat16(np.float32(values[i]))
