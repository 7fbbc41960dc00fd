"""Chooses a backend for each parameter: it is borrowed and updated in the memory where it is.

A CUDA package is imported only if an array is on a GPU. Knows no framework.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from numba_adam.cpu.part import HOST_STATE, CpuPart
from numba_adam.cuda.arrays import CudaArray, borrow_cuda, is_on_cuda
from numba_adam.errors import HyperparameterError, UnsupportedArrayError
from numba_adam.interop import borrow
from numba_adam.interop.axes import axes_of, in_memory_order
from numba_adam.settings.contract import Part
from numba_adam.settings.hyperparameters import Hyperparameters
from numba_adam.settings.limits import check_factor, check_held
from numba_adam.settings.members import Member
from numba_adam.settings.options import Options
from numba_adam.settings.scaling import Scaling
from numba_adam.settings.step_arrays import array_format


def borrow_param(param: Any, name: str) -> Any:
    """Return a parameter's memory: a NumPy view, or a CudaArray if it is on a GPU.

    Raises:
        ArrayError: it cannot be updated in place; the message says what to do.
    """
    if is_on_cuda(param):
        return borrow_cuda(param, name=name, writable=True, any_order=True)
    # Our own view: a change of the caller's array object, such as `array.shape = ...`, does not affect it.
    return borrow(param, name=name, writable=True, narrow=True, any_order=True).view()


def check_same_device(new: Any, name: str, old: Any) -> None:
    """Refuse a parameter that has moved to another device. Its state is still on the old one.

    Raises:
        UnsupportedArrayError: the device differs.
    """
    if _device(new) != _device(old):
        raise UnsupportedArrayError(
            f"{name} is {_device(new)}, and was {_device(old)} when the optimizer was made: make another optimizer, "
            "and load_state_dict(old.state_dict()) into it"
        )


def parts_of(members: Sequence[Member], options: Options) -> list[Part[Any]]:
    """Divide parameters by their device and by their compute dtype.

    Raises:
        CudaUnavailableError: a parameter is on a GPU, but there is no CUDA package or no driver.
        DtypeError: a parameter is on a GPU, which does not support the options.
    """
    on_host = [member for member in members if not isinstance(member.param, CudaArray)]
    on_gpus = [member for member in members if isinstance(member.param, CudaArray)]
    parts: list[Part[Any]] = [CpuPart(group, options) for group in _divided(on_host, options)]
    if on_gpus:
        from numba_adam.cuda.part import CudaPart  # needs a CUDA package

        parts += [CudaPart(group, options, HOST_STATE) for group in _divided(on_gpus, options)]
    return parts


def _divided(members: Sequence[Member], options: Options) -> list[list[Member]]:
    """Return the members of each device and compute dtype, in order of first appearance."""
    found: dict[tuple[str, str], list[Member]] = {}
    for member in members:
        key = _device(member.param), options.computed_in(array_format(member.param))
        found.setdefault(key, []).append(member)
    return list(found.values())


def check_loss_scale(parts: Sequence[Part[Any]]) -> None:
    """Refuse a loss scale on a GPU, unless one part on that GPU has all parameters.

    Raises:
        HyperparameterError: the parameters have several parts, or are not on a GPU.
    """
    if len(parts) > 1 or not isinstance(parts[0].roster.params[0], CudaArray):
        raise HyperparameterError(
            "loss_scale is an array on a GPU: all parameters must be on that GPU and have one compute dtype; or give "
            "it as a float"
        )


def update_on_cuda(
    arrays: Sequence[Any], hyperparameters: Hyperparameters, step: int, grad_scale: float, labels: Sequence[str]
) -> None:
    """Queue one step of one parameter on a GPU.

    Args:
        arrays: grad, param, exp_avg, exp_avg_sq and, with AMSGrad, max_exp_avg_sq.
        hyperparameters: the hyperparameters of this step.
        step: 1 for the first step.
        grad_scale: multiplies the gradient.
        labels: what messages call the columns of a table.

    Raises:
        ArrayError: an array does not fit; the message names it. Nothing was changed.
        CudaUnavailableError: there is no CUDA package or no driver.
        HyperparameterError: the compute dtype cannot represent a hyperparameter. Nothing was changed.
    """
    from numba_adam.cuda.table import CudaTable  # needs a CUDA package

    views = [
        borrow_cuda(array, name=name, writable=True, any_order=True)
        for array, name in zip(arrays[1:], labels, strict=False)
    ]
    axes = axes_of(views[0])
    table = CudaTable(
        *([in_memory_order(view, axes)] for view in views),
        hyperparameters=[hyperparameters],
        names=[""],
        labels=labels,
        steps=[step - 1],
        axes=[axes],
        caller=arrays[1],
    )
    check_held(hyperparameters, table.dtype)
    check_factor(grad_scale, table.dtype, f"grad_scale={grad_scale!r}")
    table.step([arrays[0]], Scaling(grad_scale))


def _device(array: Any) -> str:
    return f"on GPU {array.device}" if isinstance(array, CudaArray) else "in this host's memory"
