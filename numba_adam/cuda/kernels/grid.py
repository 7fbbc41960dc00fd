"""Entry points: one array, or many in one launch over a table of where they lie; and how threads share them.

What is done to a group of elements is filled in by those who make kernels: `update`, `eight_bit`, `accumulate`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from numba_adam.cuda import seam
from numba_adam.cuda.kernels import access, formats
from numba_adam.cuda.kernels.columns import columns
from numba_adam.cuda.kernels.layout import CHUNK, CONSTANTS, KEYS_BYTES, Keys, Lanes, Layout, Place
from numba_adam.numerics.bind import bind
from numba_adam.numerics.constants import Constants

cuda = seam.cuda

# What `bind` fills in.
_registers: Any = None
_first_group: Any = None
_update_group: Any = None
_update_span: Any = None
_constants_at: Any = None
_keys_at: Any = None
_load_real: Any = None
_within: Any = None
_LANES = 8
_REAL: Any = np.float32
_CODE: Any = np.uint16
_REAL_BYTES = 4
_ZERO: Any = np.float32(0)
_load_int64 = access.scalar("int64")[0]
_load_uint32 = access.scalar("uint32")[0]


def _registers_of_lanes():  # type: ignore[no-untyped-def]
    """Return room for the elements at work: numbers, and codes."""
    reals = Lanes(
        _within.local.array(_LANES, _REAL),
        _within.local.array(_LANES, _REAL),
        _within.local.array(_LANES, _REAL),
        _within.local.array(_LANES, _REAL),
        _within.local.array(_LANES, _REAL),
        _within.local.array(_LANES, _REAL),
        _within.local.array(1, _REAL),
    )
    codes = Lanes(
        _within.local.array(_LANES, _CODE),
        _within.local.array(_LANES, _CODE),
        _within.local.array(_LANES, _CODE),
        _within.local.array(_LANES, _CODE),
        _within.local.array(_LANES, _CODE),
        _within.local.array(_LANES, _CODE),
        _within.local.array(_LANES, _CODE),
    )
    return reals, codes


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
        _ZERO,
    )


def _keys_of(address):  # type: ignore[no-untyped-def]
    """Return the keys at an address; a compiler leaves out those that a layout does not ask for."""
    return Keys(
        _load_uint32(address),
        _load_uint32(address + 4),
        _load_uint32(address + 8),
        _load_uint32(address + 12),
        _load_uint32(address + 16),
        _load_uint32(address + 20),
    )


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


def _flat(places, count, constants, keys, skip):  # type: ignore[no-untyped-def]
    """Update one array.

    Args:
        places: the addresses of its columns, in the order of Place; 0 for what the layout does not have.
        count: number of elements.
        constants: where the folded constants lie, a row of CONSTANTS.
        keys: where the keys of the random numbers lie, a row of KEYS uint32.
        skip: where an int64 lies that is not 0 when the step is to be left out.
    """
    if _load_int64(skip) != 0:
        return
    reals, codes = _registers()
    place = Place(
        places[0], places[1], places[2], places[3], places[4], places[5], places[6], places[7], places[8], places[9]
    )
    work = (reals, codes, _constants_at(constants), _keys_at(keys))
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
        keys: where the keys of the random numbers lie, a row of KEYS uint32 for each array.
        skip: where an int64 lies that is not 0 when the step is to be left out.
    """
    if _load_int64(skip) != 0:
        return
    reals, codes = _registers()
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
            _load_int64(entry + column * 7),
            _load_int64(entry + column * 8),
            _load_int64(entry + column * 9),
        )
        if place.grad != 0:
            end = min(begin + CHUNK, _load_int64(lengths + row * 8))
            c = _constants_at(constants + row * (CONSTANTS * _REAL_BYTES))
            work = (reals, codes, c, _keys_at(keys + row * KEYS_BYTES))
            _update_span(place, begin, end, np.int64(cuda.threadIdx.x), np.int64(cuda.blockDim.x), work)


class Kernels(NamedTuple):
    """What is done to arrays of a layout, compiled at its first launch."""

    flat: Any  # one array
    table: Any  # many


def basics(layout: Layout) -> dict[str, Any]:
    """Return the names that all kernels of a layout are bound to: how columns move, and what constants are."""
    names: dict[str, Any] = columns(layout)
    names |= {"_LANES": formats.LANES[layout.real], "_REAL": getattr(np, layout.real)}
    names |= {"_REAL_BYTES": np.dtype(layout.real).itemsize, "_load_real": access.scalar(layout.real)[0]}
    names |= {"_HAS_MAX": bool(layout.max_exp_avg_sq), "_HAS_EMA": bool(layout.ema), "_ZERO_GRAD": layout.zero_grad}
    names |= {"_ZERO": getattr(np, layout.real)(0), "_within": seam.within}
    return compiled(names, {"_registers": _registers_of_lanes, "_constants_at": _constants_of, "_keys_at": _keys_of})


def compiled(names: Mapping[str, Any], pieces: Mapping[str, Callable[..., Any]]) -> dict[str, Any]:
    """Return the names, and functions compiled with them beside: each of these uses those above it."""
    known = dict(names)
    for name, function in pieces.items():
        known[name] = seam.device(bind(function, **known))
    return known


def kernels(names: Mapping[str, Any], what: str, layout: Layout) -> Kernels:
    """Return the entry points of `basics`' names and an `_update_group`, or an `_update_span` of one's own.

    Args:
        names: what the entry points are bound to.
        what: is done to arrays; with the layout it says all that the names do.
        layout: what the names were made for.
    """
    known = dict(names) if "_update_span" in names else compiled(names, {"_update_span": _span})
    return Kernels(
        seam.kernel(bind(_flat, **known), f"{what}-flat", layout),
        seam.kernel(bind(_table, **known), f"{what}-table", layout),
    )


# The types of the kernels' arguments, for those who compile without launching.
FLAT_ARGUMENTS = ("10 int64", "int64", "int64", "int64", "int64")
TABLE_ARGUMENTS = ("int64",) * 8
