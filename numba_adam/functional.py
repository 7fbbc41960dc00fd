"""Adam as one function on four arrays, for callers that keep the state themselves. Imports no framework."""

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
    """Make one Adam step in place. It overwrites `param`, `exp_avg`, `exp_avg_sq` and `max_exp_avg_sq`.

        >>> import numpy as np
        >>> import numba_adam as na
        >>> param, grad = np.ones(3), np.array([2.0, -2.0, 0.0])
        >>> exp_avg, exp_avg_sq = np.zeros(3), np.zeros(3)
        >>> na.adam_update(param, grad, exp_avg, exp_avg_sq, step=1, lr=0.5)
        >>> param.round(6)
        array([0.5, 1.5, 1. ])

    Arrays on a GPU are updated there. All of them must be on the same GPU. `Adam` is faster for many steps on a GPU,
    because it keeps its addresses and constants there. A number may also be a NumPy scalar or a one-element array of
    any framework.

    Args:
        param: the parameters: float32, float64, bfloat16 (or its bits as uint16) or float16. It must be dense and
            writable. Any shape, with any order of axes in memory.
        grad: the gradient, with the same shape and any of these dtypes. It is not changed. A gradient with another
            order of axes in memory is copied first. On a GPU it is refused.
        exp_avg: the first moment, with the same shape and order of axes: float32, float64 or bfloat16. Pass zeros for
            the first step.
        exp_avg_sq: the second moment, as `exp_avg`.
        step: the number of this update, 1 for the first.
        lr: learning rate.
        betas: decay rates of the two moving averages, each in [0, 1).
        eps: added to the denominator; see `eps_mode`. With 0, an element that had no gradient so far does not move.
        weight_decay: the weight decay factor.
        decoupled_weight_decay: shrink the parameter itself (AdamW) instead of adding to the gradient (L2).
        eps_mode: "hat" adds eps to sqrt(exp_avg_sq), as TensorFlow and Keras do. "algorithm1" adds it to the
            bias-corrected root, as PyTorch and optax do.
        maximize: increase the objective instead of decreasing it.
        grad_scale: a factor for the gradient, for example 1 / loss scale.
        max_exp_avg_sq: the largest second moment so far (AMSGrad). Pass zeros for the first step. None: plain Adam.

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
    """Return a C-contiguous view of an array. Refuse an array whose order of axes differs from its parameter's."""
    check_shape(array, name, param, "param")
    turned: Array = in_memory_order(array, axes)
    if not turned.flags.c_contiguous:
        raise LayoutError(
            f"{name} has strides {array.strides}; expected its axes in memory in the order of param's, which has "
            f"strides {param.strides}. Make {name} with numpy.empty_like(param), or copy it into such an array."
        )
    return turned
