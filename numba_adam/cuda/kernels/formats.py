"""Number formats on a GPU: what lies in memory, and the way from there to numbers and back.

A kernel that computes in float32 takes 8 elements at a time, one that computes in float64 takes 4: its lanes. Formats
that are narrower than what any GPU's language computes in pass through `codes`, lanes of 16 bits. Moments in 8 bits
stay codes here: what they mean, a whole block says, see `eight_bit`.
"""

from __future__ import annotations

import functools
from inspect import isfunction
from typing import Any, NamedTuple

import numpy as np

from numba_adam.cuda import seam
from numba_adam.cuda.kernels import access
from numba_adam.cuda.kernels.layout import EIGHT_BIT
from numba_adam.numerics import codecs
from numba_adam.numerics.bind import bind

LANES = {"float32": 8, "float64": 4}  # elements that a thread takes at a time, by what is computed in
STOCHASTIC = "bfloat16, rounded at random"


@functools.cache
def codec(name: str) -> Any:
    """Return a function of `codecs`, compiled, and with it those of its neighbours that it calls."""
    if name in ("bits_of", "from_bits", "product"):
        return getattr(seam, name)
    function = getattr(codecs, name)
    called = [other for other in function.__code__.co_names if isfunction(getattr(codecs, other, None))]
    return seam.device(bind(function, **{other: codec(other) for other in called}))


class Format(NamedTuple):
    """One number format."""

    item_bytes: int  # 0: no column at all
    column: access.Column
    decode: Any  # (reals, codes): all lanes
    encode: Any  # (reals, codes, key, index): all lanes, of which the first is element `index` of its array


# What `bind` fills in.
_LANES = 8
_widen: Any = None
_narrow: Any = None
_single: Any = np.float32  # makes a float32 of what is computed in
_random_bits: Any = None


@seam.device
def _decode_nothing(reals, codes):  # type: ignore[no-untyped-def]
    pass


@seam.device
def _encode_nothing(reals, codes, key, index):  # type: ignore[no-untyped-def]
    pass


def _decode(reals, codes):  # type: ignore[no-untyped-def]
    for k in range(_LANES):
        reals[k] = _widen(codes[k])


def _encode(reals, codes, key, index):  # type: ignore[no-untyped-def]
    for k in range(_LANES):
        codes[k] = _narrow(_single(reals[k]))


def _encode_stochastic(reals, codes, key, index):  # type: ignore[no-untyped-def]
    for k in range(_LANES):
        codes[k] = _narrow(np.float32(reals[k]), _random_bits(key, np.uint32((index + k) & 0xFFFFFFFF)))


@functools.cache
def formats(real: str, *, by_way_of_float32: bool = False) -> dict[str, Format]:
    """Return all formats by name.

    Args:
        real: what a kernel computes in, "float32" or "float64"; "" is no column.
        by_way_of_float32: whether a float64 is rounded to float32 before it is rounded to 16 bits, and not once.
    """
    lanes = LANES[real]
    single = np.float32 if real == "float32" or by_way_of_float32 else codec("single")

    def bound(function: Any, **names: Any) -> Any:
        return seam.device(bind(function, _LANES=lanes, _single=single, **names))

    def native(dtype: str) -> Format:
        item_bytes = np.dtype(dtype).itemsize if dtype else 0
        return Format(item_bytes, access.column(dtype, lanes), _decode_nothing, _encode_nothing)

    codes = access.column("uint16", lanes)
    decode_bfloat16 = bound(_decode, _widen=codec("widen_bfloat16"))
    decode_float16 = bound(_decode, _widen=codec("widen_float16"))
    at_random = {"_narrow": codec("narrow_bfloat16_stochastic"), "_random_bits": codec("random_bits")}
    return {
        "": native(""),
        "float32": native("float32"),
        "float64": native("float64"),
        "bfloat16": Format(2, codes, decode_bfloat16, bound(_encode, _narrow=codec("narrow_bfloat16"))),
        "float16": Format(2, codes, decode_float16, bound(_encode, _narrow=codec("narrow_float16"))),
        EIGHT_BIT: Format(1, access.column("uint8", lanes), _decode_nothing, _encode_nothing),
        STOCHASTIC: Format(2, codes, decode_bfloat16, bound(_encode_stochastic, **at_random)),
    }
