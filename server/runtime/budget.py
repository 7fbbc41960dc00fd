"""The memory budget, and the pooled slots that transfers are received into.

A transfer is admitted by its declared size, before any of its payload is accepted. A released slot stays mapped,
because touching fresh pages costs more than the copy into them. It counts as used until another transfer or model needs
the memory. Imports the error tree and NumPy.
"""

from __future__ import annotations

import contextlib
import mmap
import threading
from collections.abc import Hashable

import numpy as np
import numpy.typing as npt

from numba_adam.errors import BudgetExceededError, ServiceError, TransferTooLargeError
from numba_adam.ps.detail import with_detail

Bytes = npt.NDArray[np.uint8]

SMALL_CHANGE_BYTES = 1 << 24
"""Descriptions, sessions, messages and headers count in the budget only beyond this total."""

_GRAIN_BYTES = 1 << 16  # slot sizes are multiples of it, so that transfers of similar sizes share slots
_BYTES_PER_MILLISECOND = 1 << 20  # about the speed of a transfer: the advised pause grows with the size
_SHORTEST_RETRY_MILLISECONDS = 20
_LONGEST_RETRY_MILLISECONDS = 5000


class Slot:
    """Memory for one transfer; a context manager that releases it."""

    def __init__(self, pool: SlotPool, memory: Bytes, nbytes: int) -> None:
        self._pool = pool
        self._memory = memory
        self.bytes = memory[:nbytes]

    def __enter__(self) -> Slot:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def release(self) -> None:
        """Return the memory to the pool, where the next transfer overwrites it."""
        self._pool._give_back(self._memory)

    def discard(self) -> None:
        """Unmap the memory."""
        self._pool._let_go(self._memory)
        self._memory = self.bytes = np.empty(0, np.uint8)


class SlotPool:
    """The byte budget, shared by models and transfers.

    Args:
        budget_bytes: largest number of bytes in use.
    """

    def __init__(self, budget_bytes: int) -> None:
        self.budget_bytes = budget_bytes
        self._lock = threading.Lock()
        self._models: dict[str, tuple[int, int]] = {}
        self._kept: dict[Hashable, int] = {}
        self._kept_bytes = 0
        self._in_use_bytes = 0
        self._free: list[Bytes] = []

    @property
    def used_bytes(self) -> int:
        """Bytes that models and slots hold now."""
        with self._lock:
            return self._used()

    def admit_model(self, name: str, arena_bytes: int, transfer_bytes: int) -> None:
        """Count a model's memory until `release_model`.

        All models and one transfer of the largest must fit, so that every model can be pulled.

        Raises:
            TransferTooLargeError: the model alone does not fit the budget.
            BudgetExceededError: it does not fit the free part of the budget.
        """
        with self._lock:
            if arena_bytes + _in_grains(transfer_bytes) > self.budget_bytes:
                raise self._too_large(f"model {name!r} needs {arena_bytes} bytes and {transfer_bytes} to pull it")
            if not self._leaves_room(arena_bytes, transfer_bytes) or not self._make_room(arena_bytes):
                raise self._exceeded(f"model {name!r} of {arena_bytes} bytes", arena_bytes)
            self._models[name] = (arena_bytes, transfer_bytes)

    def grow_model(self, name: str, nbytes: int, *, must: bool = False) -> None:
        """Count more memory of a model that was admitted.

        Args:
            name: the model.
            nbytes: how much more.
            must: True: count it even if it does not fit, because it was counted before a restart.

        Raises:
            BudgetExceededError: it does not fit the free part of the budget.
        """
        with self._lock:
            if not must and not (self._leaves_room(nbytes) and self._make_room(nbytes)):
                raise self._exceeded(f"model {name!r}: {nbytes} bytes for its rounds", nbytes)
            arena_bytes, transfer_bytes = self._models[name]
            self._models[name] = (arena_bytes + nbytes, transfer_bytes)

    def release_model(self, name: str) -> None:
        """Stop counting a model's memory."""
        with self._lock:
            self._models.pop(name, None)
            self._set_kept(name, 0)

    def keep(self, owner: Hashable, nbytes: int, what: str, *, must: bool = False) -> None:
        """Set the memory that an owner uses without arrays. The total counts beyond SMALL_CHANGE_BYTES.

        Args:
            owner: a model's name, or any other key; `release_model` or 0 bytes end the count.
            nbytes: size in bytes.
            what: its name in error messages.
            must: True: count it even if it does not fit, because it is in use already.

        Raises:
            TransferTooLargeError: it is larger than the whole budget.
            BudgetExceededError: it exceeds the free part of the budget.
        """
        with self._lock:
            before = self._kept.get(owner, 0)
            self._set_kept(owner, nbytes)
            fits = self._make_room(0) and self._leaves_room()
            if fits or must or nbytes <= before:
                return
            self._set_kept(owner, before)
            if nbytes > self.budget_bytes + SMALL_CHANGE_BYTES:
                raise self._too_large(f"{what} of {nbytes} bytes")
            raise self._exceeded(f"{what} of {nbytes} bytes", nbytes)

    def _leaves_room(self, nbytes: int = 0, transfer_bytes: int = 0) -> bool:
        """Return whether one transfer of the largest model still fits after `nbytes` more are held."""
        largest = max([transfer_bytes, *(transfer for _, transfer in self._models.values())])
        return self._lasting() + nbytes + _in_grains(largest) <= self.budget_bytes

    def _set_kept(self, owner: Hashable, nbytes: int) -> None:
        self._kept_bytes += nbytes - self._kept.pop(owner, 0)
        if nbytes:
            self._kept[owner] = nbytes

    def acquire(self, nbytes: int, what: str) -> Slot:
        """Return a slot for a transfer.

        Args:
            nbytes: declared size of the transfer.
            what: the transfer's name in error messages.

        Raises:
            TransferTooLargeError: it is larger than the whole budget.
            BudgetExceededError: it exceeds the free part of the budget.
        """
        size = _in_grains(nbytes)
        if nbytes > self.budget_bytes:
            raise self._too_large(f"{what} of {nbytes} bytes")
        with self._lock:
            memory = self._take_free(size)
            if memory is None:
                if not self._make_room(size):
                    raise self._exceeded(f"{what} of {nbytes} bytes", nbytes)
                memory = _map(size)
            self._in_use_bytes += memory.nbytes
        return Slot(self, memory, nbytes)

    def admit(self, nbytes: int, what: str) -> None:
        """Count memory for a transfer that the pool does not allocate, until `give_back`.

        Raises:
            TransferTooLargeError: it is larger than the whole budget.
            BudgetExceededError: it exceeds the free part of the budget.
        """
        if nbytes > self.budget_bytes:
            raise self._too_large(f"{what} of {nbytes} bytes")
        with self._lock:
            if not self._make_room(nbytes):
                raise self._exceeded(f"{what} of {nbytes} bytes", nbytes)
            self._in_use_bytes += nbytes

    def reserve(self, nbytes: int) -> bool:
        """Count memory that the pool does not allocate, if it fits; return whether it does."""
        with self._lock:
            if not self._leaves_room(nbytes) or not self._make_room(nbytes):
                return False
            self._in_use_bytes += nbytes
            return True

    def give_back(self, nbytes: int) -> None:
        """Stop counting bytes that `reserve` or `admit` counted."""
        with self._lock:
            self._in_use_bytes -= nbytes

    def spare(self, nbytes: int) -> Slot | None:
        """Return a slot for optional use; None if it would take more than half of the free memory."""
        with self._lock:
            room = self.budget_bytes - self._used() + sum(memory.nbytes for memory in self._free)
        if 2 * nbytes > room:
            return None
        try:
            return self.acquire(nbytes, "a copy")
        except ServiceError:  # another call took the memory
            return None

    def _give_back(self, memory: Bytes) -> None:
        with self._lock:
            self._in_use_bytes -= memory.nbytes
            if memory.nbytes:
                self._free.append(memory)

    def _let_go(self, memory: Bytes) -> None:
        with self._lock:
            self._in_use_bytes -= memory.nbytes

    def _take_free(self, size: int) -> Bytes | None:
        """Return a free slot of at least this size and at most a quarter more."""
        fitting = [index for index, memory in enumerate(self._free) if size <= memory.nbytes <= size + size // 4]
        return self._free.pop(min(fitting, key=lambda index: self._free[index].nbytes)) if fitting else None

    def _make_room(self, size: int) -> bool:
        """Unmap free slots until `size` more bytes fit; return whether they do."""
        while self._free and self._used() + size > self.budget_bytes:
            self._free.pop(0)
        return self._used() + size <= self.budget_bytes

    def _used(self) -> int:
        return self._lasting() + self._in_use_bytes + sum(memory.nbytes for memory in self._free)

    def _lasting(self) -> int:
        models = sum(arena for arena, _ in self._models.values())
        return models + max(0, self._kept_bytes - SMALL_CHANGE_BYTES)

    def _too_large(self, what: str) -> TransferTooLargeError:
        return TransferTooLargeError(
            f"{what}: the server's whole memory budget is {self.budget_bytes} bytes; "
            "start it with a larger --memory-budget-bytes"
        )

    def _exceeded(self, what: str, nbytes: int) -> BudgetExceededError:
        wait = _SHORTEST_RETRY_MILLISECONDS + nbytes // _BYTES_PER_MILLISECOND
        error = BudgetExceededError(
            f"{what}: {self._used()} of the server's {self.budget_bytes} bytes are taken; try again later"
        )
        return with_detail(error, retry_after_milliseconds=min(wait, _LONGEST_RETRY_MILLISECONDS))


def _in_grains(nbytes: int) -> int:
    """Return the size of a slot for that many bytes."""
    return -(-nbytes // _GRAIN_BYTES) * _GRAIN_BYTES


def _map(size: int) -> Bytes:
    """Map fresh memory, in huge pages if the system has them."""
    if not size:
        return np.empty(0, np.uint8)
    mapping = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without huge pages
            mapping.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(mapping, np.uint8)
