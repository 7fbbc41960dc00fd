"""Memory for the gradients of a model's rounds: a fixed number of slots, which the model's memory counts.

A push is received into a slot, and stays there while its round is open. At the level `process` each slot is a file of
the memory folder, so that it survives the process. Imports the budget, the memory folder and the error tree.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import threading
from collections.abc import Callable, Collection, Iterator

import numpy as np

from numba_adam.errors import BudgetExceededError
from numba_adam.ps.detail import with_detail
from numba_adam.server.runtime.budget import Bytes
from numba_adam.server.storage.memory_folder import ModelMemory

_RETRY_MILLISECONDS = 50


def slots_bytes(workers: int, nbytes: int) -> int:
    """Return the memory that the rounds of so many workers need: a slot for each, and one for the mean."""
    return (workers + 1) * nbytes


class GradientSlots:
    """The slots of one model, numbered from 1.

    Args:
        count: number of slots.
        nbytes: size of each.
        held: returns the numbers of the slots that the open round holds.
        memory: the model's files; None: memory without a name.
    """

    def __init__(
        self, count: int, nbytes: int, held: Callable[[], Collection[int]], memory: ModelMemory | None = None
    ) -> None:
        self._count, self._nbytes, self._held, self._memory = count, nbytes, held, memory
        self._lock = threading.Lock()
        self._receiving: set[int] = set()
        self._mapped: dict[int, Bytes] = {}

    @contextlib.contextmanager
    def take(self, what: str) -> Iterator[tuple[int, Bytes]]:
        """Yield the number and the memory of a free slot. After the body it is free again, unless the round holds it.

        Args:
            what: what needs it, in error messages.

        Raises:
            BudgetExceededError: no slot is free.
        """
        with self._lock:
            taken = self._receiving | set(self._held())
            number = next((each for each in range(1, self._count + 1) if each not in taken), 0)
            if number:
                self._receiving.add(number)
        if not number:
            error = BudgetExceededError(
                f"{what}: all {self._count} gradients that its rounds have memory for are in use (do more workers push "
                "than it was created for?); try again later"
            )
            raise with_detail(error, retry_after_milliseconds=_RETRY_MILLISECONDS)
        try:
            yield number, self.memory(number)
        finally:
            with self._lock:
                self._receiving.discard(number)

    def memory(self, number: int) -> Bytes:
        """Return the memory of a slot, which is as an earlier process left it, if one did.

        Raises:
            TransferTooLargeError: there is no room for its file.
        """
        if number not in self._mapped:
            self._mapped[number] = self._map(number)
        return self._mapped[number]

    def _map(self, number: int) -> Bytes:
        if not self._nbytes:
            return np.empty(0, np.uint8)
        if self._memory is None:
            return np.frombuffer(mmap.mmap(-1, self._nbytes), np.uint8)
        name = f"held-{number}"
        try:
            descriptor = self._memory.open(name, self._nbytes)
        except (OSError, ValueError):
            descriptor = self._memory.create(name, self._nbytes)
        try:
            return np.frombuffer(mmap.mmap(descriptor, self._nbytes, flags=mmap.MAP_SHARED), np.uint8)
        finally:
            os.close(descriptor)
