"""The result of `Adam.step`. Imports only the standard library."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a step did."""

    applied: bool
    """True when the parameters were updated; False when a gradient was found not to be finite, or so large that its
    square is not: from 2**64 on for second moments of float32's range (2**512 of float64's)."""

    grad_norm: float | None = None
    """Global norm of the gradients, unscaled and before clipping, when the step measured it."""


APPLIED = StepResult(applied=True)


def may_have_written(result: StepResult) -> bool:
    """Return whether a step may have written to the parameters; never waits for a GPU.

    A result of another class is decided on a GPU: reading it would wait, so the answer is yes.
    """
    return result is APPLIED or type(result) is not StepResult or result.applied


def has_surely_written(result: StepResult) -> bool:
    """Return whether a step is known to have written to the parameters; never waits for a GPU."""
    return type(result) is StepResult and result.applied
