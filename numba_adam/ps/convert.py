"""Between the protocol's descriptions (dtypes, tensor specs, hyperparameters) and Python's own.

May import NumPy and the generated messages; never grpc or Numba.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from numba_adam.errors import DtypeError, InvalidRequestError
from numba_adam.ps.v1.model_pb2 import Dtype, EpsMode, Hyperparameters, ModelSpec, TensorSpec
from numba_adam.settings.hyperparameters import EpsMode as EpsModeName
from numba_adam.settings.hyperparameters import Hyperparameters as PlainHyperparameters

_DTYPE_PAIRS: tuple[tuple[Dtype, np.dtype[Any]], ...] = (
    (Dtype.DTYPE_FLOAT32, np.dtype("<f4")),
    (Dtype.DTYPE_FLOAT64, np.dtype("<f8")),
)
_DTYPES: dict[int, np.dtype[Any]] = dict(_DTYPE_PAIRS)
_EPS_MODES: dict[int, EpsModeName] = {
    EpsMode.EPS_MODE_UNSPECIFIED: "hat",
    EpsMode.EPS_MODE_HAT: "hat",
    EpsMode.EPS_MODE_ALGORITHM1: "algorithm1",
}
_NUMBERS = ("lr", "eps", "weight_decay")
_FLAGS = ("decoupled_weight_decay", "maximize", "amsgrad")


def dtype_from_proto(dtype: int) -> np.dtype[Any]:
    """Return the NumPy dtype of a Dtype.

    Raises:
        InvalidRequestError: not set, or unknown to this version.
    """
    found = _DTYPES.get(dtype)
    if found is None:
        raise InvalidRequestError(f"dtype={dtype}: it must be DTYPE_FLOAT32 (1) or DTYPE_FLOAT64 (2)")
    return found


def dtype_to_proto(dtype: npt.DTypeLike) -> Dtype:
    """Return the Dtype of a NumPy dtype.

    Raises:
        DtypeError: neither float32 nor float64.
    """
    for number, known in _DTYPE_PAIRS:
        if np.dtype(dtype) == known:
            return number
    raise DtypeError(f"dtype {np.dtype(dtype)}: the parameter server holds float32 and float64")


def tensor_specs(arrays: Mapping[str, np.ndarray[Any, Any]]) -> list[TensorSpec]:
    """Return the name and shape of each array, in order."""
    return [TensorSpec(name=name, shape=array.shape) for name, array in arrays.items()]


def element_count(spec: TensorSpec) -> int:
    """Return the number of elements of one array: 1 for a scalar, 0 where an extent is 0."""
    return math.prod(spec.shape)


def total_elements(specs: Iterable[TensorSpec]) -> int:
    """Return the number of elements of all arrays together, exactly, however large."""
    return sum(map(element_count, specs))


def total_bytes(specs: Iterable[TensorSpec], dtype: int) -> int:
    """Return the payload size of arrays of one Dtype."""
    return total_elements(specs) * dtype_from_proto(dtype).itemsize


def hyperparameters_from_proto(message: Hyperparameters) -> PlainHyperparameters:
    """Return checked hyperparameters; what is not set takes its default.

    Raises:
        HyperparameterError: a value is out of range.
        InvalidRequestError: an eps_mode that this version does not know.
    """
    if message.eps_mode not in _EPS_MODES:
        raise InvalidRequestError(
            f"eps_mode={message.eps_mode}: it must be EPS_MODE_HAT (1) or EPS_MODE_ALGORITHM1 (2)"
        )
    default = PlainHyperparameters()
    numbers = {name: getattr(message, name) for name in _NUMBERS if message.HasField(name)}
    betas = (
        message.beta1 if message.HasField("beta1") else default.betas[0],
        message.beta2 if message.HasField("beta2") else default.betas[1],
    )
    flags = {name: getattr(message, name) for name in _FLAGS}
    return PlainHyperparameters(betas=betas, eps_mode=_EPS_MODES[message.eps_mode], **numbers, **flags)


def hyperparameters_to_proto(plain: PlainHyperparameters) -> Hyperparameters:
    """Return the message with every field set, so that defaults may change without changing a model."""
    numbers = {name: getattr(plain, name) for name in _NUMBERS}
    flags = {name: getattr(plain, name) for name in _FLAGS}
    mode = EpsMode.EPS_MODE_HAT if plain.eps_mode == "hat" else EpsMode.EPS_MODE_ALGORITHM1
    return Hyperparameters(beta1=plain.betas[0], beta2=plain.betas[1], eps_mode=mode, **numbers, **flags)


def spec_differences(have: ModelSpec, want: ModelSpec) -> list[str]:
    """Return what differs between a model that exists and one that is asked for, one readable line each.

    A value that is not set counts as its default.
    """
    lines = _tensor_differences(have, want)
    if have.dtype != want.dtype:
        lines.append(f"dtype: the model has {_dtype_name(have.dtype)}, asked for {_dtype_name(want.dtype)}")
    old, new = hyperparameters_from_proto(have.hyperparameters), hyperparameters_from_proto(want.hyperparameters)
    for field in PlainHyperparameters.__dataclass_fields__:
        if getattr(old, field) != getattr(new, field):
            lines.append(f"{field}: the model has {getattr(old, field)!r}, asked for {getattr(new, field)!r}")
    for field in ("mode", "durability"):  # not set means the first one
        if (getattr(have, field) or 1) != (getattr(want, field) or 1):
            lines.append(f"{field}: the model has {getattr(have, field)}, asked for {getattr(want, field)}")
    return lines


def _dtype_name(dtype: int) -> str:
    return _DTYPES[dtype].name if dtype in _DTYPES else str(dtype)


def _tensor_differences(have: ModelSpec, want: ModelSpec) -> list[str]:
    old = {spec.name: tuple(spec.shape) for spec in have.tensors}
    new = {spec.name: tuple(spec.shape) for spec in want.tensors}
    lines = [f"array {name!r}: the model does not have it" for name in new if name not in old]
    lines += [f"array {name!r}: the model has it, it was not given" for name in old if name not in new]
    lines += [
        f"array {name!r}: the model has shape {old[name]}, asked for {shape}"
        for name, shape in new.items()
        if name in old and old[name] != shape
    ]
    if not lines and list(old) != list(new):
        lines.append(f"order of the arrays: the model has {list(old)}, asked for {list(new)}")
    return lines
