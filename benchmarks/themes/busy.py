"""A step while another program keeps one of the cores busy, compared with the same step alone.

Turns alternate: steps alone for a moment, then as many seconds of steps beside a process that only counts, on the first
of this process's CPUs. A turn's figure is the mean of its steps, because a step beside a busy program takes long or
short, by where the operating system's time slices fall.
"""

from __future__ import annotations

import contextlib
import functools
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

from benchmarks.case import Bar, Case, Measurement, MissingError, Settings
from benchmarks.contestants import memory_loop, torch_fused
from benchmarks.contestants.memory_loop import MemoryLoop
from benchmarks.contestants.ours import Ours
from benchmarks.contestants.torch_fused import TorchFused
from benchmarks.workload import Workload, one_array

_ELEMENTS = 10_000_000
_TURN_SECONDS = 0.5
_COUNT = "print(flush=True)\nwhile True: pass"

_Make = Callable[[Workload, int], Ours | TorchFused | MemoryLoop]


def _memory_loop(workload: Workload, threads: int) -> MemoryLoop:
    """Return the loop over the arrays of a contestant that has made a step."""
    ours = Ours(workload, threads)
    ours.step()
    return MemoryLoop(ours, threads)


@contextlib.contextmanager
def _busy_program(cpu: int) -> Iterator[None]:
    """Run a program on a CPU that never sleeps."""
    process = subprocess.Popen([sys.executable, "-c", _COUNT], stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        os.sched_setaffinity(process.pid, {cpu})
        process.stdout.readline()
        yield
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def _mean(step: Callable[[], object]) -> float:
    """Return the mean seconds of a step, over a turn."""
    begin, steps = time.perf_counter(), 0
    while time.perf_counter() - begin < _TURN_SECONDS:
        step()
        steps += 1
    return (time.perf_counter() - begin) / steps


def _measure(make: _Make, settings: Settings) -> Measurement:
    if not hasattr(os, "sched_setaffinity"):
        raise MissingError("this system does not confine a program to a CPU")
    workload = one_array(settings.elements(_ELEMENTS))
    step = make(workload, settings.threads).step
    cpus = os.sched_getaffinity(0)
    _mean(step)
    pairs: list[tuple[float, float | None]] = []
    begin = time.perf_counter()
    while len(pairs) < settings.fewest_pairs or time.perf_counter() - begin < settings.seconds:
        alone = _mean(step)
        with _busy_program(min(cpus)):
            pairs.append((_mean(step), alone))
    return Measurement(pairs, {"elements": f"{workload.elements:,}", "CPUs of this process": f"{len(cpus)}"})


CASES: tuple[Case, ...] = (
    Case(
        name="busy/10m/ours",
        title="one array of 10 million, another program on one of the cores",
        peer="ours alone",
        bar=Bar(2.5),
        run=functools.partial(_measure, Ours),
    ),
    Case(
        name="busy/10m/torch",
        title=f"one array of 10 million, another program on one of the cores: {torch_fused.NAME}, not ours",
        peer="itself alone",
        run=functools.partial(_measure, TorchFused),
    ),
    Case(
        name="busy/10m/loop",
        title=f"one array of 10 million, another program on one of the cores: {memory_loop.NAME}, not ours",
        peer="itself alone",
        run=functools.partial(_measure, _memory_loop),
    ),
)
