"""Allocations on a GPU, and copies to and from them. In the simulator they are in this process's memory.

Copies to a GPU are queued on the given stream without waiting. Copies from it wait only for that stream.
"""

from __future__ import annotations

import ctypes
import functools
import math
from typing import Any

import numpy as np

from numba_adam.cuda import seam
from numba_adam.cuda.arrays import CudaArray, stored_as
from numba_adam.interop.axes import as_given, axes_of
from numba_adam.numerics.eight_bit import EightBit, blocks_of
from numba_adam.numerics.formats import Format
from numba_adam.settings.step_arrays import array_format

Array = np.ndarray[Any, np.dtype[Any]]


def on(device: int) -> Any:
    """Return a context manager that makes a GPU the current one."""
    return seam.cuda.gpus[device]


@functools.lru_cache(maxsize=256)
def stream_of(handle: int, device: int) -> Any:
    """Return a stream of another library in the form that a launch needs."""
    if seam.SIMULATED:
        return 0
    with on(device):
        return seam.cuda.external_stream(handle)


class Buffer:
    """An array on a GPU that is uploaded and downloaded as a whole."""

    def __init__(self, shape: int | tuple[int, ...], dtype: str, device: int) -> None:
        """Allocate the memory, uninitialized."""
        self.shape = shape if isinstance(shape, tuple) else (shape,)
        self.dtype, self.device = np.dtype(dtype), device
        if seam.SIMULATED:
            # NumPy aligns to 16 bytes, a GPU to 256.
            padded = np.zeros(math.prod(self.shape) * self.dtype.itemsize + 256, np.uint8)
            skip = -padded.ctypes.data % 256
            self.array: Any = padded[skip : skip + padded.size - 256].view(self.dtype).reshape(self.shape)
            self.address = int(self.array.ctypes.data)
            return
        with on(device):
            self.array = seam.cuda.device_array(self.shape, self.dtype)
        self.address = int(self.array.__cuda_array_interface__["data"][0] or 0)

    def upload(self, values: Array, stream: int) -> None:
        """Queue a copy of `values`. The caller may change them afterwards."""
        values = np.ascontiguousarray(values, self.dtype).reshape(self.shape)
        if seam.SIMULATED:
            self.array[...] = values
            return
        with on(self.device):
            self.array.copy_to_device(values, stream=stream_of(stream, self.device))

    def download(self, stream: int) -> Array:
        """Wait for the stream, and return the contents."""
        if seam.SIMULATED:
            return np.array(self.array)
        with on(self.device):
            queue = stream_of(stream, self.device)
            values = self.array.copy_to_host(stream=queue)
            queue.synchronize()
        return np.array(values)


def buffer_of(values: Array, device: int, stream: int) -> Buffer:
    """Return a new buffer with these values."""
    buffer = Buffer(values.shape, values.dtype.name, device)
    buffer.upload(values, stream)
    return buffer


def zeros(shape: tuple[int, ...], format_: Format, device: int, stream: int) -> CudaArray:
    """Return a new array of zeros of a format, on a GPU; its `owner` has a `__cuda_array_interface__`."""
    array = _new(shape, format_, device, stream)
    clear(array)
    return array


def clear(array: CudaArray) -> None:
    """Queue writing zeros to all of an array, on its stream."""
    if seam.SIMULATED:
        ctypes.memset(array.address, 0, array.nbytes)
        return
    if not array.size:
        return
    with on(array.device):
        stream = stream_of(array.stream, array.device)
        seam.cuda.cudadrv.driver.device_memset(_view(array), 0, array.nbytes, stream=stream)


def zero_moment(param: CudaArray, format_: Format) -> CudaArray | EightBit:
    """Return a moment of a format for a parameter, all zeros, on its GPU and its stream."""
    where = param.device, param.stream
    if format_ == Format.EIGHT_BIT:
        scales = zeros((blocks_of(param.size),), Format.FLOAT32, *where)
        return EightBit(zeros(param.shape, format_, *where), scales)  # type: ignore[arg-type]
    return zeros(param.shape, format_, *where)


def uploaded(values: Any, like: CudaArray) -> Any:
    """Return a copy of an array or a moment on the GPU and the stream of another array."""
    if isinstance(values, EightBit):
        codes, scales = _copied(values.codes, Format.EIGHT_BIT, like), _copied(values.scales, Format.FLOAT32, like)
        return EightBit(codes, scales)  # type: ignore[arg-type]
    return _copied(values, array_format(values), like)


def _copied(values: Array, format_: Format, like: CudaArray) -> CudaArray:
    array = _new(values.shape, format_, like.device, like.stream)
    upload(array, values)
    return array


def _new(shape: tuple[int, ...], format_: Format, device: int, stream: int) -> CudaArray:
    """Return a new, uninitialized array."""
    buffer = Buffer(shape, stored_as(format_), device)
    return CudaArray(buffer.address, shape, format_, device, stream, buffer.array)


def download(array: CudaArray) -> Array:
    """Return a copy of an array in host memory, its axes in the same order; bfloat16 as its bits."""
    axes = axes_of(array)
    if axes is not None:
        return as_given(download(array.transpose(axes)), axes)  # type: ignore[no-any-return]
    if seam.SIMULATED:
        values = np.empty(array.shape, array.dtype)
        ctypes.memmove(values.ctypes.data, array.address, array.nbytes)
        return values
    if not array.size:
        return np.empty(array.shape, array.dtype)
    with on(array.device):
        queue = stream_of(array.stream, array.device)
        values = _view(array).copy_to_host(stream=queue)
        queue.synchronize()
    return np.array(values).reshape(array.shape)


def upload(array: CudaArray, values: Array) -> None:
    """Queue a copy of values from host memory to an array. The caller may change them afterwards."""
    is_narrow = array.format == Format.BFLOAT16  # NumPy cannot convert arrays of ml_dtypes
    values = values.view(np.uint16) if is_narrow else values
    values = np.ascontiguousarray(values, array.dtype).reshape(array.shape)
    if seam.SIMULATED:
        ctypes.memmove(array.address, values.ctypes.data, array.nbytes)
        return
    if not array.size:
        return
    with on(array.device):
        _view(array).copy_to_device(values, stream=stream_of(array.stream, array.device))


def _view(array: CudaArray) -> Any:
    """Return an array as an object of the CUDA package."""
    interface = {
        "shape": array.shape,
        "typestr": array.dtype.str,
        "data": (array.address, False),
        "strides": None,
        "version": 3,
        "stream": None,
    }
    return seam.cuda.from_cuda_array_interface(interface, owner=array.owner, sync=False)
