"""Arrays in any format, as arrays of the dtype in which an update computes: opened before, closed after. Imports Numba.

Arrays of that dtype are used where they lie. Others are decoded into a small room that stays in the innermost cache,
and encoded from it again. Each loop does one thing, so compilers make vector code of it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from numba_adam.cpu.kernels.compile import bind, inline, inlined
from numba_adam.cpu.kernels.intrinsics import array_at
from numba_adam.numerics import codecs
from numba_adam.numerics.formats import BFLOAT16, FLOAT16, FLOAT32, FLOAT64, ITEM_BYTES

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


_nearest = inline(codecs._nearest)
_bfloat16_of = inline(codecs._bfloat16_of)
_multiply = inline(codecs._multiply)
_names = {
    "bits_of": bits_of,
    "from_bits": from_bits,
    "_nearest": _nearest,
    "_bfloat16_of": _bfloat16_of,
    "_multiply": _multiply,
}
_widen_bfloat16 = inline(bind(codecs.widen_bfloat16, **_names))
narrow_bfloat16 = inline(bind(codecs.narrow_bfloat16, **_names))
_narrow_bfloat16_stochastic = inline(bind(codecs.narrow_bfloat16_stochastic, **_names))
lower_bfloat16 = inline(bind(codecs.lower_bfloat16, **_names))
upper_bfloat16 = inline(bind(codecs.upper_bfloat16, **_names))
pair_of_bfloat16 = inline(bind(codecs.pair_of_bfloat16, **_names))
_from_double = inline(bind(codecs.single, **_names))
_widen_float16 = inline(bind(codecs.widen_float16, **_names))
_narrow_float16 = inline(bind(codecs.narrow_float16, **_names))
random_bits = inline(bind(codecs.random_bits, **_names))
stream_key = inline(bind(codecs.stream_key, random_bits=random_bits))


class Source(NamedTuple):
    """Where an array lies, and how its elements are to be read and written."""

    address: Any  # uint64
    scales: Any  # uint64: where the scales of its blocks lie, if its format has such
    format: Any  # int64
    is_stochastic: Any  # bool: whether it is rounded at random
    key: Any  # uint32: of the stream of random numbers


@inlined
def native(like):  # type: ignore[no-untyped-def]
    """Return the format of arrays of `like`'s dtype."""
    return FLOAT32 if like.itemsize == ITEM_BYTES[FLOAT32] else FLOAT64


@inlined
def bytes_of(format_):  # type: ignore[no-untyped-def]
    """Return how many bytes an element takes."""
    return _SIZES[format_]


@inline
def opened(source, begin, size, room, like):  # type: ignore[no-untyped-def]
    """Return elements of an array, as an array of `like`'s dtype.

    Args:
        source: the array.
        begin: uint64: the first element.
        size: uint64: how many.
        room: uint64: where so many elements of `like`'s dtype may be put, unless the array has that dtype itself.
        like: any array of the dtype in which is computed.
    """
    if source.format == native(like):
        return array_at(source.address + begin * np.uint64(like.itemsize), size, like)
    values = array_at(room, size, like)
    _decode(source.address + begin * bytes_of(source.format), source.format, values)
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
def close(values, target, begin, like):  # type: ignore[no-untyped-def]
    """Encode `values` into an array of another format than theirs; one of their own holds them already.

    Args:
        values: the elements from `begin` on, of `like`'s dtype.
        target: the array.
        begin: uint64: the first element.
        like: any array of the dtype in which is computed.
    """
    if target.format == native(like):
        return
    address = target.address + begin * bytes_of(target.format)
    if target.format == BFLOAT16 and target.is_stochastic:
        _encode_at_random(values, array_at(address, np.uint64(values.size), _UINT16), np.uint32(begin), target.key)
    else:
        _encode(values, address, target.format)


@inlined
def _single(values, i):  # type: ignore[no-untyped-def]
    """Return an element as a float32 that is going to be rounded once more."""
    return np.float32(values[i]) if native(values) == FLOAT32 else _from_double(np.float64(values[i]))


@inline
def _encode(values, address, format_):  # type: ignore[no-untyped-def]
    """Write `values` to an address, rounded to the nearest of a format."""
    if format_ == FLOAT32:
        _cast(values, array_at(address, np.uint64(values.size), _FLOAT32))
    elif format_ == FLOAT64:
        _cast(values, array_at(address, np.uint64(values.size), _FLOAT64))
    elif format_ == FLOAT16:
        codes = array_at(address, np.uint64(values.size), _UINT16)
        for i in range(codes.size):
            codes[i] = _narrow_float16(_single(values, i))
    elif format_ == BFLOAT16:
        codes = array_at(address, np.uint64(values.size), _UINT16)
        for i in range(codes.size):
            codes[i] = narrow_bfloat16(_single(values, i))


@inline
def _encode_at_random(values, codes, first, key):  # type: ignore[no-untyped-def]
    """Write `values`, of which one is number `first` of its array, as bfloat16 rounded at random."""
    for i in range(codes.size):
        random = random_bits(key, np.uint32(first + np.uint32(i)))
        codes[i] = _narrow_bfloat16_stochastic(np.float32(values[i]), random)
