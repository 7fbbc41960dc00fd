"""Reads DLPack capsules of GPU memory; NumPy reads only those of host memory. Imports only ctypes.

The capsule is read but not consumed: the memory stays valid while the capsule exists. The structures are those of
DLPack 0.8, which every exporter offers by default.
"""

from __future__ import annotations

import ctypes
from typing import Any, NamedTuple

_KINDS = {(2, 16): "float16", (2, 32): "float32", (2, 64): "float64", (4, 16): "bfloat16", (1, 16): "uint16"}
_CUDA_DEVICES = (2, 13)  # DLPack's numbers for CUDA memory and CUDA managed memory


class _Tensor(ctypes.Structure):
    """DLTensor."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class Lent(NamedTuple):
    """The contents of a capsule."""

    address: int
    shape: tuple[int, ...]
    strides: tuple[int, ...] | None  # in elements; None: C-contiguous
    dtype: str  # "float32", ..., or "code 5 of 64 bits" for an unknown one
    device: int
    capsule: Any  # keeps the memory valid


def device_of(array: object) -> int | None:
    """Return the number of an array's GPU from DLPack; None without DLPack, or for another device."""
    ask = getattr(array, "__dlpack_device__", None)
    if ask is None:
        return None
    try:
        kind, number = ask()
    except (
        BufferError,
        RuntimeError,
        TypeError,
        ValueError,
    ):  # deleted arrays, tracers, meta tensors
        return None
    return int(number) if int(kind) in _CUDA_DEVICES else None


def lend(array: Any) -> Lent:
    """Borrow an array's memory, without waiting for the GPU.

    Raises:
        Exception: the array's own error, if it exposes no memory.
    """
    capsule = array.__dlpack__(stream=-1)
    tensor = _Tensor.from_address(_pointer_of(capsule))
    shape = tuple(tensor.shape[axis] for axis in range(tensor.ndim))
    strides = tuple(tensor.strides[axis] for axis in range(tensor.ndim)) if tensor.strides else None
    known = _KINDS.get((tensor.code, tensor.bits)) if tensor.lanes == 1 else None
    dtype = known or f"code {tensor.code} of {tensor.bits} bits"
    return Lent((tensor.data or 0) + tensor.byte_offset, shape, strides, dtype, tensor.device_id, capsule)


def _pointer_of(capsule: Any) -> int:
    function = ctypes.pythonapi.PyCapsule_GetPointer
    function.restype, function.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    return int(function(capsule, b"dltensor"))
