"""Answers calls that request snapshots. Imports the registry and the snapshot writer."""

from __future__ import annotations

from numba_adam.server.runtime.model import Model
from numba_adam.server.runtime.registry import Registry
from numba_adam.server.runtime.snapshot_writer import SnapshotWriter, Written
from numba_adam.server.runtime.waiters import Waiters


class SnapshotRequests:
    """Answers requests for snapshots.

    Args:
        registry: the models.
        snapshots: writes them.
        waiters: limits how many requests wait.
    """

    def __init__(self, registry: Registry, snapshots: SnapshotWriter, waiters: Waiters) -> None:
        self._registry = registry
        self._snapshots = snapshots
        self._waiters = waiters

    def write(self, name: str) -> list[tuple[Model, Written]]:
        """Write a snapshot of one model, or of all if the name is empty; return the snapshots.

        Raises:
            SnapshotError: a snapshot could not be written; those of the other models were.
            BudgetExceededError: too many calls wait already.
        """
        with self._waiters.waiting("a snapshot"):
            if not name:
                return self._snapshots.snapshot_all(self._registry.all())
            model = self._registry.get(name)
            return [(model, self._snapshots.snapshot(model))]
