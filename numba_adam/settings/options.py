"""The options of an optimizer: the state that it keeps, and its formats. Imports no kernel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from numba_adam.errors import DtypeError, HyperparameterError
from numba_adam.numerics.formats import Format
from numba_adam.settings.limits import check_ema_decay
from numba_adam.settings.scalars import flag, real, whole

StateDtype = Literal["float32", "float64", "bfloat16", "8bit"]
Rounding = Literal["nearest", "stochastic"]
CopyDtype = Literal["bfloat16", "float16"]

_STATE_DTYPES = ("float32", "float64", "bfloat16", "8bit")
_ROUNDINGS = ("nearest", "stochastic")
_COPY_DTYPES = ("bfloat16", "float16")
_LAST_SEED = 2**63 - 1
_NARROW = (Format.BFLOAT16, Format.FLOAT16)

TOO_NARROW = (
    "float16 cannot hold second moments: the square of a gradient below 0.0001 becomes 0 there, and that of one above "
    "256 infinite; use bfloat16, which takes as much memory, or 8bit, which takes half as much"
)


@dataclass(frozen=True, slots=True)
class Options:
    """The options of an optimizer, valid for all its parameters and steps.

    Raises:
        HyperparameterError: a value is not valid.
    """

    state_dtype: StateDtype | None = None
    """Format of the moments. None: float64 for float64 parameters, float32 for the rest."""

    rounding: Rounding = "nearest"
    """How bfloat16 arrays are rounded when they are written; state in 8 bits is always rounded with a dither."""

    seed: int = 0
    """Seed of the random numbers of stochastic rounding, and of the dither of state in 8 bits."""

    master_weights: bool = False
    """Whether the optimizer keeps float32 master weights, and 16-bit parameters are rounded copies of them."""

    ema_decay: float | None = None
    """Decay rate of a moving average of the weights; None: no average."""

    low_precision_copy: CopyDtype | None = None
    """Format of the copy of the new parameters that each step writes; None: no copy."""

    def __post_init__(self) -> None:
        """Validate every option."""
        if str(self.state_dtype) == "float16":
            raise HyperparameterError(f"state_dtype='float16': {TOO_NARROW}")
        _one_of("state_dtype", self.state_dtype, (None, *_STATE_DTYPES))
        _one_of("rounding", self.rounding, _ROUNDINGS)
        _one_of("low_precision_copy", self.low_precision_copy, (None, *_COPY_DTYPES))
        object.__setattr__(self, "seed", _seed(self.seed))
        object.__setattr__(self, "master_weights", flag("master_weights", self.master_weights))
        if self.ema_decay is not None:
            object.__setattr__(self, "ema_decay", _decay(self.ema_decay))

    def state_format(self, param_format: Format) -> str:
        """Return the format of the moments of a parameter."""
        default = "float64" if param_format == Format.FLOAT64 else "float32"
        return self.state_dtype or default

    def computed_in(self, param_format: Format) -> str:
        """Return the compute dtype of a parameter, "float32" or "float64"; it is the dtype of its average too."""
        return "float64" if "float64" in (param_format.label, self.state_format(param_format)) else "float32"

    def has_master(self, param_format: Format) -> bool:
        """Say whether a parameter has float32 master weights."""
        return self.master_weights and param_format in _NARROW

    def check(self, label: str, param_format: Format) -> None:
        """Refuse a parameter whose format does not fit the options.

        Args:
            label: the name of the parameter in messages.
            param_format: its format.

        Raises:
            DtypeError: the format and the options cannot be combined.
            HyperparameterError: the compute dtype cannot represent an option.
        """
        if self.ema_decay is not None:
            check_ema_decay(self.ema_decay, self.computed_in(param_format))
        name, state = param_format.label, self.state_format(param_format)
        if self.master_weights and self.low_precision_copy:
            raise HyperparameterError(
                "master_weights and low_precision_copy are both given: with master weights the parameters are the "
                "low-precision copy; choose one"
            )
        computed = Format.FLOAT32.label if self.has_master(param_format) else name
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
