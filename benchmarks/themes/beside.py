"""A push while the server is busy, compared with the same push alone.

Small pushes while a model of 100 million elements is snapshotted or updated, and pushes of 20 MB while a snapshot of
their own model is written. Turns alternate: some pushes alone, then as many while the server does the other work. It
compares the medians or the 99th percentiles of the turns. During an update, it times only pushes that begin after the
large gradient was sent and before its answer arrived, to measure the update and not the transfer.
"""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

from benchmarks.case import Bar, Case, Measurement, Settings
from benchmarks.contestants.contestant import load
from benchmarks.statistics import percentile, summarise
from benchmarks.themes.service import parameter_server
from benchmarks.workload import Workload, one_array

_ELEMENTS = 100_000_000
_SMALL_ELEMENTS = 1_000
_PUSHES = 200  # of a turn
_OWN_ELEMENTS = 5_000_000
_OWN_PUSHES = 60
_MOST_STRETCHES = 8  # busy periods of a turn; if pushes wait for the end of one, a period has one push
_WARM_UP_PUSHES = 50
_TIMEOUT_SECONDS = 600.0
_LARGE = "large"


class _Busy(NamedTuple):
    """A task of the server in the background."""

    has_begun: threading.Event
    call: Future[Any]


class _Scene(NamedTuple):
    """The server and models of a measurement."""

    client: Any
    address: str
    threads: ThreadPoolExecutor
    large: Workload


_Start = Callable[[_Scene], Callable[[], _Busy]]
"""Returns a function that makes the server busy."""


def _snapshots(scene: _Scene) -> Callable[[], _Busy]:
    def begin() -> _Busy:
        has_begun = threading.Event()
        has_begun.set()
        return _Busy(has_begun, scene.threads.submit(scene.client.snapshot, _LARGE))

    return begin


def _updates(scene: _Scene) -> Callable[[], _Busy]:
    sent = threading.Event()

    def progress(done: int, total: int) -> None:
        if done == total:
            sent.set()

    pusher = type(scene.client)(scene.address, progress=progress, timeout_seconds=_TIMEOUT_SECONDS)
    model, (grad,) = pusher.open_model(_LARGE), scene.large.grads()

    def begin() -> _Busy:
        sent.clear()
        return _Busy(sent, scene.threads.submit(model.push, {"w": grad}))

    return begin


def _alone(push: Callable[[], object], count: int) -> list[float]:
    return [_timed(push) for _ in range(count)]


def _beside(push: Callable[[], object], begin: Callable[[], _Busy], count: int) -> list[float]:
    """Return the seconds of pushes that began while the server was busy, a few times if once is too short."""
    seconds: list[float] = []
    for _ in range(_MOST_STRETCHES):
        if len(seconds) == count:
            break
        busy = begin()
        busy.has_begun.wait()
        seconds.append(_timed(push))
        while len(seconds) < count and not busy.call.done():
            seconds.append(_timed(push))
        busy.call.result()
    return seconds


def _timed(push: Callable[[], object]) -> float:
    begin = time.perf_counter()
    push()
    return time.perf_counter() - begin


def _measure(start: _Start, share: float, settings: Settings) -> Measurement:
    """Compare small pushes beside something with small pushes alone.

    Args:
        start: starts the task in the background.
        share: the percentile to compare, as a fraction: 0.5 for the median.
        settings: settings of the run.
    """
    client_of = load("numba_adam.client").ParameterClient
    workload, small = one_array(settings.elements(_ELEMENTS)), one_array(settings.elements(_SMALL_ELEMENTS))
    with (
        parameter_server() as address,
        client_of(address, timeout_seconds=_TIMEOUT_SECONDS) as client,
        ThreadPoolExecutor(1) as threads,
    ):
        client.create_model(_LARGE, {"w": workload.params()[0]}).push({"w": workload.grads()[0]})
        model, grads = client.create_model("small", {"w": small.params()[0]}), {"w": small.grads()[0]}
        push = functools.partial(model.push, grads)
        begin = start(_Scene(client, address, threads, workload))
        turns = _turns(push, begin, _PUSHES, settings)
        for name in (_LARGE, "small"):  # else the server would write a snapshot before it ends
            client.delete_model(name)
    notes = {"elements of the large model": f"{workload.elements:,}", "durability": model.last_ack.durability}
    return _measurement(turns, share, notes)


def _measure_own(share: float, settings: Settings) -> Measurement:
    """Compare pushes while a snapshot of their model is written with pushes alone."""
    client_of = load("numba_adam.client").ParameterClient
    workload = one_array(settings.elements(_OWN_ELEMENTS))
    with (
        parameter_server() as address,
        client_of(address, timeout_seconds=_TIMEOUT_SECONDS) as client,
        ThreadPoolExecutor(1) as threads,
    ):
        model = client.create_model(_LARGE, {"w": workload.params()[0]})
        begin = _snapshots(_Scene(client, address, threads, workload))
        turns = _turns(functools.partial(model.push, {"w": workload.grads()[0]}), begin, _OWN_PUSHES, settings)
        client.delete_model(_LARGE)
    notes = {"elements": f"{workload.elements:,}", "durability": model.last_ack.durability}
    return _measurement(turns, share, notes)


_Turns = list[tuple[list[float], list[float]]]


def _turns(push: Callable[[], object], begin: Callable[[], _Busy], count: int, settings: Settings) -> _Turns:
    """Return the seconds of the pushes beside the other work and alone, turn by turn."""
    for _ in range(min(count, _WARM_UP_PUSHES)):
        push()
    turns: _Turns = []
    start_time = time.perf_counter()
    while len(turns) < settings.fewest_pairs or time.perf_counter() - start_time < settings.seconds:
        alone = _alone(push, count)
        turns.append((_beside(push, begin, count), alone))
    return turns


def _measurement(turns: _Turns, share: float, notes: dict[str, str]) -> Measurement:
    slowest = (summarise([max(turn[place]) for turn in turns]).median * 1e3 for place in range(2))
    notes |= {
        "pushes of a turn": f"{len(turns[0][1])}",
        "a turn's slowest push, median": "{:.3g} ms beside, {:.3g} ms alone".format(*slowest),
    }
    return Measurement([(percentile(beside, share), percentile(alone, share)) for beside, alone in turns], notes)


CASES: tuple[Case, ...] = tuple(
    Case(
        name=f"beside/{what}/{how}",
        title=f"1,000 elements pushed beside {title} of 100 million, {how_title}",
        peer="the same push alone",
        bar=Bar(3.0),
        run=functools.partial(_measure, start, share),
    )
    for what, title, start in (("snapshot", "a snapshot", _snapshots), ("update", "an update", _updates))
    for how, how_title, share in (("median", "median", 0.5), ("p99", "99th percentile", 0.99))
) + tuple(
    Case(
        name=f"beside/own-snapshot/{how}",
        title=f"20 MB pushed while a snapshot of their model is written, {how_title}",
        peer="the same push alone",
        bar=Bar(2.0),
        run=functools.partial(_measure_own, share),
    )
    for how, how_title, share in (("median", "median", 0.5), ("p99", "99th percentile", 0.99))
)
