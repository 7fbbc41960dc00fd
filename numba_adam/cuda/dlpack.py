"""What a DLPack capsule says about memory on a GPU; NumPy reads capsules of host memory only. Imports ctypes alone.

The capsule is looked at and left as it is: it lends the memory for as long as it is kept, and gives it back when it is
dropped. DLPack's structures are those of its version 0.8, which every exporter offers when no version is asked for.
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
    """What a capsule says."""

    address: int
    shape: tuple[int, ...]
    strides: tuple[int, ...] | None  # in elements; None: C-contiguous
    dtype: str  # "float32", ..., or "code 5 of 64 bits" for what we know no name for
    device: int
    capsule: Any  # keeps the memory lent


def device_of(array: object) -> int | None:
    """Return the number of the GPU that an array says it is on, None if it says nothing or lies elsewhere."""
    ask = getattr(array, "__dlpack_device__", None)
    if ask is None:
        return None
    try:
        kind, number = ask()
    except (BufferError, RuntimeError, TypeError, ValueError):  # what has no memory: deleted arrays, tracers, meta
        return None
    return int(number) if int(kind) in _CUDA_DEVICES else None


def lend(array: Any) -> Lent:
    """Ask an array for its memory, without waiting for anything on the GPU.

    Raises:
        whatever the array raises when it does not lend.
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
