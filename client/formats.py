"""Conversions between number formats, of a worker's arrays and a model's. May import NumPy and the formats' names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from numba_adam.errors import DtypeError
from numba_adam.numerics.formats import Format, dtype_of, format_of

Array = npt.NDArray[Any]

_FLOATS = ("float32", "float64", "bfloat16", "float16")
_QUIET = np.uint32(0x400000)  # the bit that makes a NaN quiet


def is_narrow(array: Array) -> bool:
    """Return whether an array is bfloat16 (or its bits as uint16) or float16."""
    return array.dtype.itemsize == 2


def named_dtype(dtype: object) -> np.dtype[Any]:
    """Return the dtype of arrays of a named format: a name, or a dtype of NumPy, JAX or PyTorch.

    Raises:
        DtypeError: it names none of the formats.
    """
    name = dtype if isinstance(dtype, str) else getattr(dtype, "__name__", None) or str(dtype)
    name = name.removeprefix("torch.")
    if name not in _FLOATS:
        raise DtypeError(f"dtype: expected one of {', '.join(_FLOATS)}, got {dtype!r}")
    return dtype_of(Format.named(name))


def widened(array: Array, dtype: np.dtype[Any]) -> Array:
    """Return an array of a 16-bit format as float32 or float64; exact."""
    with np.errstate(invalid="ignore"):  # a NaN stays one, and the server refuses it
        if format_of(array.dtype) == Format.FLOAT16:
            return array.astype(dtype)
        words = np.left_shift(array.view(np.uint16), 16, dtype=np.uint32)
        return np.asarray(words).view(np.float32).astype(dtype, copy=False)


def converted(arrays: Mapping[str, Array], dtype: np.dtype[Any] | None) -> Mapping[str, Array]:
    """Return copies of float32 or float64 arrays in another dtype, rounded to the nearest numbers.

    Arrays that have the dtype already are returned themselves; None: any dtype.
    """
    if dtype is None or all(array.dtype == dtype for array in arrays.values()):
        return arrays
    copies = {name: np.empty(array.shape, dtype) for name, array in arrays.items()}
    write(arrays, copies)
    return copies


def write(sources: Mapping[str, Array], targets: Mapping[str, Array]) -> None:
    """Write float32 or float64 arrays to arrays of any format, rounded to the nearest numbers.

    A target that is its own source is skipped.
    """
    for name, target in targets.items():
        if sources[name] is not target:
            _write(sources[name], target)


def _write(source: Array, target: Array) -> None:
    with np.errstate(over="ignore", invalid="ignore"):  # as in every framework, what is too large becomes infinite
        if format_of(target.dtype) == Format.BFLOAT16:
            target.view(np.uint16)[...] = _bfloat16_bits(source)
        else:
            target[...] = source


def _bfloat16_bits(values: Array) -> npt.NDArray[np.uint16]:
    """Return the bits of the nearest bfloat16 numbers, ties to even."""
    near = values.astype(np.float32, copy=False)
    bits = near.view(np.uint32)
    if values.dtype == np.float64:  # round to odd first, because two roundings to nearest may differ from one
        is_lossy = near != values
        towards_zero = bits - (np.abs(near) > np.abs(values)).astype(np.uint32)
        bits = np.where(is_lossy, towards_zero | np.uint32(1), bits)
    rounded = bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))
    return (np.where(np.isnan(near), bits | _QUIET, rounded) >> np.uint32(16)).astype(np.uint16)


def common_narrow(arrays: Sequence[Array]) -> Format | None:
    """Return the 16-bit format that all arrays have; None without one."""
    formats = {format_of(array.dtype) if is_narrow(array) else None for array in arrays}
    return formats.pop() if len(formats) == 1 else None
