"""Borrows PyTorch's CPU tensors, and converts state dicts to tensors. Only the conversions import torch.

May import NumPy, the error tree and `numba_adam.numerics`.
"""

from __future__ import annotations

import operator
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

import numpy as np
import numpy.typing as npt

from numba_adam.errors import StateDictError, UnsupportedArrayError
from numba_adam.interop.axes import as_given, in_memory_order
from numba_adam.interop.lender import Lender, Lookalike, wrong_dtype
from numba_adam.numerics import eight_bit_codecs
from numba_adam.numerics.eight_bit import BLOCK
from numba_adam.numerics.formats import Format, format_of

_KIND = "PyTorch tensor"
_CONVERT = "x.float().contiguous()"
_ATTRIBUTES = operator.attrgetter("shape", "dtype")
_SEEN = operator.attrgetter("shape", "dtype", "is_cpu")
_STATE_ARRAYS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")


def _owns(array: object) -> bool:
    torch = sys.modules.get("torch")
    tensor = getattr(torch, "Tensor", None)  # None while the import of torch is still running
    return tensor is not None and isinstance(array, tensor)


def _lend(tensor: Any, name: str, narrow: bool) -> npt.NDArray[Any]:
    """Return a view of a tensor's memory. Autograd does not see writes to it, hence `_count_writes`."""
    torch = sys.modules["torch"]
    if tensor.device.type != "cpu":
        raise UnsupportedArrayError(
            f"{name} ({_KIND}) is on device {tensor.device}, expected one in this host's memory; move it: x.cpu()"
        )
    if tensor.layout is not torch.strided:
        raise UnsupportedArrayError(
            f"{name} ({_KIND}) has layout {tensor.layout}, expected a dense one; convert it: x.to_dense()"
        )
    narrow_dtypes = (torch.bfloat16, torch.float16) if narrow else ()
    if tensor.dtype not in (torch.float32, torch.float64, *narrow_dtypes):
        raise wrong_dtype(name, tensor.dtype, _KIND, _CONVERT, narrow=narrow)
    try:
        if tensor.dtype == torch.bfloat16:  # NumPy has no bfloat16: borrow its bits
            return tensor.detach().view(torch.int16).numpy().view(np.uint16)  # type: ignore[no-any-return]
        view: npt.NDArray[Any] = tensor.detach().numpy()
    except (RuntimeError, TypeError) as error:  # tensors without memory, such as functorch's and fake tensors
        raise UnsupportedArrayError(
            f"{name} ({type(tensor).__name__}) has no memory to borrow ({error}); pass a plain CPU tensor"
        ) from error
    return view


def _layouts(tensors: Sequence[Any]) -> object:
    """Return the addresses, strides, shapes and dtypes of tensors. `map` avoids a Python loop over thousands of them.

    An address implies the device. An empty tensor has no address, but a step never writes to it.
    """
    tensor = sys.modules["torch"].Tensor
    return list(map(tensor.data_ptr, tensors)), list(map(tensor.stride, tensors)), list(map(_ATTRIBUTES, tensors))


def _lookalikes(tensors: Sequence[Any]) -> list[Lookalike]:
    """Return what the gradients of these parameters usually look like."""
    return [(_SEEN(tensor), tensor.stride()) for tensor in tensors]


def _addresses(tensors: Sequence[Any], lookalikes: Sequence[Lookalike]) -> list[int] | None:
    """Return the addresses of plain CPU tensors that have these layouts. `map` avoids a Python loop, as above."""
    tensor = sys.modules["torch"].Tensor
    if set(map(type, tensors)) != {tensor}:
        return None
    try:
        found = list(zip(map(_SEEN, tensors), map(tensor.stride, tensors), strict=True))
        if found != lookalikes or any(map(tensor.is_neg, tensors)):  # with is_neg, memory has the opposite signs
            return None
        return list(map(tensor.data_ptr, tensors))
    except RuntimeError:  # sparse tensors have no strides, and functorch's no memory
        return None


def _count_writes(tensors: Sequence[Any]) -> None:
    """Increment the version counters of tensors, which a backward pass compares. Inference tensors have none.

    `increment_version` takes a list since PyTorch 2.5 and one tensor since 2.1. Before 2.1, an empty write increments.
    """
    increment = getattr(sys.modules["torch"].autograd.graph, "increment_version", None)
    if increment is not None:
        try:
            increment(tensors)
        except (TypeError, RuntimeError):
            pass
        else:
            return
    for tensor in tensors:
        if not tensor.is_inference():
            (increment or _write_nothing)(tensor)


def _gradient(tensor: Any) -> object:
    """Return a parameter's gradient. A leaf that requires a gradient is a parameter, whatever its class."""
    return tensor.grad if _is_parameter(tensor) else tensor


def _drop_gradient(tensor: Any) -> None:
    if _is_parameter(tensor):
        tensor.grad = None


def _is_parameter(tensor: Any) -> bool:
    return isinstance(tensor, sys.modules["torch"].nn.Parameter) or (tensor.requires_grad and tensor.is_leaf)


def _write_nothing(tensor: Any) -> None:
    """Write to an empty view of a tensor, which shares the version counter."""
    tensor.detach().as_strided((0,), (1,)).zero_()


LENDER = Lender(
    kind=_KIND,
    owns=_owns,
    lend=_lend,
    convert=_CONVERT,
    compact="x.contiguous()",
    thaw="x.detach().clone()",
    layouts=_layouts,
    lookalikes=_lookalikes,
    addresses=_addresses,
    count_writes=_count_writes,
    gradient=_gradient,
    drop_gradient=_drop_gradient,
    make=lambda array: to_tensor(array),
)


def to_torch_state_dict(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """Convert a state dict to the form that `torch.optim.Adam.load_state_dict` (or AdamW's) takes.

    Args:
        state_dict: the result of `Adam.state_dict()`; all groups must have eps_mode "algorithm1".

    Returns:
        The same structure with tensors, which share no memory with the arrays. 8-bit moments become float32. It omits
        what `torch.optim.Adam` does not store: master weights ("master_param") and moving averages ("ema").

    Raises:
        StateDictError: a group has eps_mode "hat", which PyTorch does not support.
        ImportError: PyTorch is not installed.
    """
    groups = [_torch_group(index, group) for index, group in enumerate(state_dict["param_groups"])]
    torch: Any = import_module("torch")
    state = {index: _torch_entry(torch, entry) for index, entry in state_dict["state"].items()}
    return {"state": state, "param_groups": groups}


def to_tensors(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """Return a state dict with a tensor in place of each array, for `torch.save` and any `torch.load`.

    The conversion loses nothing, neither 8-bit state nor "hat". `Adam.load_state_dict` takes the result directly. For
    PyTorch's optimizers, use `to_torch_state_dict`.

    Args:
        state_dict: the result of `Adam.state_dict()`.

    Returns:
        The same structure with CPU tensors, which share no memory with the arrays: bfloat16 for bfloat16 and its bits,
        uint8 for codes, and an int64 scalar for the step.

    Raises:
        ImportError: PyTorch is not installed.
    """
    state = {
        index: {key: to_tensor(np.array(value)) for key, value in entry.items()}
        for index, entry in state_dict["state"].items()
    }
    return {**state_dict, "state": state}


def _torch_group(index: int, group: Mapping[str, Any]) -> dict[str, Any]:
    """Return a param group without `eps_mode`, which PyTorch does not have."""
    if group.get("eps_mode", "algorithm1") == "hat":
        raise StateDictError(
            f"param_groups[{index}] has eps_mode='hat', expected 'algorithm1': PyTorch adds eps to the bias-corrected "
            "root, so its steps from the same state would differ. Train with eps_mode='algorithm1', or set "
            f"param_groups[{index}]['eps_mode'] = 'algorithm1' and choose its eps: eps / sqrt(1 - betas[1]**step) "
            "takes the same step at that step, and the difference fades as step grows"
        )
    return {key: value for key, value in group.items() if key != "eps_mode"}


def _torch_entry(torch: Any, entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return one parameter's state as tensors. PyTorch stores the step as a float32 scalar."""
    converted = {"step": torch.tensor(float(entry["step"]), dtype=torch.float32)}
    for key in _STATE_ARRAYS:
        if entry.get(key) is not None:
            converted[key] = to_tensor(_values(entry, key))
    return converted


def _values(entry: Mapping[str, Any], key: str) -> npt.NDArray[Any]:
    """Return a moment as floats. 8-bit `exp_avg` is stored as a ratio to the root of `exp_avg_sq`."""
    if f"{key}_scale" not in entry:
        return np.array(entry[key])
    if key == "exp_avg":
        ratios = eight_bit_codecs.widen_ratio(entry[key], _units(entry, key))
        return np.asarray(ratios * eight_bit_codecs.widen_root(entry["exp_avg_sq"], _units(entry, "exp_avg_sq")))
    root = eight_bit_codecs.widen_root(entry[key], _units(entry, key))
    return np.asarray(root * root)


def _units(entry: Mapping[str, Any], key: str) -> npt.NDArray[Any]:
    """Return the scale of each element's block."""
    codes, axes = entry[key], entry.get("axes")
    shape = in_memory_order(codes, axes).shape
    units: npt.NDArray[Any] = as_given(np.repeat(entry[f"{key}_scale"], BLOCK)[: codes.size].reshape(shape), axes)
    return units


def to_tensor(array: npt.NDArray[Any]) -> Any:
    """Return a tensor that shares an array's memory: bfloat16 for bfloat16 and its bits, which NumPy does not have.

    Raises:
        ImportError: PyTorch is not installed.
    """
    torch: Any = import_module("torch")
    if format_of(array.dtype) == Format.BFLOAT16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)
