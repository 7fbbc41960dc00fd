"""A plain loop over rows of a table that does the memory accesses of an update: a lower bound for our rows.

It knows the rows in ascending order from the start, so it does not sort. For each row it reads the gradient, reads and
writes the parameter and both moments, and has a root and a division for each element. It writes back what it read.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from benchmarks.contestants.contestant import load
from benchmarks.workload import Array

NAME = "a plain loop over the sorted rows that reads 4 and writes 3, with a root and a division"


def _compiled(width: int) -> Any:
    """Return the loop over rows of a width that the compiler knows, with a share for each thread."""
    from numba_adam.cpu.kernels.prefetch import prefetch_lines_of
    from numba_adam.rows.kernels.disjoint import load as at
    from numba_adam.rows.kernels.disjoint import store

    numba: Any = load("numba")
    prange = numba.prange
    one, zero = np.float32(1), np.float32(0)
    row_bytes, ahead = np.uint64(4 * width), np.uint64(20)

    def one_share(arrays: Any, rows: Any, places: Any, begin: Any, end: Any, like: Any) -> None:
        param, exp_avg, exp_avg_sq, grads = arrays[0], arrays[1], arrays[2], arrays[3]
        for k in range(begin, end):
            if k + ahead < end:
                skip = np.uint64(rows[k + ahead]) * row_bytes
                prefetch_lines_of(param + skip, 1)
                prefetch_lines_of(exp_avg + skip, 1)
                prefetch_lines_of(exp_avg_sq + skip, 1)
                prefetch_lines_of(grads + np.uint64(places[k + ahead]) * row_bytes, 1)
            skip, grad = np.uint64(rows[k]) * row_bytes, grads + np.uint64(places[k]) * row_bytes
            for i in range(np.int64(width)):
                second = at(exp_avg_sq + skip, i, 2, like)
                added = zero * at(grad, i, 3, like) / (np.sqrt(second) + one)
                store(exp_avg + skip, i, 1, at(exp_avg + skip, i, 1, like) * one)
                store(exp_avg_sq + skip, i, 2, second * one)
                store(param + skip, i, 0, at(param + skip, i, 0, like) + added)

    compiled_share = numba.njit(nogil=True, error_model="numpy")(one_share)

    def update(arrays: Any, rows: Any, places: Any, shares: Any, like: Any) -> None:
        size = (rows.size + shares - 1) // shares
        for share in prange(shares):
            begin, end = share * size, min((share + 1) * size, rows.size)
            compiled_share(arrays, rows, places, np.uint64(begin), np.uint64(end), like)

    return numba.njit(parallel=True, nogil=True, error_model="numpy")(update)


class RowsLoop:
    """The loop, on the arrays of our rows."""

    def __init__(self, table: list[Array], sets: list[Array], grads: list[Array], threads: int) -> None:
        """Take a table.

        Args:
            table: its parameters, first and second moments, float32.
            sets: the rows of each step.
            grads: their gradients.
            threads: number of threads.
        """
        self._loop, self._threads, self._like = _compiled(table[0].shape[1]), threads, table[0].reshape(-1)[:0]
        self._kept = [*table, *grads]
        ordered = [(np.sort(rows), np.argsort(rows)) for rows in sets]
        addresses = [np.array([array.ctypes.data for array in (*table, grad)], dtype=np.uint64) for grad in grads]
        self._pushes = itertools.cycle(zip(addresses, ordered, strict=True))

    def step(self) -> object:
        """Read and write the next rows once."""
        arrays, (rows, places) = next(self._pushes)
        return self._loop(arrays, rows, places, self._threads, self._like)
