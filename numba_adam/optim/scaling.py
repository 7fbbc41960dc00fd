"""The arguments of `Adam.step` that treat the gradients, read into a `Scaling`."""

from __future__ import annotations

from numba_adam.cpu.kernels.norm import unscaled
from numba_adam.cuda.arrays import is_on_cuda
from numba_adam.settings.limits import check_factor
from numba_adam.settings.scalars import flag, real
from numba_adam.settings.scaling import AS_THEY_ARE, Scaling, clip_value_of, max_norm_of, positive


def scaling(
    grad_scale: object,
    loss_scale: object | None,
    max_grad_norm: object | None,
    clip_value: object | None,
    zero_grad: object = False,
    dtype: str = "float32",
) -> Scaling:
    """Return the treatment of the gradients for these arguments of `Adam.step`.

    Args:
        grad_scale: multiplies every gradient.
        loss_scale: divides every gradient; an array on a GPU is read there, during the step.
        max_grad_norm: largest global norm.
        clip_value: largest magnitude of an element.
        zero_grad: whether the gradients are set to zero.
        dtype: the narrowest compute dtype of the parameters, "float32" or "float64", which must hold the numbers.

    Raises:
        HyperparameterError: one of them is out of range.
    """
    is_plain = loss_scale is None and max_grad_norm is None and clip_value is None
    if is_plain and zero_grad is False and type(grad_scale) is float and grad_scale == 1.0:
        return AS_THEY_ARE  # the usual case
    factor, zero = real("grad_scale", grad_scale), flag("zero_grad", zero_grad)
    on_gpu = loss_scale if loss_scale is not None and is_on_cuda(loss_scale) else None
    if loss_scale is not None and on_gpu is None:
        factor = float(unscaled(factor, positive("loss_scale", loss_scale)))
    if factor != 1.0:
        check_factor(factor, dtype, f"grad_scale={grad_scale!r} and loss_scale={loss_scale!r}")
    if is_plain and factor == 1.0 and not zero:
        return AS_THEY_ARE
    return Scaling(
        factor,
        clip_value_of(clip_value, dtype),
        max_norm_of(max_grad_norm),
        zero,
        loss_scale is not None or max_grad_norm is not None,
        on_gpu,
    )
