"""Adam's hyperparameters: one frozen record, checked when it is made. Imports the standard library and `scalars`.

The library, the server's state machine and the client all use this record, so a value that one of them accepts
is accepted by all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from numba_adam.errors import HyperparameterError
from numba_adam.settings.scalars import flag, real, whole

EpsMode = Literal["hat", "algorithm1"]
EPS_MODES: tuple[EpsMode, ...] = ("hat", "algorithm1")
LAST_STEP = 2**53  # the last number up to which float64 counts, in which PyTorch may keep a step


@dataclass(frozen=True, slots=True)
class Hyperparameters:
    """The numbers that steer one update, with PyTorch's names and defaults.

    Raises:
        HyperparameterError: a value is out of range, not finite or of the wrong type.
    """

    lr: float = 1e-3
    """Learning rate: the largest change, roughly, that one step makes to a parameter. At least 0."""

    betas: tuple[float, float] = (0.9, 0.999)
    """Decay rates of the two moving averages, each in [0, 1)."""

    eps: float = 1e-8
    """Keeps the denominator above zero; `eps_mode` says where it is added. At least 0."""

    weight_decay: float = 0.0
    """Pull towards zero. At least 0."""

    decoupled_weight_decay: bool = False
    """False: the decay is added to the gradient (L2). True: it shrinks the parameter itself (AdamW)."""

    eps_mode: EpsMode = "hat"
    """"hat": eps is added to sqrt(exp_avg_sq), the epsilon-hat of Kingma & Ba section 2 (TensorFlow, Keras).
    "algorithm1": eps is added to the bias-corrected root, as in their Algorithm 1 (PyTorch, optax)."""

    maximize: bool = False
    """True climbs instead of descending."""

    amsgrad: bool = False
    """Divide by the largest exp_avg_sq seen so far (Reddi et al. 2018)."""

    def __post_init__(self) -> None:
        """Check every field, and turn numbers of other types, and one-element arrays, into plain floats."""
        for name in ("lr", "eps", "weight_decay"):
            object.__setattr__(self, name, _non_negative(name, getattr(self, name)))
        object.__setattr__(self, "betas", _betas(self.betas))
        if not isinstance(self.eps_mode, str) or self.eps_mode not in EPS_MODES:
            raise HyperparameterError(f"eps_mode={self.eps_mode!r}: it must be {' or '.join(map(repr, EPS_MODES))}")
        for name in ("decoupled_weight_decay", "maximize", "amsgrad"):
            object.__setattr__(self, name, flag(name, getattr(self, name)))


def step_number(value: object) -> int:
    """Return the number of an update, 1 for the first; refuse anything else.

    Raises:
        HyperparameterError: it is not a whole number from 1 to 2**53.
    """
    step = whole("step", value)
    if not 1 <= step <= LAST_STEP:
        raise HyperparameterError(f"step={step}: it must be from 1, which is the first update, to 2**53")
    return step


def _non_negative(name: str, value: object) -> float:
    result = real(name, value)
    if result < 0:
        raise HyperparameterError(f"{name}={value!r}: it must be at least 0")
    return result


def _betas(value: Any) -> tuple[float, float]:
    if getattr(value, "shape", None) == (2,) and hasattr(value, "tolist"):
        value = value.tolist()  # an array of both
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise HyperparameterError(f"betas={value!r}: it must be a pair (beta1, beta2), such as (0.9, 0.999)")
    beta1, beta2 = (real(f"betas[{index}]", beta) for index, beta in enumerate(value))
    for index, beta in enumerate((beta1, beta2)):
        if not 0.0 <= beta < 1.0:
            raise HyperparameterError(f"betas[{index}]={beta!r}: it must be at least 0 and below 1")
    return beta1, beta2
