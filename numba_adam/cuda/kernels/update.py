"""The update on a GPU: one array, or many in one launch over a table of where they lie.

A thread takes a group of neighbouring elements at a time, as many as it has lanes: it asks for all of their columns by
loads of 16 bytes before it waits for any, computes, and stores. Groups begin where the columns lie at multiples of 16
bytes; at an array's ends, and where the columns are never aligned together, elements move one by one. An element's new
value depends on nothing but that element, so neither matters for the bits.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np

from numba_adam import element
from numba_adam.binding import bind
from numba_adam.cuda import seam
from numba_adam.cuda.kernels import access, formats
from numba_adam.folding import Constants

cuda = seam.cuda

CHUNK = 16_384  # elements that a block takes of an array at a time
CONSTANTS = 16  # numbers in a row of constants: Constants, and one that fills it up to whole wide loads
COLUMNS = 7  # addresses in a table's row, in the order of Place


class Layout(NamedTuple):
    """What a kernel is compiled for: the format of each column, "" where there is none, and how it rounds."""

    param: str = "float32"
    grad: str = "float32"
    exp_avg: str = "float32"
    exp_avg_sq: str = "float32"
    max_exp_avg_sq: str = ""
    ema: str = ""
    copy: str = ""  # a second, narrower image of the new parameters
    zero_grad: bool = False
    contract: bool = False  # let the compiler fuse multiplications with additions: other bits, hardly faster

    @property
    def real(self) -> str:
        """What is computed in."""
        return "float64" if "float64" in (self.param, self.exp_avg, self.exp_avg_sq) else "float32"


class Place(NamedTuple):
    """Where the columns of an array lie: addresses, 0 where there is none."""

    param: Any
    grad: Any
    exp_avg: Any
    exp_avg_sq: Any
    max_exp_avg_sq: Any
    ema: Any
    copy: Any


class Lanes(NamedTuple):
    """The columns of the elements at work, in registers: numbers, or the codes of a narrow format."""

    param: Any
    grad: Any
    exp_avg: Any
    exp_avg_sq: Any
    max_exp_avg_sq: Any
    ema: Any
    copy: Any


# What `bind` fills in for a layout.
_load: Any = None
_store: Any = None
_moments: Any = None
_largest: Any = None
_adapt: Any = None
_average: Any = None
_update_lane: Any = None
_update_group: Any = None
_load_group: Any = None
_load_element: Any = None
_store_group: Any = None
_store_element: Any = None
_decode_group: Any = None
_encode_group: Any = None
_first_group: Any = None
_update_span: Any = None
_constants_at: Any = None
_load_real: Any = None
_load_param = _load_grad = _load_exp_avg = _load_exp_avg_sq = _load_max_exp_avg_sq = _load_ema = _load
_load_one_param = _load_one_grad = _load_one_exp_avg = _load_one_exp_avg_sq = _load
_load_one_max_exp_avg_sq = _load_one_ema = _load
_store_param = _store_grad = _store_exp_avg = _store_exp_avg_sq = _store_max_exp_avg_sq = _store_ema = _store
_store_one_param = _store_one_grad = _store_one_exp_avg = _store_one_exp_avg_sq = _store
_store_one_max_exp_avg_sq = _store_one_ema = _store_copy = _store_one_copy = _store
_decode_param = _decode_grad = _decode_exp_avg = _decode_exp_avg_sq = _decode_max_exp_avg_sq = _decode_ema = _load
_encode_param = _encode_grad = _encode_exp_avg = _encode_exp_avg_sq = _encode_max_exp_avg_sq = _store
_encode_ema = _encode_copy = _store
_HAS_MAX = _HAS_EMA = _ZERO_GRAD = False
_LANES = 8
_PARAM = _GRAD = _EXP_AVG = _EXP_AVG_SQ = _MAX_EXP_AVG_SQ = _EMA = _COPY = 4  # bytes of an element; 0: no column
_REAL: Any = np.float32
_CODE: Any = np.uint16
_REAL_BYTES = 4
_load_int64 = access.scalar("int64")[0]
_load_uint32 = access.scalar("uint32")[0]


def _lane(reals, k, c):  # type: ignore[no-untyped-def]
    """Update one of the elements at work."""
    exp_avg, exp_avg_sq = _moments(reals.param[k], reals.grad[k], reals.exp_avg[k], reals.exp_avg_sq[k], c)
    reals.exp_avg[k] = exp_avg
    reals.exp_avg_sq[k] = exp_avg_sq
    terrain = exp_avg_sq
    if _HAS_MAX:
        terrain = _largest(reals.max_exp_avg_sq[k], exp_avg_sq)
        reals.max_exp_avg_sq[k] = terrain
    param = _adapt(reals.param[k], exp_avg, terrain, c)
    reals.param[k] = param
    if _HAS_EMA:
        reals.ema[k] = _average(reals.ema[k], param, c)
    if _ZERO_GRAD:
        reals.grad[k] = c.zero


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


def _encode_all(reals, codes, key, index):  # type: ignore[no-untyped-def]
    _encode_param(reals.param, codes.param, key, index)
    _encode_exp_avg(reals.exp_avg, codes.exp_avg, key, index)
    _encode_exp_avg_sq(reals.exp_avg_sq, codes.exp_avg_sq, key, index)
    _encode_max_exp_avg_sq(reals.max_exp_avg_sq, codes.max_exp_avg_sq, key, index)
    _encode_ema(reals.ema, codes.ema, key, index)
    _encode_copy(reals.param, codes.copy, key, index)
    _encode_grad(reals.grad, codes.grad, key, index)


def _group(place, index, bounds, is_wide, work):  # type: ignore[no-untyped-def]
    """Update the group whose first lane is element `index`, or those of its elements that lie within the bounds."""
    reals, codes, c, key = work
    begin, end = bounds
    if is_wide:
        _load_group(place, index, reals, codes)
    else:
        for k in range(_LANES):
            if begin <= index + k < end:
                _load_element(place, index + k, k, reals, codes)
    _decode_group(reals, codes)
    for k in range(_LANES):
        if is_wide or begin <= index + k < end:
            _update_lane(reals, k, c)
    _encode_group(reals, codes, key, index)
    if is_wide:
        _store_group(place, index, reals, codes)
    else:
        for k in range(_LANES):
            if begin <= index + k < end:
                _store_element(place, index + k, k, reals, codes)


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


def _span(place, begin, end, thread, threads, work):  # type: ignore[no-untyped-def]
    """Update the elements of an array from `begin` to `end`: the share of one of so many threads."""
    first = _first_group(place, begin)
    is_aligned = first >= 0
    first = first if is_aligned else begin
    if first > begin:
        first -= _LANES  # a group of which only the last lanes are within bounds
    bounds = (begin, end)
    for index in range(first + thread * _LANES, end, threads * _LANES):
        is_wide = is_aligned and begin <= index and index + _LANES <= end
        _update_group(place, index, bounds, is_wide, work)


def _constants_of(address):  # type: ignore[no-untyped-def]
    """Return the constants at an address; all threads of a block ask for the same, so one answer serves them."""
    return Constants(
        _load_real(address),
        _load_real(address + _REAL_BYTES),
        _load_real(address + _REAL_BYTES * 2),
        _load_real(address + _REAL_BYTES * 3),
        _load_real(address + _REAL_BYTES * 4),
        _load_real(address + _REAL_BYTES * 5),
        _load_real(address + _REAL_BYTES * 6),
        _load_real(address + _REAL_BYTES * 7),
        _load_real(address + _REAL_BYTES * 8),
        _load_real(address + _REAL_BYTES * 9),
        _load_real(address + _REAL_BYTES * 10),
        _load_real(address + _REAL_BYTES * 11),
        _load_real(address + _REAL_BYTES * 12),
        _load_real(address + _REAL_BYTES * 13),
        _load_real(address + _REAL_BYTES * 14),
    )


def _flat(places, count, constants, key, skip):  # type: ignore[no-untyped-def]
    """Update one array.

    Args:
        places: the addresses of its columns, in the order of Place; 0 for what the layout does not have.
        count: number of elements.
        constants: where the folded constants lie, a row of CONSTANTS.
        key: where the key of the random numbers lies, uint32.
        skip: where an int64 lies that is not 0 when the step is to be left out.
    """
    if _load_int64(skip) != 0:
        return
    reals = Lanes(
        cuda.local.array(_LANES, _REAL),
        cuda.local.array(_LANES, _REAL),
        cuda.local.array(_LANES, _REAL),
        cuda.local.array(_LANES, _REAL),
        cuda.local.array(_LANES, _REAL),
        cuda.local.array(_LANES, _REAL),
        cuda.local.array(1, _REAL),
    )
    codes = Lanes(
        cuda.local.array(_LANES, _CODE),
        cuda.local.array(_LANES, _CODE),
        cuda.local.array(_LANES, _CODE),
        cuda.local.array(_LANES, _CODE),
        cuda.local.array(_LANES, _CODE),
        cuda.local.array(_LANES, _CODE),
        cuda.local.array(_LANES, _CODE),
    )
    place = Place(places[0], places[1], places[2], places[3], places[4], places[5], places[6])
    work = (reals, codes, _constants_at(constants), _load_uint32(key))
    threads = np.int64(cuda.gridDim.x) * np.int64(cuda.blockDim.x)
    thread = np.int64(cuda.blockIdx.x) * np.int64(cuda.blockDim.x) + np.int64(cuda.threadIdx.x)
    _update_span(place, np.int64(0), count, thread, threads, work)


def _table(places, lengths, count, chunks, chunk_count, constants, keys, skip):  # type: ignore[no-untyped-def]
    """Update many arrays, a chunk at a time.

    Args:
        places: where (COLUMNS, count) int64 lie: the addresses of every array's columns, in the order of Place; arrays
            whose gradient's is 0 are left alone.
        lengths: where (count,) int64 lie: numbers of elements.
        count: how many arrays there are.
        chunks: where (chunk_count, 2) int64 lie: an array, and the element of it at which the chunk begins.
        chunk_count: how many chunks there are.
        constants: where the folded constants lie, a row of CONSTANTS for each array.
        keys: where (count,) uint32 lie: the keys of the random numbers.
        skip: where an int64 lies that is not 0 when the step is to be left out.
    """
    if _load_int64(skip) != 0:
        return
    reals = Lanes(
        cuda.local.array(_LANES, _REAL),
        cuda.local.array(_LANES, _REAL),
        cuda.local.array(_LANES, _REAL),
        cuda.local.array(_LANES, _REAL),
        cuda.local.array(_LANES, _REAL),
        cuda.local.array(_LANES, _REAL),
        cuda.local.array(1, _REAL),
    )
    codes = Lanes(
        cuda.local.array(_LANES, _CODE),
        cuda.local.array(_LANES, _CODE),
        cuda.local.array(_LANES, _CODE),
        cuda.local.array(_LANES, _CODE),
        cuda.local.array(_LANES, _CODE),
        cuda.local.array(_LANES, _CODE),
        cuda.local.array(_LANES, _CODE),
    )
    column = count * 8
    for chunk in range(np.int64(cuda.blockIdx.x), chunk_count, np.int64(cuda.gridDim.x)):
        row, begin = _load_int64(chunks + chunk * 16), _load_int64(chunks + chunk * 16 + 8)
        entry = places + row * 8
        place = Place(
            _load_int64(entry),
            _load_int64(entry + column),
            _load_int64(entry + column * 2),
            _load_int64(entry + column * 3),
            _load_int64(entry + column * 4),
            _load_int64(entry + column * 5),
            _load_int64(entry + column * 6),
        )
        if place.grad != 0:
            end = min(begin + CHUNK, _load_int64(lengths + row * 8))
            work = (
                reals,
                codes,
                _constants_at(constants + row * (CONSTANTS * _REAL_BYTES)),
                _load_uint32(keys + row * 4),
            )
            _update_span(place, begin, end, np.int64(cuda.threadIdx.x), np.int64(cuda.blockDim.x), work)


class Kernels(NamedTuple):
    """The update, compiled for a layout."""

    flat: Any  # one array
    table: Any  # many


def _mathematics(layout: Layout) -> dict[str, Any]:
    """Return the functions of `element`, compiled for a layout."""
    product = seam.product if layout.real == "float32" else seam.product64
    if layout.contract:
        product = seam.device(element.product)
    names = {"product": product, "np": seam.arithmetic}
    return {
        f"_{function.__name__}": seam.device(bind(function, **names))
        for function in (element.moments, element.largest, element.adapt, element.average)
    }


def _memory(layout: Layout) -> dict[str, Any]:
    """Return how the columns of a layout are read and written, and how wide they are."""
    known = formats.formats(layout.real)
    names: dict[str, Any] = {}
    for name in Place._fields:
        entry = known[getattr(layout, name)]
        if name == "copy" and layout.param == "float32":  # a copy of the parameter as it is stored
            entry = formats.formats(layout.real, by_way_of_float32=True)[layout.copy]
        written = entry if layout.zero_grad or name != "grad" else known[""]
        names[f"_{name.upper()}"] = entry.item_bytes
        names[f"_load_{name}"], names[f"_load_one_{name}"] = entry.column.load, entry.column.load_one
        names[f"_store_{name}"], names[f"_store_one_{name}"] = written.column.store, written.column.store_one
        names[f"_decode_{name}"], names[f"_encode_{name}"] = entry.decode, written.encode
    return names


@functools.cache
def kernels(layout: Layout) -> Kernels:
    """Return the kernels for a layout. They are compiled at their first launch."""
    names: dict[str, Any] = _memory(layout) | _mathematics(layout)
    names |= {"_LANES": formats.LANES[layout.real], "_REAL": getattr(np, layout.real)}
    names |= {"_REAL_BYTES": np.dtype(layout.real).itemsize, "_load_real": access.scalar(layout.real)[0]}
    names |= {"_HAS_MAX": bool(layout.max_exp_avg_sq), "_HAS_EMA": bool(layout.ema), "_ZERO_GRAD": layout.zero_grad}
    pieces: dict[str, Any] = {  # each uses those above it
        "_update_lane": _lane,
        "_load_group": _read,
        "_load_element": _read_one,
        "_store_group": _write,
        "_store_element": _write_one,
        "_decode_group": _decode_all,
        "_encode_group": _encode_all,
        "_update_group": _group,
        "_first_group": _aligned_element,
        "_update_span": _span,
        "_constants_at": _constants_of,
    }
    for name, function in pieces.items():
        names[name] = seam.device(bind(function, **names))
    return Kernels(seam.kernel(bind(_flat, **names)), seam.kernel(bind(_table, **names)))


# The types of the kernels' arguments, for those who compile without launching.
FLAT_ARGUMENTS = ("7 int64", "int64", "int64", "int64", "int64")
TABLE_ARGUMENTS = ("int64",) * 8
