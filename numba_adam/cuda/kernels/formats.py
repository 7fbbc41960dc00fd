"""Number formats on a GPU: how a column's elements move between memory and registers, decoded and encoded.

A thread of a float32 kernel takes 8 elements at a time, one of a float64 kernel takes 4: its lanes. 16-bit formats
pass through `codes`, lanes of uint16, because PTX does not compute in them on every GPU. 8-bit moments stay codes
here: their values depend on their block's scale, see `eight_bit`.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np

from numba_adam.cuda import seam
from numba_adam.cuda.kernels import access
from numba_adam.cuda.kernels.layout import EIGHT_BIT
from numba_adam.cuda.kernels.mathematics import codec

LANES = {"float32": 8, "float64": 4}  # elements that a thread processes at a time, by compute dtype
STOCHASTIC = "bfloat16, rounded at random"


class ColumnFormat(NamedTuple):
    """How a column of one number format is read and written. A column begins at the address `begin`."""

    item_bytes: int  # 0: no column
    load: Any  # (begin, index, reals, codes): all lanes, of which the first is element `index`; 16-byte loads
    store: Any  # (begin, index, reals, codes)
    load_element: Any  # (begin, index, k, reals, codes): element `index` into lane k
    store_element: Any  # (begin, index, k, reals, codes)
    decode: Any  # (reals, codes): all lanes
    encode: Any  # (reals, codes, key, index): all lanes, of which the first is element `index`


@seam.device
def _decode_nothing(reals, codes):  # type: ignore[no-untyped-def]
    pass


@seam.device
def _encode_nothing(reals, codes, key, index):  # type: ignore[no-untyped-def]
    pass


def _column(dtype: str, lanes: int, decode: Any = _decode_nothing, encode: Any = _encode_nothing) -> ColumnFormat:
    """Return the format of columns whose elements are stored as a dtype, "" for no column."""
    item_bytes = np.dtype(dtype).itemsize if dtype else 0
    load_lanes, store_lanes, load_lane, store_lane = access.lanes_of(dtype, lanes)

    @seam.device
    def load(begin, index, reals, codes):  # type: ignore[no-untyped-def]
        load_lanes(begin + index * item_bytes, reals, codes)

    @seam.device
    def store(begin, index, reals, codes):  # type: ignore[no-untyped-def]
        store_lanes(begin + index * item_bytes, reals, codes)

    @seam.device
    def load_element(begin, index, k, reals, codes):  # type: ignore[no-untyped-def]
        load_lane(begin + index * item_bytes, k, reals, codes)

    @seam.device
    def store_element(begin, index, k, reals, codes):  # type: ignore[no-untyped-def]
        store_lane(begin + index * item_bytes, k, reals, codes)

    return ColumnFormat(item_bytes, load, store, load_element, store_element, decode, encode)


def _decoder(lanes: int, widen: Any) -> Any:
    @seam.device
    def decode(reals, codes):  # type: ignore[no-untyped-def]
        for k in range(lanes):
            reals[k] = widen(codes[k])

    return decode


def _encoder(lanes: int, narrow: Any, to_float32: Any) -> Any:
    @seam.device
    def encode(reals, codes, key, index):  # type: ignore[no-untyped-def]
        for k in range(lanes):
            codes[k] = narrow(to_float32(reals[k]))

    return encode


def _stochastic_encoder(lanes: int) -> Any:
    narrow, rounding_bits = codec("narrow_bfloat16_stochastic"), codec("rounding_bits")

    @seam.device
    def encode(reals, codes, key, index):  # type: ignore[no-untyped-def]
        for k in range(lanes):
            codes[k] = narrow(np.float32(reals[k]), rounding_bits(key, np.uint32((index + k) & 0xFFFFFFFF)))

    return encode


@functools.cache
def formats(real: str, *, by_way_of_float32: bool = False) -> dict[str, ColumnFormat]:
    """Return all formats by name; "" is no column.

    Args:
        real: the compute dtype, "float32" or "float64".
        by_way_of_float32: True: round a float64 to float32 first, then to 16 bits; False: round once.
    """
    lanes = LANES[real]
    to_float32 = np.float32 if real == "float32" or by_way_of_float32 else codec("round_to_odd")
    from_bfloat16, from_float16 = _decoder(lanes, codec("widen_bfloat16")), _decoder(lanes, codec("widen_float16"))
    to_bfloat16 = _encoder(lanes, codec("narrow_bfloat16"), to_float32)
    to_float16 = _encoder(lanes, codec("narrow_float16"), to_float32)
    return {
        "": _column("", lanes),
        "float32": _column("float32", lanes),
        "float64": _column("float64", lanes),
        "bfloat16": _column("uint16", lanes, from_bfloat16, to_bfloat16),
        "float16": _column("uint16", lanes, from_float16, to_float16),
        EIGHT_BIT: _column("uint8", lanes),
        STOCHASTIC: _column("uint16", lanes, from_bfloat16, _stochastic_encoder(lanes)),
    }
