"""The arrays of a table and the rows that a call names: borrowed, validated, sorted. Imports no framework."""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import numpy as np

from numba_adam.errors import DtypeError, LayoutError, ReadOnlyError, ShapeError, UnsupportedArrayError
from numba_adam.interop import borrow
from numba_adam.interop.arrays import Extents, check_like
from numba_adam.numerics.array import Array
from numba_adam.rows.kernels.grouping import Groups, group, groups_in

NOTHING = np.empty(0, dtype=np.int64)


class Table(NamedTuple):
    """The validated arrays of a table."""

    arrays: list[Array]  # param, exp_avg, exp_avg_sq and perhaps max_exp_avg_sq
    ranges: list[tuple[int, int]]  # address and number of bytes of each of these, and of last_step
    last_step: Array  # empty if none was given
    names: list[str]  # of all these
    row_count: int
    width: int  # elements of a row
    dtype: str


def borrow_table(
    param: object, exp_avg: object, exp_avg_sq: object, largest: object | None, last_step: object
) -> Table:
    """Borrow and validate the arrays of a table."""
    names = ["param", "exp_avg", "exp_avg_sq", *([] if largest is None else ["max_exp_avg_sq"])]
    given = [param, exp_avg, exp_avg_sq, largest]
    arrays = [borrow(array, name=name, writable=True) for array, name in zip(given, names, strict=False)]
    table = arrays[0]
    if table.ndim == 0:
        raise ShapeError("param has shape (): it must have rows, which its first index picks")
    for array, name in zip(arrays[1:], names[1:], strict=True):
        check_like(array, name, table, "param")
    steps = NOTHING if last_step is None else _last_step(last_step, len(table))
    names.append("last_step")
    ranges = [(address(array), array.nbytes) for array in (*arrays, steps)]
    _check_apart(ranges, [*arrays, steps], names)
    return Table(arrays, ranges, steps, names, len(table), table[:1].size, str(table.dtype))


def _check_apart(ranges: list[tuple[int, int]], arrays: list[Array], names: list[str]) -> None:
    """Refuse arrays that share memory. For so few arrays Python's sort is faster than NumPy's."""
    in_order = sorted([each for each in ranges if each[1]])
    if any(begin + size > following for (begin, size), (following, _) in itertools.pairwise(in_order)):
        Extents(arrays, names)  # raises the error, with the names


def _last_step(given: object, count: int) -> Array:
    """Validate a last_step array, which is updated in place."""
    if not isinstance(given, np.ndarray):
        raise UnsupportedArrayError(f"last_step is of type {type(given).__name__}: it must be a NumPy array of int64")
    if given.shape != (count,):
        raise ShapeError(f"last_step has shape {given.shape}: it must have one entry for each row of param, ({count},)")
    if given.dtype != np.int64:
        raise DtypeError(f"last_step has dtype {given.dtype}: it must be int64")
    if not given.dtype.isnative or not given.flags.c_contiguous or not given.flags.aligned:
        raise LayoutError("last_step must be C-contiguous, aligned and in native byte order: np.array(last_step)")
    if not given.flags.writeable:
        raise ReadOnlyError("last_step is read-only: it is updated in place; make a copy and keep that")
    return np.asarray(given)


def row_numbers(rows: Any, table: Table) -> Array:
    """Return `rows` as int64; unsigned numbers beyond int64 become negative, and are refused later."""
    try:
        array = np.asarray(rows)
    except Exception as error:  # frameworks raise different errors for an array on a device
        raise UnsupportedArrayError(f"rows ({type(rows).__name__}) cannot be read ({error}); give integers") from error
    if array.ndim != 1:
        raise ShapeError(f"rows has shape {array.shape}: it must have one dimension, (k,)")
    if array.dtype.kind not in "iu" and not (array.size == 0 and isinstance(rows, (list, tuple))):
        raise DtypeError(f"rows has dtype {array.dtype}: it must hold integers")
    if array.size.bit_length() + table.row_count.bit_length() > 63:  # both are sorted as one number of 64 bits
        raise ShapeError(f"{array.size} rows of {table.row_count}: their product must be below 2**61")
    return np.require(array, np.int64, ["C", "A", "W"]) if array.dtype.kind != "f" else NOTHING


def borrow_grads(given: object, rows: Array, table: Table) -> Array:
    """Borrow and validate the gradients."""
    grads, param = borrow(given, name="grad_rows", any_order=True), table.arrays[0]
    needed = (rows.size, *param.shape[1:])
    if grads.shape != needed:
        raise ShapeError(f"grad_rows has shape {grads.shape}: it must have a row of param for each of rows, {needed}")
    if grads.dtype != param.dtype:
        raise DtypeError(f"grad_rows has dtype {grads.dtype}: it must have the dtype of param, {param.dtype}")
    ranges = [*table.ranges, (address(grads), grads.nbytes)]
    _check_apart(ranges, [*table.arrays, table.last_step, grads], [*table.names, "grad_rows"])
    return grads if grads.flags.c_contiguous else np.ascontiguousarray(grads)


def validate_rows(outside: int, rows: Any, table: Table) -> None:
    """Refuse a row that is not in the table: the one at position `outside`, or none for -1."""
    if outside >= 0:
        row = np.asarray(rows)[outside]
        if table.row_count == 0:
            raise ShapeError(f"rows[{outside}] is {row}: param has no rows, so rows must be empty")
        raise ShapeError(f"rows[{outside}] is {row}: it must be from 0 to {table.row_count - 1}, the last row of param")


def distinct_rows(numbers: Array, rows: Any, table: Table, buffer: Array) -> Groups:
    """Return the distinct rows, where their positions begin, and the positions: views of `buffer`."""
    outside, count, begin = group(numbers, table.row_count, buffer)
    validate_rows(outside, rows, table)
    found: Groups = groups_in.py_func(buffer, numbers.size, count, begin)
    return found


def address(array: Array) -> int:
    """Return the address of an array's elements."""
    return int(array.ctypes.data)
