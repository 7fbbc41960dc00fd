"""Adam as one function on four arrays, for callers that keep the state themselves. Knows no framework."""

from __future__ import annotations

import numpy as np

from numba_adam.cpu.fast_path import update_one
from numba_adam.cpu.table import UpdateTable
from numba_adam.cuda.arrays import is_on_cuda
from numba_adam.errors import LayoutError
from numba_adam.interop import borrow, count_writes
from numba_adam.interop.arrays import check_shape
from numba_adam.interop.axes import Axes, axes_of, in_memory_order
from numba_adam.numerics.array import Array
from numba_adam.optim.backends import update_on_cuda
from numba_adam.settings.hyperparameters import EpsMode, Hyperparameters, step_number
from numba_adam.settings.limits import check_factor, check_held
from numba_adam.settings.scalars import real
from numba_adam.settings.scaling import Scaling


def adam_update(
    param: object,
    grad: object,
    exp_avg: object,
    exp_avg_sq: object,
    step: int,
    *,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    decoupled_weight_decay: bool = False,
    eps_mode: EpsMode = "hat",
    maximize: bool = False,
    grad_scale: float = 1.0,
    max_exp_avg_sq: object | None = None,
) -> None:
    """Make one Adam step, in place: `param`, `exp_avg`, `exp_avg_sq` and `max_exp_avg_sq` are overwritten.

        >>> import numpy as np
        >>> import numba_adam as na
        >>> param, grad = np.ones(3), np.array([2.0, -2.0, 0.0])
        >>> exp_avg, exp_avg_sq = np.zeros(3), np.zeros(3)
        >>> na.adam_update(param, grad, exp_avg, exp_avg_sq, step=1, lr=0.5)
        >>> param.round(6)
        array([0.5, 1.5, 1. ])

    Arrays on a GPU are updated there; all of them must be on the same one. For more than a few steps `Adam` is faster
    there, because it keeps on the GPU what a step needs. A number may also be a NumPy scalar or a one-element array of
    any framework.

    Args:
        param: the parameters: float32, float64, bfloat16 (or its bits as uint16) or float16; dense, writable, of any
            shape. The axes may lie in memory in any order.
        grad: their gradient, of the same shape and of any of these dtypes; not changed. With another order of axes in
            memory it is copied first; on a GPU it is refused.
        exp_avg: first moment, of the same shape and order of axes: float32, float64 or bfloat16; zeros before the first
            step.
        exp_avg_sq: second moment, likewise.
        step: number of this update, 1 for the first.
        lr: learning rate.
        betas: decay rates of the two moving averages, each in [0, 1).
        eps: keeps the denominator away from zero; see `eps_mode`. With 0 an element without gradients so far stays.
        weight_decay: pull towards zero.
        decoupled_weight_decay: shrink the parameter itself (AdamW) instead of adding to the gradient (L2).
        eps_mode: "hat" adds eps to sqrt(exp_avg_sq), as TensorFlow and Keras do; "algorithm1" to the bias-corrected
            root, as PyTorch and optax do.
        maximize: climb instead of descending.
        grad_scale: multiplies the gradient; 1 / loss scale, for instance.
        max_exp_avg_sq: largest second moment so far (AMSGrad); zeros before the first step. None: plain Adam.

    Raises:
        ArrayError: an array does not fit; the message names it. Nothing was changed.
        HyperparameterError: a number is out of range. Nothing was changed.

    Source: Kingma & Ba 2015 (arXiv 1412.6980), section 2; Reddi et al. 2018 for AMSGrad.
    """
    arrays = [grad, param, exp_avg, exp_avg_sq, *([] if max_exp_avg_sq is None else [max_exp_avg_sq])]
    amsgrad = max_exp_avg_sq is not None
    hyperparameters = Hyperparameters(lr, betas, eps, weight_decay, decoupled_weight_decay, eps_mode, maximize, amsgrad)
    number, scale = step_number(step), real("grad_scale", grad_scale)
    if update_one(arrays, hyperparameters, number, scale):
        return
    labels = ("param", "exp_avg", "exp_avg_sq", "max_exp_avg_sq", "", "", "grad")
    if is_on_cuda(param):
        update_on_cuda(arrays, hyperparameters, number, scale, labels)
        count_writes(arrays[1:])
        return
    views = [
        borrow(array, name=name, writable=True, narrow=True, any_order=True)
        for array, name in zip(arrays[1:], labels, strict=False)
    ]
    axes = axes_of(views[0])
    columns = [[_turned(view, name, views[0], axes)] for view, name in zip(views, labels, strict=False)]
    table = UpdateTable(*columns, hyperparameters=[hyperparameters], names=[""], labels=labels, axes=[axes])
    check_held(hyperparameters, table.dtype)
    check_factor(scale, table.dtype, f"grad_scale={grad_scale!r}")
    table.update([grad], np.array([number - 1], dtype=np.int64), Scaling(scale))
    count_writes(arrays[1:])


def _turned(array: Array, name: str, param: Array, axes: Axes | None) -> Array:
    """Return an array as a view in C order, where its axes have the order of its parameter's; refuse another order."""
    check_shape(array, name, param, "param")
    turned: Array = in_memory_order(array, axes)
    if not turned.flags.c_contiguous:
        raise LayoutError(
            f"{name} has strides {array.strides}: it must have its axes in memory in the order of param's, which has "
            f"strides {param.strides}; make it with numpy.empty_like(param), or copy into such an array"
        )
    return turned
