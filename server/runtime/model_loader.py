"""Restores models from snapshots when the server starts, and creates models from transfers.

Their memory counts in the budget. If a model cannot be made, its memory and files are released. Imports the snapshot
writer, the data folder, the models and the receiver.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
import time

import numpy as np

from numba_adam.errors import BudgetExceededError, ConfigurationError, InvalidRequestError, TransferTooLargeError
from numba_adam.ps.transfer import Parts, receive
from numba_adam.server.model.arena import Arena, layout
from numba_adam.server.model.digests import initial_values
from numba_adam.server.model.push_ledger import PushLedger
from numba_adam.server.model.requests import Creation
from numba_adam.server.model.spec import Spec
from numba_adam.server.runtime.budget import SlotPool
from numba_adam.server.runtime.launcher import Launcher
from numba_adam.server.runtime.model import Model
from numba_adam.server.runtime.ready import make_ready
from numba_adam.server.runtime.receive import Receiver
from numba_adam.server.runtime.snapshot_writer import SnapshotWriter
from numba_adam.server.storage.data_folder import DataFolder
from numba_adam.server.storage.snapshot import Arrays, Snapshot

_log = logging.getLogger(__name__)


class ModelLoader:
    """Restores and creates models.

    Args:
        pool: the memory budget.
        data_folder: the folder of their snapshots.
        snapshots: writes their first snapshots.
        launcher: runs their large updates.
    """

    def __init__(self, pool: SlotPool, data_folder: DataFolder, snapshots: SnapshotWriter, launcher: Launcher) -> None:
        self._pool = pool
        self._data_folder = data_folder
        self._snapshots = snapshots
        self._launcher = launcher

    def restore(self, name: str) -> Model:
        """Return a model, restored from its newest intact snapshot.

        Raises:
            ConfigurationError: the folder belongs to another model, or the budget is too small.
            CorruptSnapshotError, SnapshotError: see DataFolder.restore.
        """
        arenas: list[Arena] = []
        ledgers: list[PushLedger] = []

        def arrays_for(snapshot: Snapshot) -> Arrays:
            if snapshot.model["name"] != name:  # two models would write to one folder
                raise ConfigurationError(
                    f"data_dir={str(self._data_folder.path)!r}: the folder {name!r} in it holds snapshots of model "
                    f"{snapshot.model['name']!r}; move it elsewhere (a copy needs a data folder of its own)"
                )
            self._pool.release_model(name)  # admitted for a newer snapshot that proved damaged
            arenas.clear()
            ledgers[:] = [PushLedger.from_record(snapshot.ledger)]
            try:
                arenas.append(self._new_arena(Spec.from_record(snapshot.model)))
            except BudgetExceededError as error:
                raise ConfigurationError(
                    f"memory_budget_bytes={self._pool.budget_bytes}: the models in {str(self._data_folder.path)!r} "
                    f"need more ({error})"
                ) from error
            return arenas[0].state_arrays()

        start = time.monotonic()
        snapshot, why_rewound = self._data_folder.restore(name, arrays_for)
        ledger = ledgers[0]
        if why_rewound:
            ledger.rewind(_new_state_id())
            _log.warning(
                "model %s: rewound to version %d: %s; later versions are lost, and its state is now %s",
                name,
                ledger.version,
                why_rewound,
                ledger.state_id,
            )
        _log.info("model %s: restored version %d in %.3f s", name, ledger.version, time.monotonic() - start)
        spec = Spec.from_record(snapshot.model)
        model = Model(spec, snapshot.model["request_id"], arenas[0], ledger, snapshot.ledger, self._launcher)
        model.initial = snapshot.model.get("initial", "")
        self._pool.keep(name, model.kept_bytes, "its sessions", must=True)
        return model

    def create(self, creation: Creation, parts: Parts) -> Model:
        """Receive a new model's initial values and write its first snapshot; return the model.

        Raises:
            InvalidRequestError: the transfer is malformed.
            BudgetExceededError: there is no memory for it.
            SnapshotError: the snapshot could not be written.
        """
        spec = creation.spec
        if creation.total_bytes != spec.nbytes:
            raise InvalidRequestError(
                f"total_bytes={creation.total_bytes}: these arrays have {spec.nbytes} bytes of {spec.dtype}"
            )
        arena = self._new_arena(spec)
        try:
            make_ready(spec.dtype)
            target = arena.param.view(np.uint8)
            receiver = Receiver(target, arena.dtype, spec.tensors, creation.checksum_kind, "initial value")
            receive(parts, receiver)
            ledger = PushLedger(_new_state_id(), len(spec.tensors))
            model = Model(spec, creation.request_id, arena, ledger, launcher=self._launcher)
            model.initial = initial_values(creation.checksum_kind, receiver.checksum)
            self._keep(model)
        except BaseException:
            self._pool.release_model(spec.name)
            raise
        _log.info("model %s: created with %d parameters of %s", spec.name, spec.element_count, spec.dtype)
        return model

    def _keep(self, model: Model) -> None:
        """Write a new model's first snapshot; on failure remove its folder."""
        try:
            self._snapshots.begin(model)
        except BaseException:
            with contextlib.suppress(OSError):
                self._snapshots.delete(model)
            raise

    def _new_arena(self, spec: Spec) -> Arena:
        """Return memory for a model, counted in the budget."""
        sizes = [tensor.size for tensor in spec.tensors]
        amsgrad = spec.hyperparameters.amsgrad
        needed = layout(spec.element_count, spec.numpy_dtype.itemsize, amsgrad=amsgrad).total_bytes
        self._pool.admit_model(spec.name, needed, spec.nbytes)
        try:
            self._pool.keep(spec.name, spec.description_bytes, f"model {spec.name!r}: the description of its arrays")
            return Arena(sizes, spec.numpy_dtype, amsgrad=amsgrad)
        except BudgetExceededError:
            self._pool.release_model(spec.name)
            raise
        except MemoryError as error:
            self._pool.release_model(spec.name)
            raise TransferTooLargeError(f"model {spec.name!r}: {error}") from error


def _new_state_id() -> str:
    return secrets.token_hex(16)
