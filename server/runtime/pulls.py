"""Pulls: wait for the requested version, then share a copy of it. Imports the models and the pull copies."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import NamedTuple

from numba_adam.errors import DeadlineExceededError, InvalidRequestError, ServerUnavailableError
from numba_adam.ps.detail import StatePoint
from numba_adam.server.runtime.budget import Bytes, SlotPool
from numba_adam.server.runtime.launcher import Launcher
from numba_adam.server.runtime.model import Model
from numba_adam.server.runtime.model_errors import saying_state_of
from numba_adam.server.runtime.pull_copy import PullCopies, PullCopy
from numba_adam.server.runtime.small_calls import small_call
from numba_adam.server.runtime.waiters import Waiters


class Caller(NamedTuple):
    """The caller of a pull: its deadline, and whether it is still connected."""

    time_remaining: Callable[[], float | None]
    """Seconds until the call's deadline; None without one."""

    is_gone: Callable[[], bool]
    """Whether the caller has disconnected."""

    on_gone: Callable[[Callable[[], None]], object]
    """Registers a callback for that."""


class Pulls:
    """Answers pulls.

    Args:
        pool: the memory budget.
        launcher: gives way to pulls of small models.
        waiters: limits how many pulls wait.
    """

    def __init__(self, pool: SlotPool, launcher: Launcher, waiters: Waiters) -> None:
        self._launcher = launcher
        self.copies = PullCopies(pool)
        """The copies in use."""

        self._waiters = waiters
        self._is_stopping = threading.Event()

    def pull(
        self, model: Model, caller: Caller, state_id: str = "", min_version: int = 0, *, is_average: bool = False
    ) -> PullCopy:
        """Return a copy of the parameters.

        Args:
            model: the model.
            caller: waits for the answer.
            state_id: the state that `min_version` belongs to.
            min_version: the oldest acceptable version; 0: any.
            is_average: whether the average of the weights is wanted.

        Raises:
            InvalidRequestError: the model keeps no average.
            RewoundError: the version belongs to another state.
            BudgetExceededError: there is no memory, or too many calls wait already.
            DeadlineExceededError: the model did not reach the version in time.
            ServerUnavailableError: the server is stopping.
        """
        if is_average and model.arena.ema is None:
            raise InvalidRequestError(
                f"average: model {model.spec.name!r} keeps no average of its weights; create one with ema_decay"
            )
        with saying_state_of(model):
            if min_version or state_id:
                self._wait_for_version(model, caller, state_id, min_version)
            with small_call(model, self._launcher):
                pull_copy = self.copies.take(model, is_average=is_average)
                try:
                    model.settle()
                except BaseException:
                    self.copies.release(pull_copy)
                    raise
                return pull_copy

    def point(self, model: Model, caller: Caller, state_id: str = "", min_version: int = 0) -> StatePoint:
        """Return the newest state, for a caller that reads the parameters itself; waits and raises as `pull` does."""
        with saying_state_of(model):
            model.check_alive()
            if min_version or state_id:
                self._wait_for_version(model, caller, state_id, min_version)
            version = model.version  # it may not be settled yet
            model.settle()
            return model.state()._replace(version=version)

    def copy_into(
        self, model: Model, caller: Caller, target: Bytes, state_id: str = "", min_version: int = 0
    ) -> StatePoint:
        """Copy the newest version into memory of the caller, between two updates; waits and raises as `pull` does."""

        def copy() -> StatePoint:
            model.check_alive()
            target.view(model.arena.dtype)[:] = model.arena.param
            return model.state()._replace(version=model.version)

        with saying_state_of(model):
            if min_version or state_id:
                self._wait_for_version(model, caller, state_id, min_version)
            with small_call(model, self._launcher):
                point = model.apply_queue.call(copy)
            model.settle()
            return point

    def begin_stop(self) -> None:
        """Refuse pulls that wait. Wake the models' waiting calls after it."""
        self._is_stopping.set()

    def _wait_for_version(self, model: Model, caller: Caller, state_id: str, min_version: int) -> None:
        """Wait until the model has reached a version."""
        model.ledger.check_state(state_id)
        if model.version >= min_version:
            return
        with self._waiters.waiting(f"version {min_version}"):
            caller.on_gone(model.wake)
            is_reached = model.wait_for(
                state_id,
                min_version,
                lambda: self._is_stopping.is_set() or caller.is_gone(),
                caller.time_remaining(),
            )
        if self._is_stopping.is_set():
            raise ServerUnavailableError("the server is stopping; try again when it is back")
        if not is_reached:
            raise DeadlineExceededError(
                f"min_version={min_version}: the model was at version {model.version} at the deadline"
            )
