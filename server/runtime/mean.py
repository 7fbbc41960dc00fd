"""The mean of the gradients of a round: their sum in order, in their own dtype, divided once. Imports NumPy.

Each element is computed by itself, and always in the order of the gradients. So its bits do not depend on the number of
threads or on how the vector is cut.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from numba_adam.server.model.arena import FlatArray

_BLOCK = 1 << 15  # elements: a block of the sum stays in the cache while all gradients are added
_BLOCKS_PER_TASK = 16


def write_mean(target: FlatArray, gradients: Sequence[FlatArray], count: int, threads: int = 1) -> None:
    """Write the sum of some gradients, divided by `count`.

    Args:
        target: gets the mean.
        gradients: at least one, each of the target's size and dtype; added in this order.
        count: number to divide by. It may be more than there are gradients: the others are zero.
        threads: number of threads for a large vector.
    """
    divisor = target.dtype.type(count)

    def work(begin: int) -> None:
        for start in range(begin, min(begin + _BLOCK * _BLOCKS_PER_TASK, target.size), _BLOCK):
            block = slice(start, start + _BLOCK)
            total = target[block]
            total[...] = gradients[0][block]
            for gradient in gradients[1:]:
                np.add(total, gradient[block], out=total)
            np.divide(total, divisor, out=total)

    begins = range(0, target.size, _BLOCK * _BLOCKS_PER_TASK)
    if threads == 1 or len(begins) < 2:
        for begin in begins:
            work(begin)
        return
    with ThreadPoolExecutor(threads, "numba-adam-mean") as pool:
        for _ in pool.map(work, begins):
            pass


def write_mean_of_present(
    target: FlatArray,
    gradients: Sequence[FlatArray],
    presents: Sequence[Sequence[bool]],
    sizes: Sequence[int],
    threads: int = 1,
) -> tuple[bool, ...]:
    """Write the mean of gradients that may lack arrays; return which arrays it has: those that any gradient has.

    Args:
        target: gets the arrays of the mean, concatenated from its beginning.
        gradients: each has its present arrays, concatenated from its beginning.
        presents: for each gradient, which arrays of the model it has. An array that it lacks counts as zero.
        sizes: number of elements of each array of the model.
        threads: number of threads for a large vector.
    """
    union = tuple(any(flags) for flags in zip(*presents, strict=True))
    if all(tuple(present) == union for present in presents):
        size = sum(each for each, is_present in zip(sizes, union, strict=True) if is_present)
        write_mean(target[:size], [gradient[:size] for gradient in gradients], len(gradients), threads)
        return union
    pieces = [_pieces(gradient, present, sizes) for gradient, present in zip(gradients, presents, strict=True)]
    at = 0
    for size, is_present, *parts in zip(sizes, union, *pieces, strict=True):
        if is_present:
            own = [part for part in parts if part is not None]
            write_mean(target[at : at + size], own, len(gradients), threads)
            at += size
    return union


def _pieces(gradient: FlatArray, present: Sequence[bool], sizes: Sequence[int]) -> Iterator[FlatArray | None]:
    """Yield the part of a gradient for each array of the model; None for one that it lacks."""
    at = 0
    for size, is_present in zip(sizes, present, strict=True):
        yield gradient[at : at + size] if is_present else None
        at += size if is_present else 0
