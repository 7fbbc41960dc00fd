"""A plain loop that reads four arrays and writes three: a lower bound for any Adam update.

It runs over our contestant's own arrays and writes back the values it read, so that both touch the same pages. With a
root and a division for each element it is a lower bound in the caches too.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.contestants.contestant import load
from benchmarks.contestants.ours import Ours

NAME = "a plain loop that reads 4 and writes 3"
NAME_WITH_ROOTS = f"{NAME}, with a root and a division"


def _compiled(*, has_roots: bool) -> Any:
    """Return the loop, compiled like our kernels: vectorized, with a share for each thread."""
    numba: Any = load("numba")
    prange = numba.prange

    def one_share(param: Any, grad: Any, exp_avg: Any, exp_avg_sq: Any, one: Any, zero: Any) -> None:
        """Multiply by one and add zero, so that the compiler cannot remove the writes."""
        for i in range(param.size):
            param[i] = param[i] + zero * grad[i]
            exp_avg[i] = exp_avg[i] * one
            exp_avg_sq[i] = exp_avg_sq[i] * one

    def share_with_roots(param: Any, grad: Any, exp_avg: Any, exp_avg_sq: Any, one: Any, zero: Any) -> None:
        for i in range(param.size):
            param[i] = param[i] + zero * grad[i] / (np.sqrt(exp_avg_sq[i]) + one)
            exp_avg[i] = exp_avg[i] * one
            exp_avg_sq[i] = exp_avg_sq[i] * one

    compiled_share = numba.njit(nogil=True, error_model="numpy")(share_with_roots if has_roots else one_share)

    def read_4_write_3(param: Any, grad: Any, exp_avg: Any, exp_avg_sq: Any, one: Any, zero: Any, shares: Any) -> None:
        size = (param.size + shares - 1) // shares
        for share in prange(shares):
            begin, end = share * size, (share + 1) * size
            compiled_share(param[begin:end], grad[begin:end], exp_avg[begin:end], exp_avg_sq[begin:end], one, zero)

    return numba.njit(parallel=True, nogil=True, error_model="numpy")(read_4_write_3)


class MemoryLoop:
    """The loop, on the same number of threads as the update."""

    def __init__(self, ours: Ours, threads: int, *, has_roots: bool = False) -> None:
        """Use the arrays of a contestant that has made a step."""
        self._loop = _compiled(has_roots=has_roots)
        (param,), (grad,), (exp_avg, exp_avg_sq) = ours.params(), ours.grads(), ours.moments()
        self._arguments = (param, grad, exp_avg, exp_avg_sq, np.float32(1), np.float32(0), threads)

    def step(self) -> object:
        """Read and write the arrays once."""
        return self._loop(*self._arguments)
