"""Memory that workers of this user share with the server: validated once, counted in the budget, and mapped.

A worker passes a file without a name (memfd) that can neither shrink nor grow, so reading it is never a SIGBUS. The
worker may write to it at any time: whoever uses what is in it copies it first. Imports the budget and NumPy.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import stat
from collections.abc import Iterable

import numpy as np

from numba_adam.errors import BudgetExceededError, InvalidRequestError
from numba_adam.ps.local import Region
from numba_adam.server.runtime.budget import Bytes, SlotPool

MOST_BUFFERS = 64
_SEALS = getattr(fcntl, "F_SEAL_SHRINK", 0) | getattr(fcntl, "F_SEAL_GROW", 0)


class SharedMemory:
    """The buffers of one connection.

    Args:
        pool: the memory budget.
    """

    def __init__(self, pool: SlotPool) -> None:
        self._pool = pool
        self._buffers: dict[int, Bytes] = {}
        self._last_number = 0

    def add(self, descriptor: int, nbytes: int) -> int:
        """Map a buffer; return its number.

        Raises:
            InvalidRequestError: the file is not of the kind that is needed.
            BudgetExceededError: it exceeds the free part of the budget, or the connection has many buffers.
        """
        _check(descriptor, nbytes)
        if len(self._buffers) >= MOST_BUFFERS or not self._pool.reserve(nbytes):
            raise BudgetExceededError(f"a shared buffer of {nbytes} bytes has no room now; close other workers")
        try:
            mapping = mmap.mmap(descriptor, nbytes, flags=mmap.MAP_SHARED)
        except (OSError, ValueError) as error:
            self._pool.give_back(nbytes)
            raise InvalidRequestError(f"the shared buffer of {nbytes} bytes cannot be mapped: {error}") from error
        self._last_number += 1
        self._buffers[self._last_number] = np.frombuffer(mapping, np.uint8)
        return self._last_number

    def bytes(self, region: Region) -> Bytes:
        """Return the memory of a region.

        Raises:
            InvalidRequestError: there is no such memory.
        """
        buffer = self._buffers.get(region.buffer)
        if buffer is None or region.offset + region.size > buffer.size:
            raise InvalidRequestError(f"{region} is not within a buffer that this connection has passed")
        return buffer[region.offset : region.offset + region.size]

    def forget(self, numbers: Iterable[int]) -> None:
        """Give buffers back. The memory is unmapped once no call uses it any more."""
        for number in numbers:
            buffer = self._buffers.pop(number, None)
            if buffer is not None:
                self._pool.give_back(buffer.size)

    def close(self) -> None:
        """Give all buffers back."""
        self.forget(list(self._buffers))


def _check(descriptor: int, nbytes: int) -> None:
    """Raise InvalidRequestError if a file may shrink, or reading it could fail."""
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        raise InvalidRequestError("the shared buffer is not a file; pass a memfd")
    try:
        seals = fcntl.fcntl(descriptor, fcntl.F_GET_SEALS)
    except OSError as error:
        raise InvalidRequestError("the shared buffer is a file on a disk; pass a memfd") from error
    if seals & _SEALS != _SEALS:
        raise InvalidRequestError(
            "the shared buffer may change its size; seal it with F_SEAL_SHRINK and F_SEAL_GROW before it is passed"
        )
    if status.st_size != nbytes or not nbytes:
        raise InvalidRequestError(f"the shared buffer has {status.st_size} bytes, and the packet says {nbytes}")
    if os.fstatvfs(descriptor).f_bsize != mmap.PAGESIZE:  # a missing huge page is a SIGBUS
        raise InvalidRequestError("the shared buffer has huge pages; pass a memfd without MFD_HUGETLB")
