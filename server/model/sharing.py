"""Memory that other processes of this user may read: its descriptor, and which version it has.

Two words in the header of the arena say so: an update writes its version to the first before it begins, and to the
second after it. A reader that finds the wanted version in both before and after its copy has one whole version.
Imports NumPy.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import weakref

import numpy as np
import numpy.typing as npt

VERSIONS_AT = 2048
"""Position of the two words in the arena."""

_NAME = "numba-adam-arena"


class Sharing:
    """The shared memory of one arena.

    Args:
        file: descriptor of the file that has it; None: a new file without a name, where the system has such.
        nbytes: its size.

    Raises:
        OSError: there is no memory.
    """

    def __init__(self, file: int | None, nbytes: int) -> None:
        self.id = secrets.randbits(63)
        """No other arena has it."""

        self.descriptor = _unnamed(nbytes) if file is None else os.dup(file)
        """Descriptor of the memory; -1: the system cannot share memory without a name."""

        self._words: npt.NDArray[np.uint64] | None = None
        if self.descriptor >= 0:
            weakref.finalize(self, os.close, self.descriptor)

    def use(self, words: npt.NDArray[np.uint64]) -> None:
        """Set where the two words are."""
        self._words = words

    def begin(self, version: int) -> None:
        """Note that the update to a version begins."""
        if self._words is not None:
            self._words[0] = version

    def end(self, version: int) -> None:
        """Note that the update to a version is complete."""
        if self._words is not None:
            self._words[1] = version

    def read_only(self) -> int:
        """Return a new descriptor of the memory, through which nobody can write.

        Raises:
            OSError: the system cannot share it.
        """
        if self.descriptor < 0:
            raise OSError("this system cannot share memory without a name")
        return os.open(f"/proc/self/fd/{self.descriptor}", os.O_RDONLY | os.O_CLOEXEC)


def _unnamed(nbytes: int) -> int:
    """Return the descriptor of new memory that cannot change its size."""
    if not hasattr(os, "memfd_create"):
        return -1
    descriptor = os.memfd_create(_NAME, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(descriptor, nbytes)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor
