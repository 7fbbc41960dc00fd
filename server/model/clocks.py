"""The clocks of the workers of a model of the mode "ssp", bounded staleness. Imports the error tree.

The clock of a worker counts its pushes that have an answer. No clock may be more than `bound` ahead of the slowest. A
worker that joins starts at the slowest clock. One that has left has none, and nobody waits for it.

Deterministic like the ledger, which it is a part of and whose record has it.
"""

from __future__ import annotations

from collections.abc import Mapping

from numba_adam.errors import WorkerAheadError
from numba_adam.ps.detail import with_detail

RETRY_MILLISECONDS = 50
"""Advice to a worker that is ahead."""


class Clocks:
    """The clocks by worker; none unless the mode is "ssp"."""

    def __init__(self, clocks: Mapping[str, int] | None = None) -> None:
        self.bound: int | None = None
        """How many clocks a worker may be ahead of the slowest; None: the mode has no clocks."""

        self._clocks = dict(clocks or {})

    def follow(self, bound: int | None) -> None:
        """Have another bound from now on; without one, there are no clocks."""
        self.bound = bound
        if bound is None:
            self._clocks.clear()

    def of(self, worker_id: str) -> int | None:
        """Return the clock of a worker; None: it has none."""
        return self._clocks.get(worker_id)

    @property
    def slowest(self) -> int:
        """The slowest clock; 0 if there is none."""
        return min(self._clocks.values(), default=0)

    def check(self, worker_id: str) -> None:
        """Refuse a push that would get its worker too far ahead.

        Raises:
            WorkerAheadError: it would.
        """
        clock = self._clocks.get(worker_id)
        if self.bound is None or clock is None or clock < self.bound:
            return
        slowest = self.slowest
        if clock + 1 - slowest > self.bound:
            error = WorkerAheadError(
                f"worker {worker_id!r} has clock {clock}, and the slowest worker has {slowest}: no worker gets more "
                f"than {self.bound} ahead; the push was not applied, try again later"
            )
            raise with_detail(error, retry_after_milliseconds=RETRY_MILLISECONDS)

    def join(self, worker_id: str) -> None:
        """Give a worker the slowest clock, unless it has one."""
        if self.bound is not None and worker_id not in self._clocks:
            self._clocks[worker_id] = self.slowest

    def tick(self, worker_id: str) -> None:
        """Count an answered push; a worker without a clock joins with it."""
        if self.bound is not None:
            self.join(worker_id)
            self._clocks[worker_id] += 1

    def leave(self, worker_id: str) -> None:
        """Forget the clock of a worker."""
        self._clocks.pop(worker_id, None)

    def clear(self) -> None:
        """Forget all clocks."""
        self._clocks.clear()

    def to_record(self) -> dict[str, int]:
        """Return the clocks by worker."""
        return dict(self._clocks)
