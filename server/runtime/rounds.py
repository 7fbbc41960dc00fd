"""The rounds of one model of the mode "sync": holds gradients, applies their mean, aborts a round that takes too long.

What happens is decided by the ledger; this has the memory, and the clock. Everything but `slots` runs in the model's
apply queue. Imports the ledger's values, the events, the slots and the mean.
"""

from __future__ import annotations

import logging
import mmap
import time
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

import numpy as np

from numba_adam.errors import LatePushError, PushRejectedError
from numba_adam.ps.round_settings import RoundSettings
from numba_adam.server.model.answers import Accepted
from numba_adam.server.model.arena import Arena, FlatArray
from numba_adam.server.model.events import Abortion, Closing, Holding
from numba_adam.server.model.push_ledger import PushLedger
from numba_adam.server.model.rounds import Held
from numba_adam.server.model.spec import Spec
from numba_adam.server.runtime.gradient_slots import GradientSlots
from numba_adam.server.runtime.keeping import Keeping
from numba_adam.server.runtime.tally import Tally
from numba_adam.server.storage.memory_folder import ModelMemory

_log = logging.getLogger(__name__)
_R = TypeVar("_R")


class _Counters(Protocol):
    applied: int
    rejected: int


class _Model(Protocol):
    """What rounds need of their model."""

    spec: Spec
    arena: Arena
    ledger: PushLedger
    keeper: Keeping | None

    @property
    def counters(self) -> _Counters: ...

    @property
    def version(self) -> int: ...

    @property
    def is_deleted(self) -> bool: ...

    @property
    def tally(self) -> Tally: ...

    def note(self, change: Callable[[], _R]) -> _R: ...

    def update(self, present: Sequence[bool], gradient: FlatArray) -> None: ...


def check_unscaled(loss_scale: float) -> None:
    """Refuse a push with a loss scale: workers with different ones could not share a sum.

    Raises:
        PushRejectedError: it has one.
    """
    if loss_scale != 1.0:
        raise PushRejectedError(
            f'loss_scale={loss_scale:g}: models of mode "sync" take gradients without a loss scale; divide them first'
        )


class Rounds:
    """The rounds of one model.

    Args:
        model: the model.
        settings: how many gradients close a round.
        threads: number of threads that compute a large mean.
        memory: the model's files; None: held gradients need not outlive the process.
    """

    def __init__(self, model: _Model, settings: RoundSettings, threads: int, memory: ModelMemory | None = None) -> None:
        self._model, self.settings, self._threads = model, settings, threads
        self.slots = GradientSlots(settings.workers, model.spec.nbytes, self._held_slots, memory)
        """Memory for its gradients."""

        self._began = 0.0
        self.on_open: Callable[[int, float], None] = lambda *_: None
        """Is called with the attempt and its timeout in seconds, when a round begins."""

        self.on_end: Callable[[], None] = lambda: None
        """Is called when a round has ended: its pushes have their answers."""

        nbytes = max(1, model.spec.nbytes)
        self._mean: FlatArray = np.frombuffer(mmap.mmap(-1, nbytes), model.arena.dtype, model.spec.element_count)

    def check_open(self, base_version: int) -> None:
        """Refuse a push whose round is closed.

        Raises:
            LatePushError: it is.
        """
        version = self._model.version
        if base_version < version:
            raise LatePushError(
                f"base_version={base_version}: round {base_version + 1} is closed, and the model is at version "
                f"{version}; the push was not applied. Pull, and compute the next gradient"
            )

    def hold(self, base_version: int, event: Holding, gradient: FlatArray) -> Accepted | Held:
        """Take a push that fits into the open round, and close the round if that was the last one it needs.

        Raises:
            LatePushError: its round is closed.
            ServerUnavailableError: it cannot be kept, and nothing has changed.
        """
        model = self._model
        self.check_open(base_version)
        if model.keeper is not None:
            model.keeper.note(event, gradient)
        is_first = not model.ledger.round
        held = model.note(lambda: model.ledger.hold(*event))
        if is_first:
            self._began = time.monotonic()
            self.on_open(model.ledger.round.attempt, self.settings.timeout_seconds)
        if len(model.ledger.round) < self.settings.needed:
            return held
        self._close()
        return Accepted(model.version, 0)

    def time_out(self, attempt: int) -> None:
        """End a round whose time is over: apply it if it has enough gradients, else reject them.

        Args:
            attempt: which round. Nothing happens if another one is open.
        """
        opened = self._model.ledger.round
        if opened.attempt != attempt or not opened or self._model.is_deleted:
            return
        if len(opened) >= self.settings.needed:
            self._close()
        else:
            self.abort(f"{self.settings.timeout_seconds:g} s are over")

    def resume(self) -> None:
        """Go on with a round that an earlier process left open."""
        opened = self._model.ledger.round
        if len(opened) >= self.settings.needed:
            self._close()
        elif opened:
            self._began = time.monotonic()
            self.on_open(opened.attempt, self.settings.timeout_seconds)

    def held(self) -> list[tuple[Holding, FlatArray]]:
        """Return the pushes of the open round, as events, with their gradients."""
        sizes = [tensor.size for tensor in self._model.spec.tensors]
        return [
            (
                Holding(*push),
                self.gradient(push.gradient)[: sum(s for s, is_in in zip(sizes, push.present, strict=True) if is_in)],
            )
            for push in self._model.ledger.round.in_order()
        ]

    def gradient(self, number: int) -> FlatArray:
        """Return all elements of a slot."""
        return self.slots.memory(number).view(self._model.arena.dtype)

    def apply_mean(self, run: Callable[[tuple[bool, ...], FlatArray], None]) -> None:
        """Compute the mean of the open round, and update the arrays with it: `run` takes what is present, and it."""
        from numba_adam.server.runtime.mean import write_mean_of_present

        pushes = self._model.ledger.round.in_order()
        sizes = [tensor.size for tensor in self._model.spec.tensors]
        gradients, presents = [self.gradient(push.gradient) for push in pushes], [push.present for push in pushes]
        present = write_mean_of_present(self._mean, gradients, presents, sizes, self._threads)
        run(present, self._mean[: sum(size for size, is_in in zip(sizes, present, strict=True) if is_in)])

    def _close(self) -> None:
        """Apply the mean of the open round as the next version."""
        model = self._model
        count = len(model.ledger.round)
        if model.keeper is not None:
            model.keeper.note(Closing())
        self.apply_mean(model.update)
        model.note(model.ledger.close_round)
        model.counters.applied += count
        model.tally.round_seconds.add(max(0.0, time.monotonic() - self._began))
        self.on_end()

    def abort(self, why: str) -> None:
        """Reject the pushes of the open round, if there are any.

        Args:
            why: completes "round 7 had 2 of 3 gradients, and was aborted:".
        """
        model = self._model
        number, count = model.version + 1, len(model.ledger.round)
        if not count:
            return
        event = Abortion(
            f"round {number} had {count} of the {self.settings.needed} gradients that it needs, and was aborted: "
            f"{why}. None was applied, and the version is still {model.version}; compute another gradient"
        )
        if model.keeper is not None:
            model.keeper.note(event)
        model.note(lambda: model.ledger.abort_round(event.message))
        model.counters.rejected += count
        model.tally.aborted_pushes += count
        _log.warning("model %s: round %d aborted with %d gradients", model.spec.name, number, count)
        self.on_end()

    def _held_slots(self) -> list[int]:
        return [push.gradient for push in self._model.ledger.round.in_order()]
