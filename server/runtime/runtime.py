"""A server without its network: assembles the parts of this folder; starts, saves and stops them.

Calls come from many threads. Imports everything above it.
"""

from __future__ import annotations

import logging
import time
from functools import partial
from typing import NamedTuple

from numba_adam.server.config import ServerConfig
from numba_adam.server.runtime.answers import Answers
from numba_adam.server.runtime.budget import SlotPool
from numba_adam.server.runtime.launcher import Launcher
from numba_adam.server.runtime.lifecycle import Lifecycle
from numba_adam.server.runtime.model import Model
from numba_adam.server.runtime.model_loader import ModelLoader
from numba_adam.server.runtime.pulls import Pulls
from numba_adam.server.runtime.pushes import Pushes
from numba_adam.server.runtime.ready import compiling, make_ready, make_ready_to_clip
from numba_adam.server.runtime.registry import Registry
from numba_adam.server.runtime.round_clock import RoundClock
from numba_adam.server.runtime.rounds import Rounds
from numba_adam.server.runtime.snapshot_requests import SnapshotRequests
from numba_adam.server.runtime.snapshot_writer import SnapshotWriter
from numba_adam.server.runtime.waiters import Waiters
from numba_adam.server.storage.data_folder import DataFolder
from numba_adam.server.storage.deletions import Deletions
from numba_adam.server.storage.keys import Keys, read_keys
from numba_adam.server.storage.memory_folder import MemoryFolder

_log = logging.getLogger(__name__)


class Status(NamedTuple):
    """A server's status, without its models."""

    uptime_seconds: float
    """Time since it started."""

    memory_used_bytes: int
    """Bytes that models and transfers use."""

    memory_budget_bytes: int
    """Bytes that they may use."""

    threading_layer: str
    """Numba's threading layer; empty before the first push."""

    threads: int
    """Threads that apply a large update."""

    compiling: str
    """The dtype whose kernels are being compiled now; empty if none are."""


class Runtime:
    """The parts of a server.

    Args:
        config: the settings.
        keys: of the data folder; None: those that the settings name.

    Raises:
        ConfigurationError: the data folder or the key file cannot be used.
        CorruptSnapshotError: a model has snapshots, and none of them is intact.
        SnapshotError: the keys refuse a file.
    """

    def __init__(self, config: ServerConfig, keys: Keys | None = None) -> None:
        if keys is None:
            keys = read_keys(config.snapshot_key_file, config.data_dir)
        if keys.is_set and keys.admits_unkeyed:
            _log.warning(
                "snapshot_key_file: the line 'unkeyed' admits files without a tag, which anyone who can write the data "
                "folder can make; remove the line after this start"
            )
        self._config = config
        self._started = time.monotonic()
        self._is_started = False
        self._is_clean: bool | None = None  # until it has stopped
        self.registry = Registry()
        self.pool = SlotPool(config.memory_budget_bytes)
        self.launcher = Launcher(config.threads)
        self.waiters = Waiters(config.rpc_threads // 2)
        self._data_folder = DataFolder(config.data_dir, config.snapshots_kept, keys)
        self.snapshots = SnapshotWriter(
            self._data_folder,
            self.pool,
            config.snapshot_interval_seconds,
            config.snapshot_every_pushes,
            self.registry.all,
        )
        self.snapshot_requests = SnapshotRequests(self.registry, self.snapshots, self.waiters)
        self.pushes = Pushes(self.pool, self.launcher, self.snapshots)
        self.pulls = Pulls(self.pool, self.launcher, self.waiters)
        self._memory = MemoryFolder(config.memory_dir, self._data_folder.path)
        self.answers = Answers()
        """The calls that wait for the answer to a push in a round."""

        self._round_clock = RoundClock()
        loader = ModelLoader(self.pool, self._data_folder, self.snapshots, self.launcher, self._memory)
        loader.prepare_rounds = self._prepare_rounds
        loader.prepare_leases = self._prepare_leases
        try:
            self._memory.check_apart(self._data_folder.path, keys)
            deletions = Deletions(self._data_folder.path, keys)
            names = self._data_folder.model_names()
            self._memory.sweep(names)
            for name in names:
                self.registry.add(loader.restore(name))
            self._memory.report_forsaken()
        except BaseException:
            self._data_folder.close()
            raise
        self._loader = loader
        self._deletions = deletions
        self.lifecycle = Lifecycle(self.registry, loader, self.snapshots, deletions, self.pool)

    def start(self) -> None:
        """Compile what the models need, record the start of a run in the data folder, and start the background threads.

        No push waits for a compiler, but for the first in float16: new models are most likely float32 at the level
        `process`.

        Raises:
            ConfigurationError: the data folder cannot be written.
        """
        if self._config.threads > self.launcher.threads:
            _log.warning(
                "threads=%d: Numba has only %d threads here, and large updates use them all; set NUMBA_NUM_THREADS to "
                "have more, or threads=0 to use all",
                self._config.threads,
                self.launcher.threads,
            )
        try:
            make_ready("float32", is_staged=True)
            for model in self.registry.all():
                make_ready(model.spec.dtype, is_staged=model.arena.is_staged, options=model.spec.options)
                if model.settings.max_grad_norm is not None:
                    make_ready_to_clip(model.spec.dtype)
            self._data_folder.begin()
            self._deletions.renew()
            for model in self.registry.all():
                self._loader.begin(model)
        except BaseException:
            self._data_folder.close()
            raise
        self.snapshots.start()
        self._is_started = True
        for model in self.registry.all():
            if model.rounds is not None:
                model.apply_queue.call(model.rounds.resume)
            model.leases.set()

    def _prepare_rounds(self, model: Model, rounds: Rounds) -> None:
        """Let the rounds of a model know the clock, and the calls that wait."""
        rounds.on_open = partial(self._round_clock.set_round, model)
        rounds.on_end = partial(self.answers.note_end, model)

    def _prepare_leases(self, model: Model) -> None:
        """Let the leases of a model's workers know the clock, and the calls that wait."""
        model.leases.on_set = partial(self._round_clock.set_leases, model)
        model.leases.is_waiting = partial(self.answers.is_waiting, model)

    def begin_stop(self) -> None:
        """Refuse the calls that wait for a version or for a round, and leave the rounds open."""
        self.pulls.begin_stop()
        self._round_clock.stop()
        self.answers.stop()
        for model in self.registry.all():
            model.wake()

    def save(self) -> dict[str, bool]:
        """Write a snapshot of every model that changed since its last one; return for each whether it is saved now."""
        return self.snapshots.save_all(self.registry.all())

    def stop(self) -> bool:
        """Write the last snapshots and release the data folder; return whether all were written.

        A server that never started does not change the data folder. A second call returns the same as the first one.
        """
        if self._is_clean is None:
            self._is_clean = self._stop()
        return self._is_clean

    def _stop(self) -> bool:
        """Stop, for the first time."""
        self.begin_stop()
        saved = {}
        if self._is_started:
            saved = self.save()
        self.snapshots.stop()
        for model in self.registry.all():
            model.apply_queue.stop()
        self.launcher.stop()
        try:
            are_there = self._data_folder.close([name for name, is_saved in saved.items() if is_saved])
        except OSError:
            _log.exception("data folder %s: it could not be closed; is it still there?", self._config.data_dir)
            return False
        for model in self.registry.all():
            if model.keeper is not None:  # what is not in a snapshot stays: the next server continues it
                model.keeper.close(remove=are_there and model.spec.name in saved and model.is_saved)
        self._memory.close()
        return are_there and all(saved.values())

    def status(self) -> Status:
        """Return the status, without the models."""
        from numba_adam.cpu.kernels.threads import threading_layer

        return Status(
            uptime_seconds=time.monotonic() - self._started,
            memory_used_bytes=self.pool.used_bytes,
            memory_budget_bytes=self.pool.budget_bytes,
            threading_layer=threading_layer(),
            threads=self.launcher.threads,
            compiling=compiling(),
        )
