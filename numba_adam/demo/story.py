"""The steps of the demonstration: start, train, kill the server, which is started again, continue, measure.

May import the standard library; the client inside the functions. Server and workers are processes (processes.py).
"""

from __future__ import annotations

import importlib.util
import queue
import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from numba_adam.demo.processes import Event, ServerProcess, WorkerProcess

# Snapshots in a run. With five, a crash half-way at the level `memory` loses a tenth of the pushes: enough to see.
_SNAPSHOTS = 5


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The settings of the demonstration."""

    workers: int = 2
    """Number of worker processes. The second one uses PyTorch if it is installed."""

    seed: int = 0
    """Seed of the initial parameters and of the random batches."""

    steps: int = 4000
    """The number of gradients after which training ends. Those that the crash loses do not count."""

    mode: str = "async"
    """What makes a step of the pushes: "async", "sync" or "ssp"."""

    is_killed: bool = True
    """Whether the server is killed half-way."""

    pause_seconds: float = 0.0
    """A pause of the last worker before each push: it is the slow one."""

    durability: str = "process"
    """The level of the model. "process": the crash loses nothing. "memory": it loses what came after the snapshot."""

    keep: bool = False
    """Keep the folder with the server's data and the logs."""

    @property
    def versions(self) -> int:
        """The version at which training ends: in rounds, each version takes a gradient of every worker."""
        return self.steps // (self.workers if self.mode == "sync" else 1)


class Push(NamedTuple):
    """One push that the server acknowledged."""

    time: float
    """Seconds since the first push."""

    worker: int
    version: int

    loss: float
    """Mean loss over the batch of this push."""

    state_id: str
    """The line of history of the version. At the level `memory`, it changes at the crash."""


class Crash(NamedTuple):
    """When the server was killed and when it was ready again, in seconds since the first push."""

    killed_at: float
    back_at: float


@dataclass
class Record:
    """The events and the results of a run."""

    pushes: list[Push] = field(default_factory=list)
    crash: Crash | None = None
    correct: int = 0
    tested: int = 0
    folder: Path | None = None

    @property
    def parts(self) -> list[list[Push]]:
        """The pushes of each line of history in order of time: one, or two if the crash lost pushes."""
        pushes = sorted(self.pushes)
        state_ids = dict.fromkeys(push.state_id for push in pushes)
        return [[push for push in pushes if push.state_id == state_id] for state_id in state_ids]

    @property
    def accuracy(self) -> float:
        """The share of test images that are classified correctly."""
        return self.correct / self.tested

    @property
    def restored(self) -> int:
        """The version from which training continued after the crash."""
        if len(self.parts) == 1:
            return max(push.version for push in self.pushes if self.crash and push.time <= self.crash.killed_at)
        return min(push.version for push in self.parts[1]) - 1

    @property
    def lost(self) -> int:
        """The number of acknowledged pushes that the crash lost."""
        if len(self.parts) == 1:
            return 0
        return max(push.version for push in self.parts[0]) - self.restored

    @property
    def pushes_per_second(self) -> float:
        """Acknowledged pushes per second, without the time in which no server ran."""
        seconds = sum(part[-1].time - part[0].time for part in self.parts)
        if self.crash and len(self.parts) == 1:
            seconds -= self.crash.back_at - self.crash.killed_at
        return len(self.pushes) / seconds


Say = Callable[[str], None]
Watch = Callable[[Push], None]


def play(plan: Plan, say: Say, watch: Watch) -> Record:
    """Run the demonstration.

    Args:
        plan: the settings.
        say: called with each message.
        watch: called with every push.

    Raises:
        ServiceError: the server or a worker failed unexpectedly.
    """
    record = Record()
    folder = Path(tempfile.mkdtemp(prefix="numba-adam-demo-"))
    with ExitStack() as cleanup:
        if plan.keep:
            record.folder = folder
        else:
            cleanup.callback(shutil.rmtree, folder, ignore_errors=True)
        server = ServerProcess(folder, snapshot_every_pushes=max(1, plan.versions // _SNAPSHOTS))
        cleanup.callback(server.kill)
        server.start()
        say(f"server    {server.address}, process {server.pid}")
        events: queue.Queue[Event] = queue.Queue()
        workers = [_start_worker(index, plan, server.address, folder, events) for index in range(plan.workers)]
        for worker in workers:
            cleanup.callback(worker.end)
        _Training(plan, record, server, say, watch).follow(workers, events)
        record.correct, record.tested = _test(server.address)
        server.stop()
    return record


def _start_worker(index: int, plan: Plan, address: str, folder: Path, events: queue.Queue[Event]) -> WorkerProcess:
    options: dict[str, object] = {"server": address, "framework": framework(index), "workers": plan.workers}
    options |= {"seed": plan.seed, "steps": plan.steps, "durability": plan.durability, "mode": plan.mode}
    if index == plan.workers - 1:
        options["pause-seconds"] = plan.pause_seconds
    return WorkerProcess(index, [f"--{name}={value}" for name, value in options.items()], folder, events)


def framework(worker: int) -> str:
    """Return the name of the framework that a worker computes its gradients with."""
    return "PyTorch" if worker == 1 and importlib.util.find_spec("torch") else "NumPy"


class _Training:
    """Handles the reports of the workers until all have ended. Kills the server half-way."""

    def __init__(self, plan: Plan, record: Record, server: ServerProcess, say: Say, watch: Watch) -> None:
        self._plan, self._record, self._server, self._say, self._watch = plan, record, server, say, watch
        self._start = 0.0  # when the first push was made, as time.time()

    def follow(self, workers: list[WorkerProcess], events: queue.Queue[Event]) -> None:
        """Handle events until every worker has ended."""
        ready, running = 0, len(workers)
        while running:
            event = events.get()
            if event.kind == "push":
                self._on_push(event.values, event.worker)
            elif event.kind == "rewind":
                self._say(f"worker {event.worker}  continued from version {event.values['version']} after a pull")
            elif event.kind == "ready":
                self._say(f"worker {event.worker}  {framework(event.worker)}, {event.values['images']} images")
                ready += 1
                if ready == len(workers):
                    for worker in workers:
                        worker.go()
            else:
                running -= 1
                if status := event.values["status"]:
                    raise workers[event.worker].error(status)

    def _on_push(self, values: dict[str, Any], worker: int) -> None:
        self._start = self._start or values["time"]
        push = Push(values["time"] - self._start, worker, values["version"], values["loss"], values["state_id"])
        pushes, crash = self._record.pushes, self._record.crash
        if crash and self._plan.durability == "memory" and push.state_id == pushes[0].state_id:
            # Acknowledged before the crash and reported after it: the worker waited for the parameters.
            push = push._replace(time=min(push.time, crash.killed_at))
        pushes.append(push)
        self._watch(push)
        unsaved = push.version - values["snapshot_version"]
        is_late_enough = push.version >= self._plan.versions // 2 and unsaved >= self._plan.versions // (4 * _SNAPSHOTS)
        if self._plan.is_killed and crash is None and is_late_enough:
            self._say(f"kill -9   of the server at version {push.version}; {unsaved} pushes are in no snapshot")
            self._record.crash = self._crash()

    def _crash(self) -> Crash:
        """Kill the serving process, and wait until the next one answers at the same port."""
        from numba_adam.client import ParameterClient

        killed_at = time.time() - self._start
        self._server.kill_serving()
        with ParameterClient(self._server.address, timeout_seconds=60.0) as client:
            client.status()  # it is called again until a server answers
        back_at = time.time() - self._start
        self._say(f"server    is back as process {self._server.pid} after {back_at - killed_at:.1f} s")
        return Crash(killed_at, back_at)


def _test(address: str) -> tuple[int, int]:
    """Pull the trained parameters. Return the number of correctly classified test images, and their total number."""
    from numba_adam.client import ParameterClient
    from numba_adam.demo import digits, network
    from numba_adam.demo.worker import MODEL

    _, images = digits.load()
    with ParameterClient(address, timeout_seconds=60.0) as client:
        params = client.open_model(MODEL).pull()
    return network.correct(params, images), len(images.labels)
