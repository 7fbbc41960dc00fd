"""The columns of a group of neighbouring elements: from memory into a thread's registers, and back.

A thread asks for all of a group's columns by wide loads before it waits for any. Where a group is not whole, or lies at
no multiple of 16 bytes, elements move one by one.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from numba_adam.cuda import seam
from numba_adam.cuda.kernels import formats
from numba_adam.cuda.kernels.layout import Lanes, Layout
from numba_adam.numerics.bind import bind

# What `bind` fills in for a layout.
_load: Any = None
_store: Any = None
_load_param = _load_grad = _load_exp_avg = _load_exp_avg_sq = _load_max_exp_avg_sq = _load_ema = _load
_load_one_param = _load_one_grad = _load_one_exp_avg = _load_one_exp_avg_sq = _load
_load_one_max_exp_avg_sq = _load_one_ema = _load
_store_param = _store_grad = _store_exp_avg = _store_exp_avg_sq = _store_max_exp_avg_sq = _store_ema = _store
_store_one_param = _store_one_grad = _store_one_exp_avg = _store_one_exp_avg_sq = _store
_store_one_max_exp_avg_sq = _store_one_ema = _store_copy = _store_one_copy = _store
_decode_param = _decode_grad = _decode_exp_avg = _decode_exp_avg_sq = _decode_max_exp_avg_sq = _decode_ema = _load
_encode_param = _encode_grad = _encode_exp_avg = _encode_exp_avg_sq = _encode_max_exp_avg_sq = _store
_encode_ema = _encode_copy = _store
_PARAM = _GRAD = _EXP_AVG = _EXP_AVG_SQ = _MAX_EXP_AVG_SQ = _EMA = _COPY = 4  # bytes of an element; 0: no column


def _read(place, index, reals, codes):  # type: ignore[no-untyped-def]
    """Read a whole group by loads of 16 bytes, element `index` being the first lane's."""
    _load_param(place.param + index * _PARAM, reals.param, codes.param)
    _load_grad(place.grad + index * _GRAD, reals.grad, codes.grad)
    _load_exp_avg(place.exp_avg + index * _EXP_AVG, reals.exp_avg, codes.exp_avg)
    _load_exp_avg_sq(place.exp_avg_sq + index * _EXP_AVG_SQ, reals.exp_avg_sq, codes.exp_avg_sq)
    _load_max_exp_avg_sq(place.max_exp_avg_sq + index * _MAX_EXP_AVG_SQ, reals.max_exp_avg_sq, codes.max_exp_avg_sq)
    _load_ema(place.ema + index * _EMA, reals.ema, codes.ema)


def _read_one(place, i, k, reals, codes):  # type: ignore[no-untyped-def]
    """Read element i into lane k."""
    _load_one_param(place.param + i * _PARAM, k, reals.param, codes.param)
    _load_one_grad(place.grad + i * _GRAD, k, reals.grad, codes.grad)
    _load_one_exp_avg(place.exp_avg + i * _EXP_AVG, k, reals.exp_avg, codes.exp_avg)
    _load_one_exp_avg_sq(place.exp_avg_sq + i * _EXP_AVG_SQ, k, reals.exp_avg_sq, codes.exp_avg_sq)
    _load_one_max_exp_avg_sq(place.max_exp_avg_sq + i * _MAX_EXP_AVG_SQ, k, reals.max_exp_avg_sq, codes.max_exp_avg_sq)
    _load_one_ema(place.ema + i * _EMA, k, reals.ema, codes.ema)


def _write(place, index, reals, codes):  # type: ignore[no-untyped-def]
    """Write a whole group by stores of 16 bytes."""
    _store_param(place.param + index * _PARAM, reals.param, codes.param)
    _store_exp_avg(place.exp_avg + index * _EXP_AVG, reals.exp_avg, codes.exp_avg)
    _store_exp_avg_sq(place.exp_avg_sq + index * _EXP_AVG_SQ, reals.exp_avg_sq, codes.exp_avg_sq)
    _store_max_exp_avg_sq(place.max_exp_avg_sq + index * _MAX_EXP_AVG_SQ, reals.max_exp_avg_sq, codes.max_exp_avg_sq)
    _store_ema(place.ema + index * _EMA, reals.ema, codes.ema)
    _store_copy(place.copy + index * _COPY, reals.param, codes.copy)
    _store_grad(place.grad + index * _GRAD, reals.grad, codes.grad)


def _write_one(place, i, k, reals, codes):  # type: ignore[no-untyped-def]
    """Write lane k as element i."""
    _store_one_param(place.param + i * _PARAM, k, reals.param, codes.param)
    _store_one_exp_avg(place.exp_avg + i * _EXP_AVG, k, reals.exp_avg, codes.exp_avg)
    _store_one_exp_avg_sq(place.exp_avg_sq + i * _EXP_AVG_SQ, k, reals.exp_avg_sq, codes.exp_avg_sq)
    _store_one_max_exp_avg_sq(place.max_exp_avg_sq + i * _MAX_EXP_AVG_SQ, k, reals.max_exp_avg_sq, codes.max_exp_avg_sq)
    _store_one_ema(place.ema + i * _EMA, k, reals.ema, codes.ema)
    _store_one_copy(place.copy + i * _COPY, k, reals.param, codes.copy)
    _store_one_grad(place.grad + i * _GRAD, k, reals.grad, codes.grad)


def _decode_all(reals, codes):  # type: ignore[no-untyped-def]
    _decode_param(reals.param, codes.param)
    _decode_grad(reals.grad, codes.grad)
    _decode_exp_avg(reals.exp_avg, codes.exp_avg)
    _decode_exp_avg_sq(reals.exp_avg_sq, codes.exp_avg_sq)
    _decode_max_exp_avg_sq(reals.max_exp_avg_sq, codes.max_exp_avg_sq)
    _decode_ema(reals.ema, codes.ema)


def _encode_all(reals, codes, keys, index):  # type: ignore[no-untyped-def]
    _encode_param(reals.param, codes.param, keys.param, index)
    _encode_exp_avg(reals.exp_avg, codes.exp_avg, keys.exp_avg, index)
    _encode_exp_avg_sq(reals.exp_avg_sq, codes.exp_avg_sq, keys.exp_avg_sq, index)
    _encode_max_exp_avg_sq(reals.max_exp_avg_sq, codes.max_exp_avg_sq, keys.max_exp_avg_sq, index)
    _encode_ema(reals.ema, codes.ema, keys.param, index)
    _encode_copy(reals.param, codes.copy, keys.param, index)
    _encode_grad(reals.grad, codes.grad, keys.param, index)


def _aligned_element(place, begin):  # type: ignore[no-untyped-def]
    """Return the first element from `begin` on, less than LANES away, that may begin a group of wide accesses.

    There every column lies at a multiple of 16 bytes; -1 if there is none.
    """
    first = begin + ((-(place.param + begin * _PARAM)) & 15) // _PARAM
    low = (place.param + first * _PARAM) | (place.grad + first * _GRAD)
    low |= (place.exp_avg + first * _EXP_AVG) | (place.exp_avg_sq + first * _EXP_AVG_SQ)
    low |= (place.max_exp_avg_sq + first * _MAX_EXP_AVG_SQ) | (place.ema + first * _EMA)
    low |= place.copy + first * _COPY
    return np.int64(-1) if low & 15 else first


def _memory(layout: Layout) -> dict[str, Any]:
    """Return how the columns of a layout are read and written, and how wide they are."""
    known = formats.formats(layout.real)
    names: dict[str, Any] = {}
    for name in Lanes._fields:
        entry = known[getattr(layout, name)]
        if name == "copy" and layout.param == "float32":  # a copy of the parameter as it is stored
            entry = formats.formats(layout.real, by_way_of_float32=True)[layout.copy]
        written = entry if layout.zero_grad or name != "grad" else known[""]
        names[f"_{name.upper()}"] = entry.item_bytes
        names[f"_load_{name}"], names[f"_load_one_{name}"] = entry.column.load, entry.column.load_one
        names[f"_store_{name}"], names[f"_store_one_{name}"] = written.column.store, written.column.store_one
        names[f"_decode_{name}"], names[f"_encode_{name}"] = entry.decode, written.encode
    return names


def columns(layout: Layout) -> dict[str, Any]:
    """Return what moves a layout's columns, compiled, by the names under which kernels know it."""
    names = _memory(layout)
    pieces: dict[str, Any] = {
        "_load_group": _read,
        "_load_element": _read_one,
        "_store_group": _write,
        "_store_element": _write_one,
        "_decode_group": _decode_all,
        "_encode_group": _encode_all,
        "_first_group": _aligned_element,
    }
    return {name: seam.device(bind(function, **names)) for name, function in pieces.items()}
