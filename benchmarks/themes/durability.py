"""What it costs that a push survives the death of the server's process, and how soon a killed server serves again.

`process` and `memory` take turns: two models of one server, and the update of the library alone.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.case import Bar, Case, Measurement, Quantity, Settings, Unit
from benchmarks.contestants.contestant import DisagreementError, load
from benchmarks.measure import interleave
from benchmarks.themes.service import parameter_server
from benchmarks.workload import one_array

_PEER = "the level memory"
_RECOVERED_ELEMENTS = 100_000_000
_KILLS = 5
_ANNOUNCES = "numba-adam: serving on "
_TIMEOUT_SECONDS = 600.0


def _push(settings: Settings, most: int) -> Measurement:
    """Compare pushes of one array to two models of the same server."""
    client_of = load("numba_adam.client").ParameterClient
    workload = one_array(settings.elements(most))
    (param,), (grad,) = workload.params(), workload.grads()
    with parameter_server() as address, client_of(address, timeout_seconds=_TIMEOUT_SECONDS) as client:
        models = [client.create_model(level, {"w": param}, durability=level) for level in ("process", "memory")]
        ours, theirs = ((lambda model=model: model.push({"w": grad})) for model in models)
        pairs = interleave(ours, theirs, settings)
        if models[0].version != models[1].version or not np.array_equal(*(model.pull()["w"] for model in models)):
            raise DisagreementError("the two models have other versions or parameters")
        for level in ("process", "memory"):
            client.delete_model(level)  # otherwise the server would write snapshots at its stop
    return Measurement(pairs, {"bytes pushed": f"{grad.nbytes:,}"})


def _push_to_disk(settings: Settings, most: int) -> Measurement:
    """Compare a push that survives a power failure with a write and an fdatasync of the same bytes."""
    client_of = load("numba_adam.client").ParameterClient
    workload = one_array(settings.elements(most))
    (param,), (grad,) = workload.params(), workload.grads()
    with (
        parameter_server() as address,
        client_of(address, timeout_seconds=_TIMEOUT_SECONDS) as client,
        tempfile.TemporaryFile(buffering=0) as file,
    ):
        model = client.create_model("disk", {"w": param}, durability="disk")

        def write() -> None:
            raw = grad.view(np.uint8).data
            while raw:
                raw = raw[file.write(raw) :]
            os.fdatasync(file.fileno())

        pairs = interleave(lambda: model.push({"w": grad}), write, settings)
        client.delete_model("disk")
    return Measurement(pairs, {"bytes pushed": f"{grad.nbytes:,}"})


def _apply(settings: Settings, most: int) -> Measurement:
    """Compare the update that can be finished by another process with the plain one."""
    staged, sizes = load("numba_adam.cpu.staged"), load("numba_adam.numerics.staging")
    table, hyperparameters = load("numba_adam.cpu.table"), load("numba_adam.settings.hyperparameters").Hyperparameters()
    workload = one_array(settings.elements(most))
    (grad,) = workload.grads()
    columns = [[*workload.params(), *(np.zeros_like(grad) for _ in range(2))] for _ in range(2)]
    words = np.zeros(sizes.words_of(grad.size), np.uint64)
    staging = np.zeros(sizes.staging_of(grad.size, 3), grad.dtype)
    ours = staged.StagedUpdate(columns[0], [grad.size], hyperparameters, words, staging)
    theirs = table.UpdateTable(*([column] for column in columns[1]), hyperparameters=[hyperparameters])
    done = [0, 0]

    def step_ours() -> None:
        done[0] += 1
        for _ in ours.steps([grad], [done[0] - 1], done[0]):
            pass

    def step_theirs() -> None:
        theirs.update([grad], np.array([done[1]]))
        done[1] += 1

    pairs = interleave(step_ours, step_theirs, settings)
    if done[0] != done[1] or any(not np.array_equal(*pair) for pair in zip(*columns, strict=True)):
        raise DisagreementError("the two updates have other values")
    return Measurement(pairs, {"elements": f"{grad.size:,}"})


def _recovery(settings: Settings) -> Measurement:
    """Kill a server during its pushes and start another: the seconds until it serves, kernels in the cache."""
    client_of = load("numba_adam.client").ParameterClient
    workload = one_array(settings.elements(_RECOVERED_ELEMENTS))
    (param,), (grad,) = workload.params(), workload.grads()
    seconds: list[float] = []
    in_memory = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory(dir=in_memory) as memory:
        process, address = _started(Path(folder), memory, "127.0.0.1:0")
        try:
            with client_of(address, timeout_seconds=_TIMEOUT_SECONDS) as client:
                model = client.create_model("large", {"w": param}, durability="process")
                for number in range(_KILLS):
                    model.push({"w": grad})
                    process.send_signal(signal.SIGKILL)
                    process.wait()
                    begin = time.perf_counter()
                    process, _ = _started(Path(folder), memory, address)
                    seconds.append(time.perf_counter() - begin)
                    if client.list_models()[0].version != number + 1:
                        raise DisagreementError("a push is missing after a kill")
                client.delete_model("large")
        finally:
            process.kill()
            process.wait()
    return Measurement([(each, None) for each in seconds], {"elements": f"{grad.size:,}", "kills": str(_KILLS)})


def _started(folder: Path, memory: str, listen: str) -> tuple[subprocess.Popen[str], str]:
    """Start a server; return it and its address, once it serves."""
    command = [sys.executable, "-m", "numba_adam", "serve", "--no-supervise", "--listen", listen, "--data-dir", "data"]
    command += ["--snapshot-interval-seconds", "0", "--snapshot-every-pushes", "0", "--memory-dir", memory]
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True, env=dict(os.environ))
    assert process.stdout is not None
    select.select([process.stdout], [], [], _TIMEOUT_SECONDS)
    line = process.stdout.readline()
    if not line.startswith(_ANNOUNCES):
        process.kill()
        raise RuntimeError(f"the server did not start: {line!r}")
    return process, line.removeprefix(_ANNOUNCES).strip()


CASES: tuple[Case, ...] = (
    Case(
        name="durability/push-4mb",
        title="4 MB of gradients pushed and applied, to survive a kill",
        peer=_PEER,
        bar=Bar(1.25),
        run=lambda settings: _push(settings, 1_000_000),
    ),
    Case(
        name="durability/push-100mb",
        title="100 MB of gradients pushed and applied, to survive a kill",
        peer=_PEER,
        bar=Bar(1.25),
        run=lambda settings: _push(settings, 25_000_000),
    ),
    Case(
        name="durability/disk-4mb",
        title="4 MB of gradients pushed and applied, to survive a power failure",
        peer="a write and fdatasync",
        bar=Bar(1.3),
        run=lambda settings: _push_to_disk(settings, 1_000_000),
    ),
    Case(
        name="durability/disk-100mb",
        title="100 MB of gradients pushed and applied, to survive a power failure",
        peer="a write and fdatasync",
        bar=Bar(1.3),
        run=lambda settings: _push_to_disk(settings, 25_000_000),
    ),
    Case(
        name="durability/apply-1m",
        title="update of 1 million that another process can finish",
        peer="the plain update",
        bar=Bar(1.25),
        run=lambda settings: _apply(settings, 1_000_000),
    ),
    Case(
        name="durability/apply-25m",
        title="update of 25 million that another process can finish",
        peer="the plain update",
        bar=Bar(1.25),
        run=lambda settings: _apply(settings, 25_000_000),
    ),
    Case(
        name="durability/recovery",
        title="from the kill of a server with 100 million parameters until the next one serves",
        quantity=Quantity.VALUE,
        unit=Unit.SECONDS,
        bar=Bar(2.0),
        run=_recovery,
    ),
)
