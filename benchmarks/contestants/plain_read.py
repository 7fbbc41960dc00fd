"""A plain loop that reads an array once: a lower bound for the norm of a gradient."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.contestants.contestant import load
from benchmarks.workload import Array

NAME = "a plain loop that reads them"


def _compiled() -> Any:
    """Return the loop, with a share for each thread. The bits of all elements are combined, which is vector code."""
    numba: Any = load("numba")
    prange = numba.prange

    def one_share(bits: Any) -> Any:
        every = np.int32(0)
        for i in range(bits.size):
            every |= bits[i]
        return every

    compiled_share = numba.njit(nogil=True)(one_share)

    def read(bits: Any, results: Any) -> None:
        shares = results.size
        size = (bits.size + shares - 1) // shares
        for share in prange(shares):
            results[share] = compiled_share(bits[share * size : (share + 1) * size])

    return numba.njit(parallel=True, nogil=True)(read)


class PlainRead:
    """The loop, on as many threads as the step."""

    def __init__(self, array: Array, threads: int) -> None:
        """Read a float32 array."""
        self._read = _compiled()
        self._bits, self.results = array.view(np.int32), np.zeros(threads, np.int32)

    def step(self) -> object:
        """Read the array once."""
        return self._read(self._bits, self.results)
