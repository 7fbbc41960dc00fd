"""Restores models from snapshots when the server starts, and creates models from transfers.

Their memory counts in the budget. If a model cannot be made, its memory and files are released. Imports the snapshot
writer, the data folder, the models and the receiver.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from numba_adam.errors import (
    BudgetExceededError,
    ConfigurationError,
    CorruptSnapshotError,
    InvalidRequestError,
    TransferTooLargeError,
)
from numba_adam.ps.modes import Durability
from numba_adam.ps.round_settings import RoundSettings
from numba_adam.ps.transfer import Parts, receive
from numba_adam.server.model.arena import Arena, FlatArray, layout_of
from numba_adam.server.model.columns import columns_of
from numba_adam.server.model.digests import initial_values
from numba_adam.server.model.events import encode
from numba_adam.server.model.push_ledger import PushLedger
from numba_adam.server.model.requests import Creation
from numba_adam.server.model.spec import Spec
from numba_adam.server.runtime.budget import SlotPool
from numba_adam.server.runtime.disk_keeper import DiskKeeper
from numba_adam.server.runtime.disk_recovery import Recovery
from numba_adam.server.runtime.gradient_slots import slots_bytes
from numba_adam.server.runtime.keeper import Keeper, Left, gradient_in, left_in
from numba_adam.server.runtime.keeping import PENDING
from numba_adam.server.runtime.launcher import Launcher
from numba_adam.server.runtime.model import Model
from numba_adam.server.runtime.ready import make_ready, make_ready_to_clip
from numba_adam.server.runtime.receive import Receiver
from numba_adam.server.runtime.rounds import Rounds
from numba_adam.server.runtime.snapshot_writer import SnapshotWriter
from numba_adam.server.storage.data_folder import DataFolder
from numba_adam.server.storage.memory_folder import MemoryFolder, ModelMemory
from numba_adam.server.storage.snapshot import Arrays, Snapshot

_log = logging.getLogger(__name__)


class ModelLoader:
    """Restores and creates models.

    Args:
        pool: the memory budget.
        data_folder: the folder of their snapshots.
        snapshots: writes their first snapshots.
        launcher: runs their large updates.
        memory: the folder of what outlives the process.
    """

    def __init__(
        self,
        pool: SlotPool,
        data_folder: DataFolder,
        snapshots: SnapshotWriter,
        launcher: Launcher,
        memory: MemoryFolder,
    ) -> None:
        self._pool = pool
        self._memory = memory
        self._data_folder = data_folder
        self._snapshots = snapshots
        self._launcher = launcher
        self._is_restoring = False  # whether what a model needs was counted before a restart
        self.prepare_rounds: Callable[[Model, Rounds], None] = lambda *_: None
        """Is called with a model and its new rounds, before they begin."""

        self.prepare_leases: Callable[[Model], None] = lambda _: None
        """Is called with each new model."""

    def restore(self, name: str) -> Model:
        """Return a model: as a killed process left it, if it is of that level, else from its newest intact snapshot.

        Raises:
            ConfigurationError: the folder belongs to another model, or the budget is too small.
            CorruptSnapshotError, SnapshotError: see DataFolder.restore, and Keeper.
        """
        self._is_restoring = True
        try:
            return self._recovered(name) or self._from_snapshot(name)
        except BudgetExceededError as error:
            if isinstance(error.__cause__, OSError):  # the file system has no room
                raise ConfigurationError(f"memory_dir: model {name!r}: {error}") from error
            raise ConfigurationError(
                f"memory_budget_bytes={self._pool.budget_bytes}: the models in {str(self._data_folder.path)!r} "
                f"need more ({error})"
            ) from error
        finally:
            self._is_restoring = False

    def _recovered(self, name: str) -> Model | None:
        """Return the model as a killed process left it; None if none did, or if the machine or others went on since."""
        memory = self._memory.model(name)
        if not memory.exists():
            return None
        self._memory.check()
        left = left_in(memory)
        if self._data_folder.last_run_id not in left.runs or left.boot_id != self._memory.boot_id:
            _log.warning("model %s: %s is not of the data folder's last run; removed", name, memory.folder)
            memory.remove()
            return None
        restoration = self._data_folder.restoration(name)
        if restoration is not None and restoration.run_id in left.runs:
            raise ConfigurationError(
                f"model {name!r}: numba-adam restore went back to snapshot {restoration.number}, and "
                f"{str(memory.folder)!r} has a newer state, which a killed server left. To lose it, remove that "
                f"folder; to continue it, remove the file 'restored' of the model in {str(self._data_folder.path)!r}"
            )
        start = time.monotonic()
        try:
            model = self._continued(memory, left)
        except (ValueError, OSError) as error:
            raise CorruptSnapshotError(
                f"model {name!r}: {str(memory.folder)!r} does not hold what its journal says ({error}); to go back to "
                "the last snapshot, remove that folder"
            ) from error
        _log.info(
            "model %s: continued at version %d, as the last process left it, in %.3f s",
            name,
            model.version,
            time.monotonic() - start,
        )
        return model

    def _continued(self, memory: ModelMemory, left: Left) -> Model:
        spec = Spec.from_record(left.model)
        if spec.name != memory.folder.name:
            raise ValueError(f"its journal is of model {spec.name!r}")
        arena = self._new_arena(spec, memory, is_new=False)
        ledger, saved = PushLedger.from_record(left.ledger), self._data_folder.newest(spec.name)
        saved_ledger = None if saved is None else saved.ledger
        model = Model(spec, left.model["request_id"], arena, ledger, saved_ledger, self._launcher)
        self._add_rounds(model)
        model.initial = left.model.get("initial", "")

        def gradient_of(number: int) -> FlatArray:
            if number == PENDING:
                return arena.pending
            return gradient_in(memory, number, spec.nbytes).view(arena.dtype)

        model.recover(left.events(), gradient_of)
        model.tried_version = model.snapshot_version
        self._pool.keep(spec.name, model.kept_bytes, "its sessions", must=True)
        model.keeper = self._keeper(model, memory, (self._data_folder.last_run_id, self._data_folder.next_run_id))
        return model

    def _add_rounds(self, model: Model) -> None:
        """Give a model its rounds, if it has some, and let it have others when its mode changes."""
        spec = model.spec
        memory = self._memory.model(spec.name) if spec.durability is Durability.PROCESS else None
        counted = [0 if spec.rounds is None else slots_bytes(spec.rounds.workers, spec.nbytes)]

        def new_rounds(settings: RoundSettings) -> Rounds:
            needed = slots_bytes(settings.workers, spec.nbytes)
            if needed > counted[0]:
                self._pool.grow_model(spec.name, needed - counted[0], must=self._is_restoring)
                counted[0] = needed
            rounds = Rounds(model, settings, self._launcher.threads, memory)
            self.prepare_rounds(model, rounds)
            return rounds

        model.new_rounds = new_rounds
        model.follow_mode()
        self.prepare_leases(model)

    def _keeper(self, model: Model, memory: ModelMemory, runs: tuple[str, ...]) -> Keeper:
        """Return a keeper whose journal begins now."""

        def records() -> dict[str, Any]:
            snapshot = model.records()
            return {
                "boot_id": self._memory.boot_id,
                "runs": runs,
                "model": snapshot.model,
                "ledger": snapshot.ledger,
                **({"held": [encode(event).hex() for event, _ in held]} if (held := model.held()) else {}),
            }

        try:
            return Keeper(memory, records, model.spec.nbytes, self._pool)
        except OSError as error:
            raise memory.no_room("journal", 0, error) from error

    def _from_snapshot(self, name: str) -> Model:
        """Return a model, restored from its newest intact snapshot."""
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
            arenas.append(self._new_arena(Spec.from_record(snapshot.model)))
            return arenas[0].state_arrays()

        start = time.monotonic()
        snapshot, why_rewound = self._data_folder.restore(name, arrays_for)
        ledger, spec = ledgers[0], Spec.from_record(snapshot.model)
        model = Model(spec, snapshot.model["request_id"], arenas[0], ledger, snapshot.ledger, self._launcher)
        self._add_rounds(model)
        model.initial = snapshot.model.get("initial", "")
        if spec.durability is Durability.DISK and self._data_folder.restoration(name) is None:
            segments = self._data_folder.segments(name)
            why_rewound = Recovery(model, segments, self._data_folder.last_run_id).run()
        if why_rewound:
            ledger.rewind(_new_state_id())
            _log.warning(
                "model %s: rewound to version %d: %s; later versions are lost, and its state is now %s",
                name,
                ledger.version,
                why_rewound,
                ledger.state_id,
            )
        _log.info(
            "model %s: restored version %d in %.3f s",
            name,
            ledger.version,
            time.monotonic() - start,
            extra={"version": ledger.version},
        )
        self._pool.keep(name, model.kept_bytes, "its sessions", must=True)
        if spec.durability is Durability.PROCESS:
            model.keeper = self._keeper(model, self._memory.model(name), (self._data_folder.next_run_id,))
        elif spec.durability is Durability.DISK and not why_rewound:
            model.keeper = self._disk_keeper(model, (self._data_folder.last_run_id, self._data_folder.next_run_id))
        return model

    def _disk_keeper(self, model: Model, runs: tuple[str, ...]) -> DiskKeeper:
        """Return a keeper whose segment begins now."""
        segments, ledger = self._data_folder.segments(model.spec.name), model.ledger.to_record
        return DiskKeeper(segments, ledger, model.version, runs, model.spec.nbytes, self._pool, model.held)

    def begin(self, model: Model) -> None:
        """Begin the journal of a restored model that has none: it was rewound. Call it after the run has begun.

        A model whose snapshot has a tag of an earlier key, or none, gets another snapshot.

        Raises:
            SnapshotError: a snapshot cannot be written.
        """
        is_rewound = model.spec.durability is Durability.DISK and model.keeper is None
        is_stale = self._data_folder.is_stale(model.spec.name)
        if is_rewound or is_stale:
            self._snapshots.begin(model)
        if is_rewound:
            model.keeper = self._disk_keeper(model, (self._data_folder.next_run_id,))
            if is_stale:  # the next start could not read the earlier journals
                segments = self._data_folder.segments(model.spec.name)
                segments.remove_before(segments.paths()[-1])

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
            make_ready(spec.dtype, is_staged=arena.is_staged, options=spec.options)
            if spec.first_settings.max_grad_norm is not None:
                make_ready_to_clip(spec.dtype)
            target = arena.param.view(np.uint8)
            receiver = Receiver(target, arena.dtype, spec.tensors, creation.checksum_kind, "initial value")
            receive(parts, receiver)
            if arena.ema is not None:
                arena.ema[:] = arena.param
            ledger = PushLedger(_new_state_id(), len(spec.tensors))
            model = Model(spec, creation.request_id, arena, ledger, launcher=self._launcher)
            self._add_rounds(model)
            model.initial = initial_values(creation.checksum_kind, receiver.checksum)
            self._keep(model)
        except BaseException:
            self._memory.model(spec.name).remove()
            self._pool.release_model(spec.name)
            raise
        _log.info(
            "model %s: created with %d parameters of %s",
            spec.name,
            spec.element_count,
            spec.dtype,
            extra={"version": 0, "request": creation.request_id},
        )
        return model

    def _keep(self, model: Model) -> None:
        """Write a new model's first snapshot; on failure remove its folder."""
        try:
            self._snapshots.begin(model)
            if model.spec.durability is Durability.PROCESS:
                memory = self._memory.model(model.spec.name)
                model.keeper = self._keeper(model, memory, (self._data_folder.next_run_id,))
            elif model.spec.durability is Durability.DISK:
                model.keeper = self._disk_keeper(model, (self._data_folder.next_run_id,))
        except BaseException:
            with contextlib.suppress(OSError):
                self._snapshots.delete(model)
            raise

    def _new_arena(self, spec: Spec, memory: ModelMemory | None = None, *, is_new: bool = True) -> Arena:
        """Return memory for a model, counted in the budget.

        Args:
            spec: the model.
            memory: its files; None: where they are by the spec's durability.
            is_new: False: the arrays are as an earlier process left them.
        """
        sizes = [tensor.size for tensor in spec.tensors]
        amsgrad, is_staged = spec.hyperparameters.amsgrad, spec.durability is Durability.PROCESS
        columns = columns_of(sizes, spec.numpy_dtype, amsgrad, spec.options)
        needed = layout_of(columns, spec.options, is_staged=is_staged).total_bytes
        for_rounds = 0 if spec.rounds is None else slots_bytes(spec.rounds.workers, spec.nbytes)
        self._pool.admit_model(spec.name, needed + for_rounds, spec.nbytes)
        try:
            self._pool.keep(spec.name, spec.description_bytes, f"model {spec.name!r}: the description of its arrays")
            if not is_staged:
                return Arena(sizes, spec.numpy_dtype, amsgrad=amsgrad, options=spec.options)
            self._memory.check()
            files = memory or self._memory.model(spec.name)
            if is_new:
                files.remove()
            file = files.create("arena", needed) if is_new else files.open("arena", needed)
            try:
                return Arena(sizes, spec.numpy_dtype, amsgrad=amsgrad, file=file, options=spec.options)
            finally:
                os.close(file)
        except (BudgetExceededError, TransferTooLargeError):
            self._pool.release_model(spec.name)
            raise
        except MemoryError as error:
            self._pool.release_model(spec.name)
            raise TransferTooLargeError(f"model {spec.name!r}: {error}") from error


def _new_state_id() -> str:
    return secrets.token_hex(16)
