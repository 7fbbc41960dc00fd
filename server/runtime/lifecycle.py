"""Creates and deletes models while the server runs. Imports the registry, the loader and the snapshot writer."""

from __future__ import annotations

import logging

from numba_adam.errors import ModelNotFoundError
from numba_adam.ps.detail import StatePoint
from numba_adam.ps.transfer import Parts
from numba_adam.server.model.requests import Creation
from numba_adam.server.runtime.budget import SlotPool
from numba_adam.server.runtime.creation import is_ours
from numba_adam.server.runtime.model import Model
from numba_adam.server.runtime.model_errors import saying_state_of
from numba_adam.server.runtime.model_loader import ModelLoader
from numba_adam.server.runtime.registry import Registry
from numba_adam.server.runtime.snapshot_writer import SnapshotWriter
from numba_adam.server.storage.deletions import Deletion, Deletions

_log = logging.getLogger(__name__)


class Lifecycle:
    """Creates and deletes models.

    Args:
        registry: the models.
        loader: makes new ones.
        snapshots: removes the snapshots of deleted ones.
        deletions: which models were deleted.
        pool: the memory budget.
    """

    def __init__(
        self,
        registry: Registry,
        loader: ModelLoader,
        snapshots: SnapshotWriter,
        deletions: Deletions,
        pool: SlotPool,
    ) -> None:
        self._registry = registry
        self._loader = loader
        self._snapshots = snapshots
        self._deletions = deletions
        self._pool = pool

    def create(self, creation: Creation, parts: Parts) -> tuple[Model, bool]:
        """Create a model from its initial values; return it, and whether this call or an earlier try created it.

        Raises:
            ModelExistsError: another model has that name.
            ModelNotFoundError, RewoundError: the model was deleted meanwhile; see Deletions.check.
            InvalidRequestError: the transfer is malformed.
            BudgetExceededError: there is no memory for it.
            PushInProgressError: another call is creating it.
        """
        name = creation.spec.name
        existing = self._registry.find(name)
        if existing is not None:
            return existing, is_ours(existing, creation, parts)
        with self._registry.claim(name) as existing:
            if existing is not None:  # another call has just created it
                return existing, is_ours(existing, creation, parts)
            self._deletions.check(creation)
            model = self._loader.create(creation, parts)
            self._registry.add(model)
            return model, True

    def delete(self, name: str, state_id: str) -> StatePoint:
        """Delete a model and its snapshots; return its last state.

        Args:
            name: the model.
            state_id: the state to delete; empty: any.

        Raises:
            ModelNotFoundError: there is no such model.
            RewoundError: the model is in another state.
        """
        model = self._registry.get(name)
        if state_id:
            with saying_state_of(model):
                model.ledger.check_state(state_id)
        with self._registry.claim(name) as existing:
            if existing is not model:
                raise ModelNotFoundError(f"model {name!r}: the server has no such model")
            self._deletions.note(name, Deletion(model.request_id, model.ledger.state_id, model.version))
            model.apply_queue.call(model.mark_deleted)
            self._registry.remove(model)
            self._pool.release_model(name)
            self._snapshots.delete(model)
            if model.keeper is not None:
                model.keeper.close(remove=True)
        _log.info("model %s: deleted at version %d", name, model.version, extra={"version": model.version})
        return model.state()
