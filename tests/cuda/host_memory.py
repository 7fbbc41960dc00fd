"""Makes NumPy arrays visible to a real GPU, where they lie: for tests that otherwise run in Numba's simulator.

Their pages are pinned and mapped into the GPU's address space (cuMemHostRegister), at the same addresses. They stay so
for the life of the process, which must not give freed memory back to the system: benchmarks/gpu/suite.py sees to it.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
from typing import Any

import numpy as np

_PORTABLE_AND_MAPPED = 0x01 | 0x02
_pages: set[int] = set()


@functools.cache
def _driver() -> Any:
    from numba_adam.cuda import seam

    seam.cuda.current_context()  # the driver's functions need one
    return ctypes.CDLL("libcuda.so.1")


def make_visible(array: np.ndarray) -> None:
    """Let the GPU read and write an array at its own address.

    Raises:
        RuntimeError: the driver refuses, or maps it elsewhere.
    """
    begin = array.ctypes.data
    least, most = np.lib.array_utils.byte_bounds(array)
    first, end = min(begin, least) // mmap.PAGESIZE, -(-max(most, begin + 1) // mmap.PAGESIZE)
    for page in range(first, end):
        if page not in _pages:
            _register(page * mmap.PAGESIZE)
            _pages.add(page)


def _register(address: int) -> None:
    driver, seen = _driver(), ctypes.c_uint64()
    pointer, size = ctypes.c_void_p(address), ctypes.c_size_t(mmap.PAGESIZE)
    status = driver.cuMemHostRegister_v2(pointer, size, ctypes.c_uint(_PORTABLE_AND_MAPPED))
    if status:
        raise RuntimeError(f"cuMemHostRegister of the page at {address:#x} gave {status}")
    status = driver.cuMemHostGetDevicePointer_v2(ctypes.byref(seen), pointer, ctypes.c_uint(0))
    if status or seen.value != address:
        raise RuntimeError(f"the GPU sees the page at {address:#x} at {seen.value:#x} (status {status})")
