"""The elements of all arrays of a plan as one range, which is cut into one piece for each thread. Imports Numba."""

from __future__ import annotations

from typing import Any

from numba_adam.cpu.kernels.compile import inline
from numba_adam.cpu.kernels.intrinsics import enter_ieee, leave_ieee
from numba_adam.cpu.kernels.search import count_below
from numba_adam.numerics.constants import Constants

TILE = 512  # elements: threads meet at multiples of so many of an array, and blocks that share a scale are not cut


@inline
def _constants(row):  # type: ignore[no-untyped-def]
    """Return a row of constants by their names."""
    return Constants(
        row[0],
        row[1],
        row[2],
        row[3],
        row[4],
        row[5],
        row[6],
        row[7],
        row[8],
        row[9],
        row[10],
        row[11],
        row[12],
        row[13],
        row[14],
        row[15],
    )


update_part: Any = None  # (job, row, step, begin, size, constants): what `update` and `tiled` do to one array


def update_range(job, count, steps, begin, end):  # type: ignore[no-untyped-def]
    """Update the elements from `begin` to `end`, counted over all arrays of the plan.

    Compiled by those who bind `update_part`.

    Args:
        job: the job.
        count: how many arrays the plan holds.
        steps: (n,) int64: updates made so far.
        begin: the first element.
        end: the one after the last.
    """
    before = enter_ieee()
    offsets = job.offsets[: count + 1]
    k = count_below(offsets, begin + 1) - 1  # the last array that begins here or before
    while begin < end:
        stop = min(end, offsets[k + 1])
        row = job.rows[k]
        c = _constants(job.constants[job.which[k]])
        update_part(job, row, steps[row] + 1, begin - offsets[k], stop - begin, c)
        begin = stop
        k += 1
    leave_ieee(before)


@inline
def cut(job, count, task, tasks):  # type: ignore[no-untyped-def]
    """Return the element at which a task begins: where a tile of its array begins, so that it shares none."""
    offsets = job.offsets[: count + 1]
    share = offsets[count] // tasks + 1
    if task * share >= offsets[count]:
        return offsets[count]
    first = offsets[count_below(offsets, task * share + 1) - 1]
    return first + (task * share - first) // TILE * TILE


@inline
def count_steps(job, count, steps):  # type: ignore[no-untyped-def]
    """Count the update in the step of every array of the plan."""
    for k in range(count):
        steps[job.rows[k]] += 1
