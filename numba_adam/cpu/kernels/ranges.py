"""The elements of all arrays of a plan as one range, divided into one piece for each thread. Imports Numba."""

from __future__ import annotations

from typing import Any

from numba_adam.cpu.kernels.compile import inline, merged
from numba_adam.cpu.kernels.constants import constants_of
from numba_adam.cpu.kernels.intrinsics import enter_ieee, leave_ieee
from numba_adam.cpu.kernels.search import count_below

TILE = 512  # elements: threads meet at multiples of this in an array, so that no block of 8-bit moments is divided


def range_updater(update_part: Any) -> Any:
    """Return a function that updates a range of a plan's elements, compiled around what it does to one array.

    Args:
        update_part: compiled, of (plan, row, step, begin, size, constants): updates `size` elements of one array.
    """

    @merged
    def update_range(plan, count, steps, begin, end):  # type: ignore[no-untyped-def]
        """Update the elements from `begin` to `end`, counted over all arrays of the plan.

        Args:
            plan: the plan.
            count: number of arrays in it.
            steps: (n,) int64: updates made so far.
            begin: the first element.
            end: the one after the last.
        """
        environment = enter_ieee()
        offsets = plan.offsets
        k = count_below(offsets, count + 1, begin + 1) - 1  # the last array that begins here or before
        while begin < end:
            stop = offsets[k + 1] if offsets[k + 1] < end else end
            row = plan.rows[k]
            c = constants_of(plan.constants[plan.which[k]])
            update_part(plan, row, steps[row] + 1, begin - offsets[k], stop - begin, c)
            begin = stop
            k += 1
        leave_ieee(environment)

    return update_range


@inline
def cut(plan, count, task, tasks):  # type: ignore[no-untyped-def]
    """Return the element at which a task begins: the beginning of a tile, so that no two tasks share one."""
    offsets = plan.offsets
    total = offsets[count]
    begin = task * (total // tasks + 1)
    if begin >= total:
        return total
    first = offsets[count_below(offsets, count + 1, begin + 1) - 1]
    return first + (begin - first) // TILE * TILE


@inline
def count_steps(plan, count, steps):  # type: ignore[no-untyped-def]
    """Increment the step of every array of the plan."""
    for k in range(count):
        steps[plan.rows[k]] += 1
