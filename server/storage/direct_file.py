"""Writes large records past the page cache, straight from the memory that has them, into room that was reserved.

The file system may not have either: then nothing is reserved, and the page cache is used. Imports NumPy.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

BLOCK = 4096
"""Positions, sizes and addresses of direct writes are multiples of it."""

_KEEP_SIZE = 1  # FALLOC_FL_KEEP_SIZE
_STEP_BYTES = 1 << 28
_NO_DIRECT_WRITES = (errno.EINVAL, errno.EOPNOTSUPP)
_NO_RESERVATIONS = (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS)


class DirectFile:
    """A second way into a file that is being written.

    Args:
        path: the file.

    Raises:
        OSError: it cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self._direct = -1
        self._reserved = 0
        self._bounce = mmap.mmap(-1, 2 * BLOCK)
        if hasattr(os, "O_DIRECT") and hasattr(os, "pwritev"):
            try:
                self._direct = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_DIRECT)
            except OSError as error:
                if error.errno not in _NO_DIRECT_WRITES:
                    raise

    def reserve(self, descriptor: int, end: int, size: int) -> bool:
        """Reserve room up to a position, so that no full disk can fail a write before it; return whether it was.

        Args:
            descriptor: a descriptor of the file.
            end: the position.
            size: size of the file. It does not change.

        Raises:
            OSError: there is no room.
        """
        if end <= self._reserved:
            return True
        need = end - max(size, self._reserved)
        for step in (min(4 * need, max(need, _STEP_BYTES)), need):  # more than one record, if there is room
            number = _fallocate(descriptor, end - need, step)
            if not number:
                self._reserved = end - need + step
                return True
            if number in _NO_RESERVATIONS:
                return False
        raise OSError(number, os.strerror(number))

    def forget_room(self) -> None:
        """Note that the room was given back, by cutting the file off."""
        self._reserved = 0

    def write(self, position: int, head: bytes, body: memoryview, tail: bytes) -> bool:
        """Write three parts in one go; return False if that is not possible, and nothing was written.

        Args:
            position: where they begin.
            head: the first part.
            body: the second.
            tail: the third.

        Raises:
            OSError: they were not written, or in part.
        """
        sizes = len(head), body.nbytes, len(tail)
        if self._direct < 0 or any(each % BLOCK for each in (position, *sizes)) or _address(body) % BLOCK:
            return False
        if len(self._bounce) < len(head) + len(tail):
            self._bounce = mmap.mmap(-1, len(head) + len(tail))
        self._bounce[: len(head) + len(tail)] = head + tail
        view = memoryview(self._bounce)
        parts = [view[: len(head)], body, view[len(head) : len(head) + len(tail)]]
        done = 0
        while done < sum(sizes):
            try:
                done += os.pwritev(self._direct, _after(parts, done), position + done)
            except OSError as error:
                if done or error.errno not in _NO_DIRECT_WRITES:
                    raise
                self.close()  # it could be opened, and cannot be used
                return False
        return True

    def close(self) -> None:
        """Close the file."""
        descriptor, self._direct = self._direct, -1
        if descriptor >= 0:
            os.close(descriptor)


def _after(parts: Sequence[memoryview], done: int) -> list[memoryview]:
    """Return what follows a number of bytes."""
    rest = []
    for part in parts:
        skip = min(done, part.nbytes)
        done -= skip
        if skip < part.nbytes:
            rest.append(part[skip:])
    return rest


def _address(view: memoryview) -> int:
    if not view.nbytes:
        return 0
    return int(np.frombuffer(view, np.uint8).ctypes.data)


def _fallocate(descriptor: int, begin: int, nbytes: int) -> int:
    """Reserve room beyond the end of a file; return the number of the error, or 0."""
    if not sys.platform.startswith("linux"):
        return errno.ENOSYS
    with contextlib.suppress(AttributeError, OSError):
        call = ctypes.CDLL(None, use_errno=True).fallocate64
        call.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
        return ctypes.get_errno() if call(descriptor, _KEEP_SIZE, begin, nbytes) else 0
    return errno.ENOSYS
