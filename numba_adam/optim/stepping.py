"""The stages of a step, over all parts of an optimizer: make ready, plan, check, launch.

All parts make the step, or none does: the first three stages change neither a parameter nor its state. An optimizer has
one part, unless its parameters differ in compute dtype or device.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from numba_adam.interop.arrays import Extents, in_memory
from numba_adam.optim.measuring import Plans, launch_if_finite
from numba_adam.settings.contract import Part, SelfMeasuringPart
from numba_adam.settings.results import APPLIED, StepResult
from numba_adam.settings.scaling import AS_THEY_ARE, Scaling
from numba_adam.settings.step_arrays import written

Parts = Sequence[Part[Any]]


def make_ready(parts: Parts) -> None:
    """Make every part's table for the current hyperparameters, and the state that its step needs.

    Raises:
        ArrayError: two of the arrays that a step writes share memory.
    """
    for part in parts:
        if not part.is_ready():
            _make_tables(parts)
            break


def _make_tables(parts: Parts) -> None:
    """Make a table for every part, and the state that is missing."""
    drafts = [part.draft() for part in parts]
    pairs = [
        written(arrays, part.roster.labels, part.column_labels) for part, arrays in zip(parts, drafts, strict=True)
    ]
    extents = Extents(
        [array for arrays, _ in pairs for array in arrays], [name for _, names in pairs for name in names]
    )
    for part, arrays in zip(parts, drafts, strict=True):
        part.make_table(arrays, extents)


def plan(parts: Parts, grads: Sequence[Any], scaling: Scaling) -> Plans:
    """Validate the gradients, those of all parameters in order, and plan a step of each part.

    Raises:
        ArrayError: a gradient does not fit; the message names it. Nothing was changed.
    """
    if len(parts) == 1:
        return [(parts[0], parts[0].plan(grads, scaling))]
    return [(part, part.plan(own, scaling)) for part, own in zip(parts, _divided(grads, parts), strict=True)]


def check(plans: Plans) -> None:
    """Refuse gradients that share memory if the step sets them to zero: it would zero one before it reads the other.

    Raises:
        OverlapError: two gradients share memory. Nothing was changed.
    """
    begins, ends, names = zip(*(part.extents_of_grads(plan) for part, plan in plans), strict=True)
    in_memory(np.concatenate(begins), np.concatenate(ends), [name for several in names for name in several])


def launch(plans: Plans, scaling: Scaling) -> StepResult:
    """Make the planned step. If the gradients are measured: only if they are finite, and with their norm clipped."""
    if scaling.is_measured:
        part, its_plan = plans[0]
        if len(plans) == 1 and part.measures_in_launch:
            assert isinstance(part, SelfMeasuringPart)
            return part.launch_measured(its_plan)
        return launch_if_finite(plans, scaling)
    for part, its_plan in plans:
        part.launch(its_plan)
    return APPLIED


def accumulate(parts: Parts, grads: Sequence[Any]) -> None:
    """Add gradients, those of all parameters in order, to their sums, or change nothing if one does not fit.

    Raises:
        ArrayError: a gradient does not fit; the message names it. Nothing was changed.
    """
    make_ready(parts)
    plans = plan(parts, grads, AS_THEY_ARE)
    for part in parts:
        part.make_accumulator()  # first, because an allocation may fail
    for (part, its_plan), own in zip(plans, _divided(grads, parts), strict=True):
        part.accumulate(its_plan, own)


def _divided(grads: Sequence[Any], parts: Parts) -> list[list[Any]]:
    """Return the gradients of each part."""
    return [[grads[place] for place in part.roster.places] for part in parts]
