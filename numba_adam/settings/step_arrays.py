"""The arrays that a step reads and writes, and the work that is fused into its pass. The same for every backend.

An array of a backend is a NumPy array or a CudaArray; a moment may also be an EightBit of either. All lists here have
one entry for each parameter, in the parameters' order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from numba_adam.numerics.eight_bit import EightBit
from numba_adam.numerics.formats import Format, format_of
from numba_adam.settings.options import Options

# What error messages call the columns of StepArrays, and the gradients.
LABELS = ("params", "exp_avg", "exp_avg_sq", "max_exp_avg_sq", "ema", "low_precision", "grads")
MASTER_LABELS = (*LABELS[:5], "params", LABELS[6])  # master weights: the low-precision copies are the parameters


class Moments(NamedTuple):
    """The moving averages of the gradients."""

    exp_avgs: list[Any]
    exp_avg_sqs: list[Any]
    max_exp_avg_sqs: list[Any]  # None for a parameter without AMSGrad


@dataclass(slots=True)
class Copies:
    """The arrays that an optimizer keeps for its parameters, except the moments."""

    params: list[Any]
    """The parameters."""

    masters: list[Any]
    """float32 master weights, from which 16-bit parameters are rounded; None without."""

    emas: list[Any]
    """Moving averages of the weights, in the compute dtype; None without."""

    low_precision: list[Any]
    """Low-precision copies of the parameters; None without."""

    @property
    def updated(self) -> list[Any]:
        """The arrays that the update changes: the master weights if there are any, otherwise the parameters."""
        return [param if master is None else master for param, master in zip(self.params, self.masters, strict=True)]

    @property
    def rounded(self) -> list[Any]:
        """The arrays for the rounded new parameters: the parameter itself if it has a master copy."""
        triples = zip(self.params, self.masters, self.low_precision, strict=True)
        return [copy if master is None else param for param, master, copy in triples]


class StepArrays(NamedTuple):
    """The arrays that one step writes, column by column in the order of LABELS; None for a missing array."""

    params: Sequence[Any]
    exp_avgs: Sequence[Any]
    exp_avg_sqs: Sequence[Any]
    max_exp_avg_sqs: Sequence[Any]
    emas: Sequence[Any]
    low_precision: Sequence[Any]


class Extras(NamedTuple):
    """Optional work that is fused into the pass, and how the pass rounds."""

    emas: Sequence[Any] | None = None  # moving averages of the weights, one for each parameter
    copies: Sequence[Any] | None = None  # low-precision copies of the new parameters
    ema_decay: float = 0.0
    is_stochastic: bool = False  # whether bfloat16 arrays are rounded at random
    seed: int = 0
    numbers: Sequence[int] | None = None  # the parameters' places in their optimizer; None: 0, 1, 2, ...

    @classmethod
    def of(cls, options: Options, arrays: StepArrays, numbers: Sequence[int]) -> Extras:
        """Return the extras for an optimizer's options."""
        is_stochastic = options.rounding == "stochastic"
        return cls(
            arrays.emas, arrays.low_precision, options.ema_decay or 0.0, is_stochastic, options.seed, list(numbers)
        )


NO_EXTRAS = Extras()


def array_format(array: Any) -> Format:
    """Return the format of an array that was validated, or of a moment in 8 bits."""
    if isinstance(array, EightBit):
        return Format.EIGHT_BIT
    format_ = format_of(array.dtype)
    assert format_ is not None
    return format_


def written(
    columns: Sequence[Sequence[Any]], names: Sequence[str], labels: Sequence[str] = LABELS
) -> tuple[list[Any], list[str]]:
    """Return the arrays of columns in one list, and a name for each.

    Args:
        columns: as StepArrays; None where a parameter has no array. A moment in 8 bits has two arrays.
        names: names of the parameters in error messages.
        labels: names of the columns in error messages.
    """
    pairs = [
        pair
        for label, column in zip(labels, columns, strict=False)
        for array, name in zip(column, names, strict=True)
        for pair in _memory_of(array, f"{label}{name}")
    ]
    return [array for array, _ in pairs], [name for _, name in pairs]


def _memory_of(array: Any, name: str) -> list[tuple[Any, str]]:
    """Return the arrays that a moment consists of, and a name for each."""
    if array is None:
        return []
    if isinstance(array, EightBit):
        return [(array.codes, name), (array.scales, f"{name}'s scales")]
    return [(array, name)]
