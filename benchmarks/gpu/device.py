"""Arrays on the GPU, and its clock, without any framework."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from numba_adam.cuda import seam
from numba_adam.cuda.arrays import CudaArray
from numba_adam.cuda.memory import Buffer, download
from numba_adam.cuda.streams import LEGACY
from numba_adam.numerics.formats import format_of

Array = np.ndarray[Any, np.dtype[Any]]


def on_gpu(values: Array, skip: int = 0) -> CudaArray:
    """Return a copy on the GPU, `skip` elements after a multiple of 256 bytes; uint16 means the bits of bfloat16."""
    whole = np.zeros(values.size + skip, values.dtype)
    whole[skip:] = values.ravel()
    buffer = Buffer(max(1, whole.size), values.dtype.name, 0)
    if whole.size:
        buffer.upload(whole, LEGACY)
    format_ = format_of(values.dtype)
    assert format_ is not None
    return CudaArray(buffer.address + skip * values.itemsize, values.shape, format_, 0, LEGACY, buffer.array)


def to_host(array: CudaArray) -> Array:
    """Return a copy in this host's memory."""
    return download(array) if array.size else np.zeros(array.shape, array.dtype)


def synchronize() -> None:
    """Wait until the GPU has finished all queued work."""
    if not seam.SIMULATED:
        seam.cuda.synchronize()


def seconds(work: Callable[[], object], repeats: int) -> float:
    """Return the wall-clock seconds of one call, averaged over `repeats`, with the GPU's work, after a first call."""
    work()
    synchronize()
    begin = time.perf_counter()
    for _ in range(repeats):
        work()
    synchronize()
    return (time.perf_counter() - begin) / repeats


def copier(elements: int) -> tuple[Callable[[], object], int]:
    """Return a function that copies float32 elements on the GPU, and the bytes it reads and writes."""
    source, target = (Buffer(elements, "float32", 0) for _ in range(2))
    source.upload(np.zeros(elements, np.float32), LEGACY)

    def copy() -> None:
        if seam.SIMULATED:
            target.array[...] = source.array
            return
        target.array.copy_to_device(source.array, stream=seam.cuda.external_stream(LEGACY))

    return copy, 8 * elements


def description() -> dict[str, str]:
    """Return a description of the GPU."""
    if seam.SIMULATED:
        return {"GPU": "Numba's simulator: no GPU at all, and no measurement"}
    current = seam.cuda.get_current_device()
    name = current.name.decode() if isinstance(current.name, bytes) else str(current.name)
    return {"GPU": name, "compute capability": ".".join(map(str, current.compute_capability))}
