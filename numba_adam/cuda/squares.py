"""The sum of squares of all gradients, and their largest magnitude: one launch per format, and two for the total."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby

import numpy as np

from numba_adam.cuda import seam
from numba_adam.cuda.batches import pieces, queue
from numba_adam.cuda.kernels import norm
from numba_adam.cuda.memory import Buffer
from numba_adam.numerics.norm import SUM_LANES


class Squares:
    """The blocks of the gradients, their sums, and the total."""

    def __init__(self, sizes: Sequence[int], device: int, stream: int, *, has_doubles: bool) -> None:
        """Allocate the memory.

        Args:
            sizes: the numbers of elements of the arrays.
            device: the GPU.
            stream: the stream.
            has_doubles: True: gradients may be float64, with squares that may overflow or lose digits.
        """
        self._sizes, self._device, self._has_doubles = sizes, device, has_doubles
        self._blocks = pieces(range(len(sizes)), sizes, norm.BLOCK, device, stream)
        self._sums = Buffer((self._blocks.shape[0], norm.ROW), "float64", device)
        self.totals = Buffer(norm.TOTALS, "float64", device)

    def sum(self, grads: int, lengths: int, formats: Sequence[str], stream: int, *, again: bool = True) -> None:
        """Queue the sum.

        Args:
            grads: the address of the gradients' addresses, int64 each, 0 without a gradient.
            lengths: the address of the arrays' numbers of elements, int64 each.
            formats: format of each gradient; arbitrary without a gradient.
            stream: the stream.
            again: True: also queue the sum of scaled gradients, which replaces an inexact first one.
        """
        self._sum(grads, lengths, formats, stream, is_first=True)
        if again and self._has_doubles:
            self._sum(grads, lengths, formats, stream, is_first=False)

    def sum_scaled(self, scale: float, grads: int, lengths: int, formats: Sequence[str], stream: int) -> None:
        """Queue the sum of the gradients multiplied by `scale`, which is not 1."""
        self.totals.upload(np.array([0.0, 0.0, scale]), stream)
        self._sum(grads, lengths, formats, stream, is_first=False)

    def _sum(self, grads: int, lengths: int, formats: Sequence[str], stream: int, *, is_first: bool) -> None:
        count, threads = self._blocks.shape[0], seam.THREADS
        totals = 0 if is_first else self.totals.address
        for number, first, after in self._blocks_by_format(formats):
            blocks, sums = self._blocks.address + 16 * first, self._sums.address + 8 * norm.ROW * first
            arguments = (grads, lengths, blocks, after - first, sums, totals)
            grid = math.ceil((after - first) * SUM_LANES / threads)
            queue(norm.lanes_kernel(number), grid, threads, self._device, stream, *arguments)
        sums = self._sums.address
        queue(norm.blocks_kernel(), math.ceil(count / threads), threads, self._device, stream, sums, count, totals)
        what = (sums, count, self.totals.address, int(is_first), int(self._has_doubles))
        queue(norm.total_kernel(), 1, 1, self._device, stream, *what)

    def _blocks_by_format(self, formats: Sequence[str]) -> list[tuple[str, int, int]]:
        """Return runs of blocks whose gradients have one format: (format, first block, block after the last)."""
        ends = np.cumsum([0, *(math.ceil(size / norm.BLOCK) for size in self._sizes)])
        runs = [(number, list(rows)) for number, rows in groupby(range(len(formats)), key=formats.__getitem__)]
        ranges = [(number, int(ends[rows[0]]), int(ends[rows[-1] + 1])) for number, rows in runs]
        return [(number, first, after) for number, first, after in ranges if after > first]
