"""What happens in the demonstration, in order: start, train, kill, start again, go on, measure.

Imports the client; the server and the workers run as processes of their own (processes.py).
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
from typing import NamedTuple

from numba_adam.demo.processes import Event, ServerProcess, WorkerProcess

# Five snapshots in the whole run: at the half the newest one is a tenth of the run old, a loss that can be seen.
_SNAPSHOTS = 5


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What the demonstration is asked to do."""

    workers: int = 2
    """Number of worker processes; the second one uses PyTorch when that is installed."""

    seed: int = 0
    """Of the initial parameters and of the order in which the workers see their images."""

    steps: int = 4000
    """The version at which training ends: the number of pushes that count in the end."""

    keep: bool = False
    """Leave the folder with the server's data and the logs behind."""


class Push(NamedTuple):
    """One push that the server acknowledged."""

    time: float
    """Seconds since the first push."""

    worker: int
    version: int

    loss: float
    """Mean over the batch that the gradient was computed on."""


class Crash(NamedTuple):
    """The moment when the server was killed, and what it cost. Times in seconds since the first push."""

    killed_at: float
    back_at: float
    version: int
    """The newest version that had been acknowledged."""

    restored: int
    """The version that the newest snapshot held, and that training went on from."""


@dataclass
class Record:
    """What was observed, and what came out."""

    pushes: list[Push] = field(default_factory=list)
    crash: Crash | None = None
    correct: int = 0
    tested: int = 0
    folder: Path | None = None

    @property
    def accuracy(self) -> float:
        """Share of the test images that were read correctly."""
        return self.correct / self.tested

    @property
    def pushes_per_second(self) -> float:
        """Pushes acknowledged while a server was there to take them."""
        down = self.crash.back_at - self.crash.killed_at if self.crash else 0.0
        return len(self.pushes) / (self.pushes[-1].time - self.pushes[0].time - down)


Say = Callable[[str], None]
Watch = Callable[[Push], None]


def play(plan: Plan, say: Say, watch: Watch) -> Record:
    """Run the demonstration.

    Args:
        plan: what to do.
        say: called with each line of the story.
        watch: called with every push.

    Raises:
        ServiceError: the server or a worker failed in a way that was not part of the story.
    """
    record = Record()
    folder = Path(tempfile.mkdtemp(prefix="numba-adam-demo-"))
    with ExitStack() as cleanup:
        if plan.keep:
            record.folder = folder
        else:
            cleanup.callback(shutil.rmtree, folder, ignore_errors=True)
        server = ServerProcess(folder, snapshot_every_pushes=max(1, plan.steps // _SNAPSHOTS))
        cleanup.callback(server.kill)
        server.start()
        say(f"server    {server.address}, process {server.pid}")
        events: queue.Queue[Event] = queue.Queue()
        workers = [_start_worker(index, plan, server.address, folder, events) for index in range(plan.workers)]
        for worker in workers:
            cleanup.callback(worker.end)
        _train(plan, record, server, workers, events, say, watch)
        record.correct, record.tested = _test(server.address)
        server.stop()
    return record


def _start_worker(index: int, plan: Plan, address: str, folder: Path, events: queue.Queue[Event]) -> WorkerProcess:
    options = {"server": address, "framework": framework(index), "workers": plan.workers}
    options |= {"seed": plan.seed, "steps": plan.steps}
    return WorkerProcess(index, [f"--{name}={value}" for name, value in options.items()], folder, events)


def framework(worker: int) -> str:
    """Return what a worker computes its gradients with."""
    return "PyTorch" if worker == 1 and importlib.util.find_spec("torch") else "NumPy"


def _train(
    plan: Plan,
    record: Record,
    server: ServerProcess,
    workers: list[WorkerProcess],
    events: queue.Queue[Event],
    say: Say,
    watch: Watch,
) -> None:
    """Follow what the workers report until all have ended; half-way, kill the server and start it again."""
    running = len(workers)
    start = 0.0
    while running:
        event = events.get()
        if event.kind == "exit":
            running -= 1
            if event.values["status"] != 0:
                raise workers[event.worker].error(event.values["status"])
        elif event.kind == "ready":
            say(f"worker {event.worker}  {framework(event.worker)}, {event.values['images']} images")
        elif event.kind == "rewind":
            say(f"worker {event.worker}  was told of version {event.values['version']}, pulled it and went on")
        else:
            start = start or event.values["time"]
            values = event.values
            push = Push(values["time"] - start, event.worker, values["version"], values["loss"])
            record.pushes.append(push)
            watch(push)
            if record.crash is None and _worth_a_crash(plan, push, values["snapshot_version"]):
                record.crash = _crash(server, push, values["snapshot_version"], start, say)


def _worth_a_crash(plan: Plan, push: Push, snapshot_version: int) -> bool:
    """Say whether half of the way is done and something not yet saved would be lost."""
    return push.version >= plan.steps // 2 and push.version - snapshot_version >= plan.steps // (4 * _SNAPSHOTS)


def _crash(server: ServerProcess, push: Push, snapshot_version: int, start: float, say: Say) -> Crash:
    """Kill the server and start it again on the same port and the same data."""
    pid = server.pid
    killed_at = time.time() - start
    server.kill()
    say(f"kill -9   of the server, process {pid}, at version {push.version}; its last snapshot: {snapshot_version}")
    server.start()
    back_at = time.time() - start
    say(f"server    is back as process {server.pid} after {back_at - killed_at:.1f} s")
    return Crash(killed_at, back_at, push.version, snapshot_version)


def _test(address: str) -> tuple[int, int]:
    """Pull the trained parameters and return how many test images they read correctly, of how many."""
    from numba_adam.client import ParameterClient
    from numba_adam.demo import digits, network
    from numba_adam.demo.worker import MODEL

    _, images = digits.load()
    with ParameterClient(address, timeout_seconds=60.0) as client:
        params = client.open_model(MODEL).pull()
    return network.correct(params, images), len(images.labels)
