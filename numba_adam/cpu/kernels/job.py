"""What the kernels work on besides the elements: a table's arrays, and the plan of one step. Imports Numba.

There are many such arrays, and each costs a tenth of a microsecond to pass from Python to a kernel; so they are passed
as one array that says where each lies and how long it is.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from numba_adam.cpu.kernels.compile import inline
from numba_adam.cpu.kernels.intrinsics import array_at
from numba_adam.numerics.constants import Constants, Settings

Array = np.ndarray[Any, np.dtype[Any]]

PARAM, EXP_AVG, EXP_AVG_SQ, MAX_EXP_AVG_SQ, EMA, COPY = range(6)  # columns of a job's table
SCALE = 6  # columns between an array in 8 bits and the scales of its blocks
COLUMNS = 2 * SCALE
ZERO_GRAD, IS_STOCHASTIC, SEED, IS_PLAIN, IS_LARGE = range(5)  # what a job's options say; the plan says the last two
OPTIONS = 5
LARGE = 2**21  # elements of a step, of 16 bytes or more each: from one step to the next no cache keeps them
OWNER = 4
BLOCK = 8192  # elements: sums run over blocks of an array, so that they do not depend on threads

_UINT64, _INT64, _FLOAT64 = np.empty(0, np.uint64), np.empty(0, np.int64), np.empty(0, np.float64)


class Job(NamedTuple):
    """The arrays of n parameters in g groups."""

    # What is updated.
    table: Array  # (n, COLUMNS) uint64: addresses; 0 where there is no such array
    formats: Array  # (n, COLUMNS) int64: the format of each
    plain: Array  # (n,) int64: 1 where all are of the dtype in which is computed, without an EMA and a copy
    numbers: Array  # (n,) int64: each parameter's place in its optimizer, which random numbers depend on
    options: Array  # (OPTIONS,) int64
    lengths: Array  # (n,) int64: number of elements
    groups: Array  # (n,) int64: which row of `settings` holds
    settings: Array  # (g, 11) float64: `Settings`

    # What a gradient must be, and the memory it must not share.
    kinds: Array  # uint64: address of None, of the type ndarray, of the dtypes, see `gather.kinds`
    shapes: Array  # int64: the extents, one array after the other
    strides: Array  # int64: the strides, in elements, in the same places
    starts: Array  # (n + 1,) int64: where each array's extents begin in `shapes`
    begins: Array  # (m,) uint64: where each run of memory taken begins, ascending
    ends: Array  # (m,) uint64: where it ends
    objects: Array  # (n,) uint64: where the gradients' array objects lie

    # What must not have changed since it was checked: array objects of the caller's.
    owners: Array  # (n, OWNER) uint64: where each parameter's lies, 0 without one; its elements; its dtype; item bytes
    copies: Array  # (c, OWNER) uint64: the same of low-precision copies; the item bytes do not count

    # The plan of a step over the arrays that have a gradient: `prepare` says how many, the first so many entries hold.
    grads: Array  # (n,) uint64: where each array's gradient lies, 0 without one
    grad_formats: Array  # (n,) int64: its format
    rows: Array  # (n,) int64: which arrays have one
    offsets: Array  # (n + 1,) int64: where each begins when all elements are counted through
    blocks: Array  # (n + 1,) int64: where each begins when blocks of BLOCK elements are counted through
    which: Array  # (n,) int64: the row of `constants` for each
    constants: Array  # (n, 16) of the arrays' dtype: `Constants`


def pack(job: Job) -> Array:
    """Return where each array lies and its length, (fields, 2) uint64; the job must outlive it."""
    return np.array([(array.ctypes.data, len(array)) for array in job], dtype=np.uint64)


@inline
def _at(place, like):  # type: ignore[no-untyped-def]
    return array_at(place[0], place[1], like)


@inline
def _rows_at(place, width, like):  # type: ignore[no-untyped-def]
    return array_at(place[0], (place[1], np.uint64(width)), like)


@inline
def unpack(places, like):  # type: ignore[no-untyped-def]
    """Return the job of which `pack` returned the places; `like` is of the arrays' dtype."""
    return Job(
        _rows_at(places[0], COLUMNS, _UINT64),
        _rows_at(places[1], COLUMNS, _INT64),
        _at(places[2], _INT64),
        _at(places[3], _INT64),
        _at(places[4], _INT64),
        _at(places[5], _INT64),
        _at(places[6], _INT64),
        _rows_at(places[7], _SETTINGS, _FLOAT64),
        _at(places[8], _UINT64),
        _at(places[9], _INT64),
        _at(places[10], _INT64),
        _at(places[11], _INT64),
        _at(places[12], _UINT64),
        _at(places[13], _UINT64),
        _at(places[14], _UINT64),
        _rows_at(places[15], OWNER, _UINT64),
        _rows_at(places[16], OWNER, _UINT64),
        _at(places[17], _UINT64),
        _at(places[18], _INT64),
        _at(places[19], _INT64),
        _at(places[20], _INT64),
        _at(places[21], _INT64),
        _at(places[22], _INT64),
        _rows_at(places[23], _CONSTANTS, like),
    )


_SETTINGS, _CONSTANTS = len(Settings._fields), len(Constants._fields)


def empty_plan(count: int, dtype: str) -> dict[str, Array]:
    """Return a job's plan with room for so many arrays, by the names of its fields."""
    return {
        "objects": np.zeros(count, dtype=np.uint64),
        "grads": np.zeros(count, dtype=np.uint64),
        "grad_formats": np.zeros(count, dtype=np.int64),
        "rows": np.zeros(count, dtype=np.int64),
        "offsets": np.zeros(count + 1, dtype=np.int64),
        "blocks": np.zeros(count + 1, dtype=np.int64),
        "which": np.zeros(count, dtype=np.int64),
        "constants": np.zeros((count, _CONSTANTS), dtype=dtype),
    }
