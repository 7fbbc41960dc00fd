"""Memory that the server of this machine can read: files without a name that can change neither size nor place.

May import NumPy and the standard library.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import threading
import weakref
from typing import Any

import numpy as np
import numpy.typing as npt

_NAME = "numba-adam-buffer"


class SharedMemory(mmap.mmap):
    """One buffer. It exists as long as an array views it."""

    descriptor: int
    address: int


_buffers: weakref.WeakSet[SharedMemory] = weakref.WeakSet()
_lock = threading.Lock()


def allocate(nbytes: int) -> SharedMemory:
    """Return new shared memory.

    Raises:
        OSError: there is no memory, or the system has no such files.
    """
    descriptor = os.memfd_create(_NAME, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(descriptor, nbytes)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
        memory = SharedMemory(descriptor, nbytes, flags=mmap.MAP_SHARED)
    except BaseException:
        os.close(descriptor)
        raise
    memory.descriptor = descriptor
    memory.address = np.frombuffer(memory, np.uint8).ctypes.data
    weakref.finalize(memory, _close, descriptor)
    with _lock:
        _buffers.add(memory)
    return memory


def place_of(array: npt.NDArray[Any]) -> tuple[SharedMemory, int] | None:
    """Return the buffer in which a C-contiguous array lies, and its offset there; None if it lies elsewhere."""
    if not _buffers:
        return None
    address = array.__array_interface__["data"][0]
    with _lock:
        for memory in _buffers:
            if memory.address <= address and address + array.nbytes <= memory.address + len(memory):
                return memory, address - memory.address
    return None


def _close(descriptor: int) -> None:
    with contextlib.suppress(OSError):
        os.close(descriptor)
