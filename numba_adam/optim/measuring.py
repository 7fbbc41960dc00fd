"""Steps that measure their gradients first: clip the global norm, and skip the step if a gradient is not finite."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from numba_adam.cpu.kernels.norm import measure
from numba_adam.numerics.norm import PLAIN_SQUARES, is_too_large, scale_of_squares
from numba_adam.settings.contract import Part
from numba_adam.settings.results import StepResult
from numba_adam.settings.scaling import Scaling

Plans = list[tuple[Part[Any], Any]]  # each part of an optimizer, and its plan of the step


def launch_if_finite(plans: Plans, scaling: Scaling) -> StepResult:
    """Make the planned step with its global norm clipped, unless a gradient, or its square, is not finite."""
    sums, scale = _sums_of_squares(plans)
    norm, factor = measure(np.array(sums), scaling.factor, scaling.max_norm, scale)
    if not all(map(math.isfinite, sums)) or _overflows(plans, scaling, factor, min(norm, scaling.max_norm)):
        return StepResult(applied=False, grad_norm=norm)
    for part, plan in plans:
        part.launch(plan if factor == scaling.factor else part.replan(plan, scaling.with_factor(factor)))
    return StepResult(applied=True, grad_norm=norm)


def _sums_of_squares(plans: Plans) -> tuple[list[float], float]:
    """Return the sum of squares of each part's gradients, and the factor by which these were multiplied.

    If squares of float64 gradients overflow or lose digits, the gradients are scaled and read again.
    """
    sums = [part.sum_of_squares(plan) for part, plan in plans]
    has_float64 = "float64" in [part.dtype for part, _ in plans]
    scale = scale_of_squares(sum(sums)) if has_float64 else PLAIN_SQUARES
    if scale == PLAIN_SQUARES:
        return sums, scale
    return [
        part.look_again(plan, scale)[0] if part.dtype == "float64" else total * scale * scale  # exact for float32
        for (part, plan), total in zip(plans, sums, strict=True)
    ], scale


def _overflows(plans: Plans, scaling: Scaling, factor: float, bound: float) -> bool:
    """Return whether the square of a gradient times `factor` overflows the second moment.

    The gradients are read again only if `bound`, an upper bound of their magnitudes, is near the limit.
    """
    return any(
        2.0 * bound >= part.largest_gradient
        and is_too_large(part.look_again(plan, PLAIN_SQUARES)[1], factor, scaling.clip_value, part.largest_gradient)
        for part, plan in plans
    )
