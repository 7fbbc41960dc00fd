"""Copies of a model's parameters, or of their average, each of one version, for the calls that pull it.

A copy is made between two updates and shared by all calls that pull the same version. Its memory is released when the
last of them has sent it, so a slow caller delays nobody. Imports the budget and the models.
"""

from __future__ import annotations

import threading

from numba_adam.server.runtime.budget import Bytes, Slot, SlotPool
from numba_adam.server.runtime.model import Model

_PAGE_BYTES = 4096


class PullCopy:
    """A copy of one version; a context manager that releases it."""

    def __init__(self, owner: PullCopies, model: Model, slot: Slot, *, is_average: bool) -> None:
        self._owner = owner
        self._slot = slot
        self.is_average = is_average
        self.model = model
        self.state = model.state()._replace(version=model.version)  # it may not be settled yet
        self.users = 1

    @property
    def bytes(self) -> Bytes:
        """The parameters as payload bytes."""
        return self._slot.bytes

    def __enter__(self) -> PullCopy:
        return self

    def __exit__(self, *_: object) -> None:
        self._owner.release(self)

    def give_back(self) -> None:
        """Release the memory. Only the owner calls it, once nobody uses the copy."""
        self._slot.release()


class PullCopies:
    """Makes and shares pull copies.

    Args:
        pool: the memory budget.
    """

    def __init__(self, pool: SlotPool) -> None:
        self._pool = pool
        self._lock = threading.Lock()
        self._newest: dict[tuple[Model, bool], PullCopy] = {}

    def take(self, model: Model, *, is_average: bool = False) -> PullCopy:
        """Return a copy of the newest version.

        Args:
            model: the model.
            is_average: whether it is a copy of the average of the weights, which the model must keep.

        Raises:
            BudgetExceededError: it exceeds the free part of the budget.
        """
        with model.pull_copy_lock:  # a second caller waits and shares the copy
            return self._share(model, is_average) or self._make(model, is_average)

    def release(self, pull_copy: PullCopy) -> None:
        """Stop using a pull copy; the last user releases its memory."""
        with self._lock:
            pull_copy.users -= 1
            if pull_copy.users:
                return
            key = pull_copy.model, pull_copy.is_average
            if self._newest.get(key) is pull_copy:
                del self._newest[key]
        pull_copy.give_back()

    def _make(self, model: Model, is_average: bool) -> PullCopy:
        """Return a new pull copy."""
        slot = self._pool.acquire(model.spec.nbytes, f"a pull of model {model.spec.name!r}")
        try:
            slot.bytes[::_PAGE_BYTES] = 0  # touch fresh pages here, not in the apply queue
            pull_copy = model.apply_queue.call(self._copy, model, slot, is_average)
        except BaseException:
            slot.release()
            raise
        with self._lock:
            self._newest[model, is_average] = pull_copy
        return pull_copy

    def _share(self, model: Model, is_average: bool) -> PullCopy | None:
        """Return the newest pull copy, if its version is still the newest."""
        with self._lock:
            pull_copy = self._newest.get((model, is_average))
            if pull_copy is None or pull_copy.state.version != model.version:
                return None
            pull_copy.users += 1
            return pull_copy

    def _copy(self, model: Model, slot: Slot, is_average: bool) -> PullCopy:
        """Copy the parameters or the average, rounded to the model's dtype. Runs in the model's apply queue."""
        arena = model.arena
        slot.bytes.view(arena.dtype)[:] = arena.ema if is_average else arena.param
        return PullCopy(self, model, slot, is_average=is_average)
