"""Arrays that expose their memory like GPU arrays. In the simulator, GPU memory is this process's own memory.

On a real GPU (NUMBA_ADAM_TESTS_ON_GPU=1, see host_memory.py) the GPU is shown that memory.

`Interface` speaks the CUDA array interface, as CuPy's arrays do; `Capsule` speaks DLPack, as PyTorch's tensors do.
"""

from __future__ import annotations

import ctypes
import os
from typing import Any

import numpy as np
from host_memory import make_visible

ON_GPU = os.environ.get("NUMBA_ADAM_TESTS_ON_GPU") == "1"
STREAM = 1 if ON_GPU else 7  # the legacy default stream; any number is one for the simulator


class Interface:
    """A NumPy array, exposed through `__cuda_array_interface__`."""

    def __init__(self, array: np.ndarray, *, device: int = 0, typestr: str | None = None) -> None:
        self.array, self.number = array, device
        if ON_GPU:
            make_visible(array)
        self.typestr = typestr or array.dtype.str

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, self.number

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        flags = self.array.flags
        return {
            "shape": self.array.shape,
            "typestr": self.typestr,
            "data": (self.array.ctypes.data, not flags.writeable),
            "strides": None if flags.c_contiguous else self.array.strides,
            "version": 3,
            "stream": STREAM,
        }


class _Tensor(ctypes.Structure):
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


class Capsule:
    """A NumPy array, exposed through DLPack as a GPU array."""

    def __init__(self, array: np.ndarray, code: int = 2, *, device: int = 0) -> None:
        """Expose an array; `code` is DLPack's type code: 1 unsigned integer, 2 float, 4 bfloat."""
        self.array, self.number = array, device
        if ON_GPU:
            make_visible(array)
        self.shape = (ctypes.c_int64 * array.ndim)(*array.shape)
        self.strides = (ctypes.c_int64 * array.ndim)(*(step // array.itemsize for step in array.strides))
        # DLManagedTensor: the tensor, the manager's context and the deleter. The last two are null.
        self.tensor = _Tensor(
            array.ctypes.data - 64, 2, device, array.ndim, code, 8 * array.itemsize, 1, self.shape, self.strides, 64
        )

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, self.number

    def __dlpack__(self, *, stream: int | None = None) -> Any:
        assert stream == -1, "nothing may wait"
        new = ctypes.pythonapi.PyCapsule_New
        new.restype, new.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
        return new(ctypes.addressof(self.tensor), b"dltensor", None)


def on_gpu(*arrays: np.ndarray | None) -> list[Interface | None]:
    """Return an object that exposes each array; None stays None."""
    return [None if array is None else Interface(array) for array in arrays]
