"""PyTorch: CPU tensors, and the state dict of its Adam. Imports torch only in to_torch_state_dict, which makes tensors.

May import NumPy.
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
from numba_adam.interop.lender import Lender, wrong_dtype
from numba_adam.numerics import eight_bit_codecs
from numba_adam.numerics.eight_bit import BLOCK
from numba_adam.numerics.formats import Format, format_of

_KIND = "PyTorch tensor"
_CONVERT = "x.float().contiguous()"
_ATTRIBUTES = operator.attrgetter("shape", "dtype")
_STATE_ARRAYS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")


def _owns(array: object) -> bool:
    torch = sys.modules.get("torch")
    tensor = getattr(torch, "Tensor", None)  # None while torch is half-way through its own import
    return tensor is not None and isinstance(array, tensor)


def _lend(tensor: Any, name: str, narrow: bool) -> npt.NDArray[Any]:
    """Return a view of a tensor's memory; autograd hears of what is written there by `_count_writes` alone."""
    torch = sys.modules["torch"]
    if tensor.device.type != "cpu":
        raise UnsupportedArrayError(
            f"{name} ({_KIND}) is on device {tensor.device}, needed is one in this host's memory; move it: x.cpu()"
        )
    if tensor.layout is not torch.strided:
        raise UnsupportedArrayError(
            f"{name} ({_KIND}) has layout {tensor.layout}, needed is a dense one; convert it: x.to_dense()"
        )
    narrow_dtypes = (torch.bfloat16, torch.float16) if narrow else ()
    if tensor.dtype not in (torch.float32, torch.float64, *narrow_dtypes):
        raise wrong_dtype(name, tensor.dtype, _KIND, _CONVERT, narrow=narrow)
    try:
        if tensor.dtype == torch.bfloat16:  # which NumPy does not know: its bits
            return tensor.detach().view(torch.int16).numpy().view(np.uint16)  # type: ignore[no-any-return]
        view: npt.NDArray[Any] = tensor.detach().numpy()
    except (RuntimeError, TypeError) as error:  # tensors without memory of their own: functorch's, fake ones
        raise UnsupportedArrayError(
            f"{name} ({type(tensor).__name__}) has no memory of its own to borrow ({error}); give a plain CPU tensor"
        ) from error
    return view


def _layouts(tensors: Sequence[Any]) -> object:
    """Return the layouts of tensors. There may be thousands, in every step: no line of Python runs for each.

    An address says the device too; a tensor without elements has none, and nothing is written to it.
    """
    tensor = sys.modules["torch"].Tensor
    return list(map(tensor.data_ptr, tensors)), list(map(tensor.stride, tensors)), list(map(_ATTRIBUTES, tensors))


def _count_writes(tensors: Sequence[Any]) -> None:
    """Advance the version counters of tensors, which a backward pass compares; those of inference mode have none.

    `increment_version` takes a list since PyTorch 2.5 and one tensor since 2.1. Before, a write to no elements counts.
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


def _write_nothing(tensor: Any) -> None:
    """Write to no element of a tensor: `detach` shares the version counter."""
    tensor.detach().as_strided((0,), (1,)).zero_()


LENDER = Lender(
    kind=_KIND,
    owns=_owns,
    lend=_lend,
    convert=_CONVERT,
    compact="x.contiguous()",
    thaw="x.detach().clone()",
    layouts=_layouts,
    count_writes=_count_writes,
)


def to_torch_state_dict(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """Return our state dict as `torch.optim.Adam.load_state_dict` (or AdamW's) takes it.

    Args:
        state_dict: what `Adam.state_dict()` returned, all of whose groups have eps_mode "algorithm1".

    Returns:
        The same nesting with tensors, which share no memory with the arrays given. Moments in 8 bits come as float32.
        What `torch.optim.Adam` does not keep stays behind: master copies ("master_param") and averages ("ema").

    Raises:
        StateDictError: a group's eps_mode is "hat", which PyTorch does not have.
        ImportError: PyTorch is not installed.
    """
    groups = [_torch_group(index, group) for index, group in enumerate(state_dict["param_groups"])]
    torch: Any = import_module("torch")
    state = {index: _torch_entry(torch, entry) for index, entry in state_dict["state"].items()}
    return {"state": state, "param_groups": groups}


def to_tensors(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """Return our state dict with a tensor in place of each array: what `torch.save` writes and any `torch.load` reads.

    Nothing is lost, 8-bit state and "hat" neither, and `Adam.load_state_dict` takes it as it is. For PyTorch's own
    optimizers there is `to_torch_state_dict`.

    Args:
        state_dict: what `Adam.state_dict()` returned.

    Returns:
        The same nesting with CPU tensors, which share no memory with the arrays given: bfloat16 for bfloat16 and its
        bits, uint8 for codes, and an int64 without dimensions for the step.

    Raises:
        ImportError: PyTorch is not installed.
    """
    torch: Any = import_module("torch")
    state = {
        index: {key: _tensor(torch, np.array(value)) for key, value in entry.items()}
        for index, entry in state_dict["state"].items()
    }
    return {**state_dict, "state": state}


def _torch_group(index: int, group: Mapping[str, Any]) -> dict[str, Any]:
    """Return a group without the key that only we have."""
    if group.get("eps_mode", "algorithm1") == "hat":
        raise StateDictError(
            f"param_groups[{index}] has eps_mode='hat', needed is 'algorithm1': PyTorch adds eps to the bias-corrected "
            "root, so it would take other steps from the same state. Train with eps_mode='algorithm1', or set "
            f"param_groups[{index}]['eps_mode'] = 'algorithm1' and choose its eps: eps / sqrt(1 - betas[1]**step) "
            "takes the same step at that step, and the difference fades as step grows"
        )
    return {key: value for key, value in group.items() if key != "eps_mode"}


def _torch_entry(torch: Any, entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return one parameter's state as tensors; the step is a float32 scalar there."""
    converted = {"step": torch.tensor(float(entry["step"]), dtype=torch.float32)}
    for key in _STATE_ARRAYS:
        if entry.get(key) is not None:
            converted[key] = _tensor(torch, _values(entry, key))
    return converted


def _values(entry: Mapping[str, Any], key: str) -> npt.NDArray[Any]:
    """Return a moment as floats; `exp_avg` in 8 bits is a ratio to the root of `exp_avg_sq`."""
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


def _tensor(torch: Any, array: npt.NDArray[Any]) -> Any:
    """Return a tensor over an array of ours; bfloat16 is handed over as its bits, for NumPy has none of its own."""
    if format_of(array.dtype) == Format.BFLOAT16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)
