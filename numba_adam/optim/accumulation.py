"""Steps with accumulated gradients: turns the sums of several micro-batches into the gradients of one step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from numba_adam.errors import HyperparameterError, NamesError
from numba_adam.settings.contract import Part

Accumulation = Literal["mean", "sum"]


class _Accumulated:
    """The class of ACCUMULATED, its only instance. None cannot be the default: it means no gradient."""

    def __repr__(self) -> str:
        return "ACCUMULATED"


ACCUMULATED = _Accumulated()
"""The default of `grads` in `Adam.step`: use the sums of `accumulate`."""


def check_accumulation(accumulation: object) -> None:
    """Validate the argument `accumulation` of a step.

    Raises:
        HyperparameterError: it is neither "mean" nor "sum".
    """
    if not isinstance(accumulation, str) or accumulation not in ("mean", "sum"):
        raise HyperparameterError(f"accumulation={accumulation!r}: it must be 'mean' or 'sum'")


def share(accumulation: Accumulation, count: int) -> float:
    """Return the factor that turns the sums of `count` micro-batches into the gradients of a step.

    Raises:
        NamesError: there are no micro-batches.
    """
    if not count:
        raise NamesError("no gradients were given or accumulated: call step(grads), or accumulate(grads) before step()")
    return 1.0 / count if accumulation == "mean" else 1.0


def sums_of(parts: Sequence[Part[Any]]) -> list[Any]:
    """Return the accumulated gradient of every parameter of an optimizer, in order; None where it had none."""
    sums: list[Any] = [None] * sum(len(part.roster.places) for part in parts)
    for part in parts:
        if part.accumulator is not None:
            for place, array in zip(part.roster.places, part.accumulator.grads(), strict=True):
                sums[place] = array
    return sums
