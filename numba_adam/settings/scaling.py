"""What is done to the gradients of one step before they are used: unscaled, measured, clipped."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from numba_adam.cpu.kernels.norm import unscaled
from numba_adam.cuda.arrays import is_on_cuda
from numba_adam.errors import HyperparameterError
from numba_adam.settings.limits import LIMITS, check_factor
from numba_adam.settings.scalars import flag, plain, real


class Scaling(NamedTuple):
    """One step's treatment of its gradients."""

    factor: float = 1.0  # multiplies every gradient
    clip_value: float = 0.0  # largest magnitude of an element afterwards; 0: any
    max_norm: float = math.inf  # largest global norm
    zero_grad: bool = False  # whether the gradients are set to zero in the pass
    is_measured: bool = False  # whether the gradients are read first: for their norm, and to find what is not finite
    loss_scale: Any = None  # one number on a GPU that divides every gradient as well


AS_THEY_ARE = Scaling()


def scaling(
    grad_scale: object,
    loss_scale: object | None,
    max_grad_norm: object | None,
    clip_value: object | None,
    zero_grad: object = False,
    dtype: str = "float32",
) -> Scaling:
    """Return what these arguments of `Adam.step` mean where a dtype, "float32" or "float64", is computed in.

    Raises:
        HyperparameterError: one of them is out of range.
    """
    factor, zero = real("grad_scale", grad_scale), flag("zero_grad", zero_grad)
    there = loss_scale if loss_scale is not None and is_on_cuda(loss_scale) else None
    if loss_scale is not None and there is None:
        factor = float(unscaled(factor, _positive("loss_scale", loss_scale)))
    if factor != 1.0:
        check_factor(factor, dtype, f"grad_scale={grad_scale!r} and loss_scale={loss_scale!r}")
    if factor == 1.0 and loss_scale is None and max_grad_norm is None and clip_value is None and not zero:
        return AS_THEY_ARE
    return Scaling(
        factor,
        0.0 if clip_value is None else _clip(clip_value, dtype),
        _norm(max_grad_norm),
        zero,
        loss_scale is not None or max_grad_norm is not None,
        there,
    )


def _clip(value: object, dtype: str) -> float:
    result, smallest = _positive("clip_value", value), LIMITS[dtype].smallest
    if result < smallest:
        raise HyperparameterError(
            f"clip_value={value!r}: it must be at least {smallest!r}, as {dtype} holds no less, or None"
        )
    return result


def _norm(value: object | None) -> float:
    """Return the largest global norm; infinity measures and clips nothing."""
    number = math.inf if value is None else value if type(value) is float else plain(value)
    return number if isinstance(number, float) and number == math.inf else _positive("max_grad_norm", value)


def _positive(name: str, value: object) -> float:
    result = real(name, value)
    if result <= 0:
        raise HyperparameterError(f"{name}={value!r}: it must be above 0, or None")
    return result
