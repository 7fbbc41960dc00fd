"""Pulls: wait for the version that is asked for, then share a copy of it. Imports the models and the pull copies."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import NamedTuple

from numba_adam.errors import DeadlineExceededError, ServerUnavailableError
from numba_adam.server.runtime.budget import SlotPool
from numba_adam.server.runtime.launcher import Launcher
from numba_adam.server.runtime.model import Model
from numba_adam.server.runtime.model_errors import saying_state_of
from numba_adam.server.runtime.pull_copy import PullCopies, PullCopy
from numba_adam.server.runtime.small_calls import small_call
from numba_adam.server.runtime.waiters import Waiters


class Caller(NamedTuple):
    """What a pull needs to know of the caller that waits for its answer."""

    time_remaining: Callable[[], float | None]
    """Seconds until the call's deadline; None without one."""

    is_gone: Callable[[], bool]
    """Whether the caller has hung up."""

    on_gone: Callable[[Callable[[], None]], object]
    """Registers what to call when that happens."""


class Pulls:
    """Answers pulls.

    Args:
        pool: where the memory for copies comes from.
        launcher: gives way to pulls of small models.
        waiters: bounds how many pulls wait.
    """

    def __init__(self, pool: SlotPool, launcher: Launcher, waiters: Waiters) -> None:
        self._launcher = launcher
        self.copies = PullCopies(pool)
        """The copies that are being sent."""

        self._waiters = waiters
        self._is_stopping = threading.Event()

    def pull(self, model: Model, caller: Caller, state_id: str = "", min_version: int = 0) -> PullCopy:
        """Return a copy of the parameters.

        Args:
            model: the model.
            caller: waits for the answer.
            state_id: the state that `min_version` belongs to.
            min_version: the oldest version that will do; 0: any.

        Raises:
            RewoundError: the version belongs to another state.
            BudgetExceededError: there is no memory, or too many calls wait already.
            DeadlineExceededError: the version did not come in time.
            ServerUnavailableError: the server is stopping.
        """
        with saying_state_of(model):
            if min_version or state_id:
                self._wait_for_version(model, caller, state_id, min_version)
            with small_call(model, self._launcher):
                return self.copies.take(model)

    def begin_stop(self) -> None:
        """Let no pull wait any longer; the models' waiters must be woken after it."""
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
                f"min_version={min_version}: the model was at version {model.version} when the time was up"
            )
