"""Borrows objects with the buffer protocol, __array_interface__ or DLPack; refuses all other objects.

NumPy before version 2.1 treats memory borrowed with DLPack as read-only. May import NumPy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from numba_adam.errors import UnsupportedArrayError
from numba_adam.interop.lender import Lender, layouts_of_views

_HOST_DEVICES = (1, 3, 11)  # DLPack's numbers for plain, CUDA-pinned and ROCm-pinned host memory
_INTERFACE_KEYS = ("data", "shape", "strides", "typestr")


def _has_buffer(array: object) -> bool:
    try:
        memoryview(array).release()  # type: ignore[arg-type]
    except (TypeError, BufferError, ValueError):
        return False
    return True


def _lend_buffer(array: Any, name: str, narrow: bool) -> npt.NDArray[Any]:
    try:
        return np.asarray(memoryview(array))
    except (ValueError, TypeError) as error:  # NumPy has no dtype for the format
        raise _cannot(name, array, error) from error


def _lend_interface(array: Any, name: str, narrow: bool) -> npt.NDArray[Any]:
    try:
        return np.asarray(array, copy=False)  # type: ignore[call-overload, no-any-return, unused-ignore]
    except (ValueError, TypeError) as error:
        raise _cannot(name, array, error) from error


def _lend_dlpack(array: Any, name: str, narrow: bool) -> npt.NDArray[Any]:
    device = int(array.__dlpack_device__()[0])
    if device not in _HOST_DEVICES:
        raise UnsupportedArrayError(
            f"{name} ({type(array).__name__}) is on a device of DLPack type {device}, expected an array in this "
            "host's memory; copy it there"
        )
    try:
        return np.from_dlpack(array)
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        raise _cannot(name, array, error) from error


def _refuse_gpu(array: Any, name: str, narrow: bool) -> npt.NDArray[Any]:
    raise UnsupportedArrayError(
        f"{name} ({type(array).__name__}) is in a GPU's memory, expected an array in this host's; copy it: x.get()"
    )


def _refuse(array: Any, name: str, narrow: bool) -> npt.NDArray[Any]:
    kind = f"{type(array).__module__}.{type(array).__qualname__}".removeprefix("builtins.")
    raise UnsupportedArrayError(
        f"{name} is of type {kind}, which exposes no memory; make an array of it: np.asarray(x, dtype=np.float32)"
    )


def _cannot(name: str, array: object, error: Exception) -> UnsupportedArrayError:
    return UnsupportedArrayError(
        f"{name} ({type(array).__name__}) cannot be borrowed ({error}); make an array of it: "
        "np.asarray(x, dtype=np.float32)"
    )


def _layouts_of_interfaces(arrays: Sequence[Any]) -> object:
    """Return the address, shape, strides and type in each array's interface."""
    interfaces = [array.__array_interface__ for array in arrays]
    return [[interface.get(key) for key in _INTERFACE_KEYS] for interface in interfaces]


LENDERS = (
    Lender(kind="GPU array", owns=lambda array: hasattr(array, "__cuda_array_interface__"), lend=_refuse_gpu),
    Lender(
        kind="buffer",
        owns=_has_buffer,
        lend=_lend_buffer,
        layouts=layouts_of_views(_lend_buffer),
    ),
    Lender(
        kind="array interface",
        owns=lambda array: hasattr(array, "__array_interface__"),
        lend=_lend_interface,
        layouts=_layouts_of_interfaces,
    ),
    Lender(
        kind="DLPack array",
        owns=lambda array: hasattr(array, "__dlpack__") and hasattr(array, "__dlpack_device__"),
        lend=_lend_dlpack,
        layouts=layouts_of_views(_lend_dlpack),
    ),
    Lender(kind="object", owns=lambda _: True, lend=_refuse),  # last, because it accepts everything
)
