"""What an optimizer keeps beside the parameters, and in which formats: said once, when it is made. Knows no kernel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from numba_adam.errors import DtypeError, HyperparameterError
from numba_adam.numerics.formats import BFLOAT16, FLOAT16, FLOAT32, FLOAT64, NAMES
from numba_adam.settings.limits import check_ema_decay
from numba_adam.settings.scalars import flag, real, whole

StateDtype = Literal["float32", "float64", "bfloat16", "8bit"]
Rounding = Literal["nearest", "stochastic"]
CopyDtype = Literal["bfloat16", "float16"]

_STATE_DTYPES = ("float32", "float64", "bfloat16", "8bit")
_ROUNDINGS = ("nearest", "stochastic")
_COPY_DTYPES = ("bfloat16", "float16")
_LAST_SEED = 2**63 - 1
_NARROW = (BFLOAT16, FLOAT16)

TOO_NARROW = (
    "float16 cannot hold second moments: the square of a gradient below 0.0001 becomes 0 there, and that of one above "
    "256 infinite; use bfloat16, which takes as much memory, or 8bit, which takes half as much"
)


@dataclass(frozen=True, slots=True)
class Options:
    """The options of an optimizer that hold for all its parameters and steps.

    Raises:
        HyperparameterError: a value is not admissible.
    """

    state_dtype: StateDtype | None = None
    """Format of the moments. None: float64 for float64 parameters, float32 for the rest."""

    rounding: Rounding = "nearest"
    """How bfloat16 arrays are rounded when they are written; state in 8 bits has a way of its own."""

    seed: int = 0
    """Of the stochastic rounding, and of the 8-bit state's."""

    master_weights: bool = False
    """Whether 16-bit parameters are images of a float32 copy that the optimizer keeps."""

    ema_decay: float | None = None
    """Decay rate of a moving average of the weights; None: none is kept."""

    low_precision_copy: CopyDtype | None = None
    """Format of a copy of the new parameters that each step writes; None: none."""

    def __post_init__(self) -> None:
        """Check every option."""
        if str(self.state_dtype) == "float16":
            raise HyperparameterError(f"state_dtype='float16': {TOO_NARROW}")
        _one_of("state_dtype", self.state_dtype, (None, *_STATE_DTYPES))
        _one_of("rounding", self.rounding, _ROUNDINGS)
        _one_of("low_precision_copy", self.low_precision_copy, (None, *_COPY_DTYPES))
        object.__setattr__(self, "seed", _seed(self.seed))
        object.__setattr__(self, "master_weights", flag("master_weights", self.master_weights))
        if self.ema_decay is not None:
            object.__setattr__(self, "ema_decay", _decay(self.ema_decay))

    def state_format(self, param_format: int) -> str:
        """Return the name of the format of the moments of a parameter."""
        default = "float64" if param_format == FLOAT64 else "float32"
        return self.state_dtype or default

    def computed_in(self, param_format: int) -> str:
        """Return the dtype in which a parameter is updated, "float32" or "float64"; its average has it too."""
        return "float64" if "float64" in (NAMES[param_format], self.state_format(param_format)) else "float32"

    def has_master(self, param_format: int) -> bool:
        """Say whether a parameter is the image of a float32 copy."""
        return self.master_weights and param_format in _NARROW

    def check(self, label: str, param_format: int) -> None:
        """Refuse a parameter that the options do not fit.

        Args:
            label: what messages call the parameter.
            param_format: its format.

        Raises:
            DtypeError: its format and the options cannot be combined.
            HyperparameterError: the dtype that it is computed in cannot hold an option.
        """
        if self.ema_decay is not None:
            check_ema_decay(self.ema_decay, self.computed_in(param_format))
        name, state = NAMES[param_format], self.state_format(param_format)
        if self.master_weights and self.low_precision_copy:
            raise HyperparameterError(
                "master_weights and low_precision_copy are both given: with master weights the parameters are the "
                "low-precision copy; choose one"
            )
        computed = NAMES[FLOAT32] if self.has_master(param_format) else name
        if computed == "float64" and state in ("bfloat16", "8bit"):
            raise DtypeError(
                f"params{label} is float64, state_dtype={state!r}: float64 parameters need a state of float64 or "
                "float32"
            )
        if computed in ("bfloat16", "float16") and state == "float64":
            raise DtypeError(
                f"params{label} is {name}, state_dtype='float64': such parameters need a state of float32, bfloat16 or "
                "8bit, or master_weights=True"
            )
        if computed == "float16" and self.rounding == "stochastic":
            raise DtypeError(
                f"params{label} is float16, rounding='stochastic': that is for bfloat16; use rounding='nearest', or "
                "master_weights=True"
            )


def _one_of(name: str, value: object, choices: tuple[object, ...]) -> None:
    if not isinstance(value, (str, type(None))) or value not in choices:
        raise HyperparameterError(f"{name}={value!r}: it must be {' or '.join(map(repr, choices))}")


def _seed(value: object) -> int:
    seed = whole("seed", value)
    if not 0 <= seed <= _LAST_SEED:
        raise HyperparameterError(f"seed={seed}: it must be from 0 to 2**63 - 1")
    return seed


def _decay(value: object) -> float:
    decay = real("ema_decay", value)
    if not 0.0 <= decay < 1.0:
        raise HyperparameterError(f"ema_decay={value!r}: it must be at least 0 and below 1, or None")
    return decay
