"""Pushes of 1,000 parameters from 64 sessions in four client processes, on the same two cores as the server."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import chain

from benchmarks.case import Bar, Case, Measurement, Quantity, Settings, Unit
from benchmarks.contestants.contestant import DisagreementError, load
from benchmarks.statistics import percentile
from benchmarks.themes.service import parameter_server
from benchmarks.workload import one_array

_ELEMENTS = 1_000
_PROCESSES, _SESSIONS = 4, 16  # sessions of a process
_TURN_SECONDS = 1.0
_MODEL = "small"


@contextlib.contextmanager
def _pushers(address: str) -> Iterator[list[subprocess.Popen[str]]]:
    """Run the client processes."""
    command = [sys.executable, "-m", "benchmarks.pusher", address, _MODEL, str(_SESSIONS)]
    pipe = subprocess.PIPE
    processes = [subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) for _ in range(_PROCESSES)]
    try:
        for process in processes:
            _read(process)
        yield processes
    finally:
        for process in processes:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.close()
            process.wait()
            process.stdout.close()


def _read(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise RuntimeError("a client process ended early")
    return line


def _turn(processes: list[subprocess.Popen[str]]) -> tuple[float, list[float]]:
    """Let all sessions push for a moment; return the pushes per second, and the seconds of each."""
    begin = time.perf_counter()
    for process in processes:
        assert process.stdin is not None
        process.stdin.write(f"{_TURN_SECONDS}\n")
        process.stdin.flush()
    taken = list(chain.from_iterable(json.loads(_read(process)) for process in processes))
    return len(taken) / (time.perf_counter() - begin), taken


def _measure(settings: Settings, *, is_latency: bool) -> Measurement:
    """Measure pushes per second, or the 99th percentile of their seconds."""
    client_of = load("numba_adam.client").ParameterClient
    (param,) = one_array(settings.elements(_ELEMENTS)).params()
    found: list[tuple[float, float | None]] = []
    pushes = 0
    with parameter_server() as address, client_of(address, timeout_seconds=600.0) as client:
        model = client.create_model(_MODEL, {"w": param}, durability="process")
        with _pushers(address) as processes:
            before = client.list_models()[0].version
            start = time.perf_counter()
            while len(found) < settings.fewest_pairs or time.perf_counter() - start < settings.seconds:
                rate, taken = _turn(processes)
                pushes += len(taken)
                found.append((percentile(taken, 0.99) if is_latency else rate, None))
            if client.list_models()[0].version != before + pushes:
                raise DisagreementError(f"{pushes} pushes were acknowledged, and the version is not that much higher")
        client.delete_model(model.name)  # otherwise the server would write a snapshot at its stop
    sessions = f"{_PROCESSES} processes with {_SESSIONS} sessions each, one push outstanding in each"
    return Measurement(found, {"clients": sessions, "pushes": f"{pushes:,}"})


_TITLE = "1,000 float32 parameters pushed by 64 sessions, level process: "

CASES: tuple[Case, ...] = (
    Case(
        name="small/rate",
        title=f"{_TITLE}pushes a second",
        quantity=Quantity.VALUE,
        unit=Unit.COUNT,
        bar=Bar(1500, at_least=True),
        run=lambda settings: _measure(settings, is_latency=False),
    ),
    Case(
        name="small/p99",
        title=f"{_TITLE}99th percentile",
        quantity=Quantity.VALUE,
        bar=Bar(0.1),
        run=lambda settings: _measure(settings, is_latency=True),
    ),
)
