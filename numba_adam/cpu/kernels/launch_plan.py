"""What a launch works through: the arrays of many parameters, and the plan of one step. Imports Numba.

Passing an array from Python to a kernel costs a tenth of a microsecond, and a plan has two dozen of them. So a kernel
is passed one array, which contains the address and the length of each.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from numba_adam.cpu.kernels.compile import inline
from numba_adam.cpu.kernels.constants import CONSTANTS, SETTINGS
from numba_adam.cpu.kernels.intrinsics import array_at

Array = np.ndarray[Any, np.dtype[Any]]

PARAM, EXP_AVG, EXP_AVG_SQ, MAX_EXP_AVG_SQ, EMA, COPY = range(6)  # columns of `addresses` and `formats`
SCALE = 6  # columns from a moment in 8 bits to the scales of its blocks
COLUMNS = 2 * SCALE
ZERO_GRAD, IS_STOCHASTIC, SEED, IS_PLAIN, IS_LARGE = range(5)  # entries of `options`; `prepare` fills the last two
OPTIONS = 5
LARGE = 2**21  # elements of a step, at least 16 bytes each: no cache keeps them until the next step
OWNER = 4

_UINT64, _INT64, _FLOAT64 = np.empty(0, np.uint64), np.empty(0, np.int64), np.empty(0, np.float64)


class LaunchPlan(NamedTuple):
    """The arrays of n parameters in g param groups, and the plan of a step."""

    # What is updated.
    addresses: Array  # (n, COLUMNS) uint64; 0: there is no such array
    formats: Array  # (n, COLUMNS) int64: the number format of each array
    plain: Array  # (n,) int64: 1 if all arrays have the compute dtype and there is neither an EMA nor a copy
    numbers: Array  # (n,) int64: each parameter's index in its optimizer, which random numbers depend on
    options: Array  # (OPTIONS,) int64
    lengths: Array  # (n,) int64: number of elements
    groups: Array  # (n,) int64: each parameter's row of `settings`
    settings: Array  # (g, SETTINGS) float64: `Settings`

    # What a gradient must be, and the memory that it must not share.
    kinds: Array  # uint64: the addresses of None, of the type ndarray and of dtypes, see `gather.kinds`
    shapes: Array  # int64: the shapes, one after the other
    strides: Array  # int64: the strides, in elements, in the same order
    starts: Array  # (n + 1,) int64: where each shape begins in `shapes`
    begins: Array  # (m,) uint64: the beginning of each separate range of memory in use, ascending
    ends: Array  # (m,) uint64: its end
    objects: Array  # (n,) uint64: addresses of the gradients' array objects

    # Array objects of the caller that must not have changed since they were validated.
    owners: Array  # (n, OWNER) uint64: addresses of each object (0: none), its elements, its dtype; item bytes
    copies: Array  # (c, OWNER) uint64: the same for low-precision copies; item bytes unused

    # The step. `prepare` returns the number of parameters that have a gradient; so many first entries are valid.
    grads: Array  # (n,) uint64: addresses of all parameters' gradients, 0 without one
    grad_formats: Array  # (n,) int64: their formats
    rows: Array  # (n,) int64: the parameters that have a gradient
    offsets: Array  # (n + 1,) int64: where each of these begins, counted in elements of all
    blocks: Array  # (n + 1,) int64: the same, counted in blocks of `numerics.norm.SUM_BLOCK` elements
    which: Array  # (n,) int64: the row of `constants` for each of these
    constants: Array  # (n, CONSTANTS) of the compute dtype: `Constants`


def pack(plan: LaunchPlan) -> Array:
    """Return the address and the length of each array, (fields, 2) uint64; the plan must outlive it."""
    return np.array([(array.ctypes.data, len(array)) for array in plan], dtype=np.uint64)


@inline
def _at(entry, like):  # type: ignore[no-untyped-def]
    return array_at(entry[0], entry[1], like)


@inline
def _rows_at(entry, width, like):  # type: ignore[no-untyped-def]
    return array_at(entry[0], (entry[1], np.uint64(width)), like)


@inline
def unpack(packed, like):  # type: ignore[no-untyped-def]
    """Return the plan that `pack` packed; `like` is any array of the compute dtype."""
    return LaunchPlan(
        _rows_at(packed[0], COLUMNS, _UINT64),
        _rows_at(packed[1], COLUMNS, _INT64),
        _at(packed[2], _INT64),
        _at(packed[3], _INT64),
        _at(packed[4], _INT64),
        _at(packed[5], _INT64),
        _at(packed[6], _INT64),
        _rows_at(packed[7], SETTINGS, _FLOAT64),
        _at(packed[8], _UINT64),
        _at(packed[9], _INT64),
        _at(packed[10], _INT64),
        _at(packed[11], _INT64),
        _at(packed[12], _UINT64),
        _at(packed[13], _UINT64),
        _at(packed[14], _UINT64),
        _rows_at(packed[15], OWNER, _UINT64),
        _rows_at(packed[16], OWNER, _UINT64),
        _at(packed[17], _UINT64),
        _at(packed[18], _INT64),
        _at(packed[19], _INT64),
        _at(packed[20], _INT64),
        _at(packed[21], _INT64),
        _at(packed[22], _INT64),
        _rows_at(packed[23], CONSTANTS, like),
    )


def empty_step(count: int, dtype: str) -> dict[str, Array]:
    """Return the step's fields of a plan for `count` parameters, not yet filled."""
    return {
        "objects": np.zeros(count, dtype=np.uint64),
        "grads": np.zeros(count, dtype=np.uint64),
        "grad_formats": np.zeros(count, dtype=np.int64),
        "rows": np.zeros(count, dtype=np.int64),
        "offsets": np.zeros(count + 1, dtype=np.int64),
        "blocks": np.zeros(count + 1, dtype=np.int64),
        "which": np.zeros(count, dtype=np.int64),
        "constants": np.zeros((count, CONSTANTS), dtype=dtype),
    }
