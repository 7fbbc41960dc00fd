"""Reads the metrics from the running server, once for each scrape. Imports the runtime and prometheus_client.

A deleted model has no series, because each scrape begins with the models that exist.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector

import numba_adam
from numba_adam.server.metrics import catalogue
from numba_adam.server.metrics.catalogue import Kind, Metric
from numba_adam.server.runtime.model import Model
from numba_adam.server.runtime.runtime import Runtime
from numba_adam.server.runtime.tally import Histogram, Refusals

_Rows = Iterable[tuple[tuple[str, ...], float]]


class ServerCollector(Collector):
    """Reads a server's metrics.

    Args:
        runtime: the models and the budget.
        refusals: the refused calls.
        calls: returns the number of calls in flight.
    """

    def __init__(self, runtime: Runtime, refusals: Refusals, calls: Callable[[], int]) -> None:
        self._runtime = runtime
        self._refusals = refusals
        self._calls = calls

    def collect(self) -> Iterator[Family]:
        """Yield every metric with its values."""
        models = self._runtime.registry.all()
        pool = self._runtime.pool
        yield _values(catalogue.INFO, [((numba_adam.__version__,), 1)])
        yield _values(catalogue.BUDGET, [((), pool.budget_bytes)])
        yield _values(catalogue.BUDGET_USED, [((), pool.used_bytes)])
        yield _values(catalogue.CALLS, [((), self._calls())])
        yield _values(catalogue.MODELS, [((), len(models))])
        yield _values(catalogue.REFUSALS, self._refusals.read().items())
        shown = models[: catalogue.MOST_MODELS]
        for metric, read in _OF_A_MODEL.items():
            yield _values(metric, [((model.spec.name,), read(model)) for model in shown])
        yield _values(catalogue.PUSHES, [pair for model in shown for pair in _pushes(model)])
        yield _values(catalogue.MODE_PUSHES, [pair for model in shown for pair in _mode_pushes(model)])
        for metric, histogram in _HISTOGRAMS.items():
            yield _histograms(metric, [(model.spec.name, histogram(model)) for model in shown])


_OF_A_MODEL: dict[Metric, Callable[[Model], float]] = {
    catalogue.VERSION: lambda model: model.version,
    catalogue.SAVED_VERSION: lambda model: model.snapshot_version,
    catalogue.SESSIONS: lambda model: len(model.ledger.sessions),
    catalogue.RECEIVED: lambda model: model.tally.received_bytes,
    catalogue.SENT: lambda model: model.tally.sent_bytes,
    catalogue.CHANGES: lambda model: model.tally.changes,
    catalogue.SNAPSHOT_FAILURES: lambda model: model.tally.failed_snapshots,
    catalogue.SNAPSHOT_BYTES: lambda model: model.tally.snapshot_bytes,
    catalogue.SNAPSHOT_TIME: lambda model: model.tally.snapshot_time,
}
_HISTOGRAMS: dict[Metric, Callable[[Model], Histogram]] = {
    catalogue.PUSH_SECONDS: lambda model: model.tally.push_seconds,
    catalogue.STALENESS: lambda model: model.tally.staleness,
    catalogue.ROUND_SECONDS: lambda model: model.tally.round_seconds,
    catalogue.PULL_SECONDS: lambda model: model.tally.pull_seconds,
    catalogue.SNAPSHOT_SECONDS: lambda model: model.tally.snapshot_seconds,
}


def _pushes(model: Model) -> Iterator[tuple[tuple[str, ...], float]]:
    counters = model.counters
    outcomes = {
        "applied": counters.applied,
        "repeated": counters.repeated,
        "rejected": counters.rejected,
        "failed": model.tally.failed_pushes,
    }
    return (((model.spec.name, outcome), count) for outcome, count in outcomes.items())


def _mode_pushes(model: Model) -> Iterator[tuple[tuple[str, ...], float]]:
    tally = model.tally
    outcomes = {
        "held": tally.held_pushes,
        "ahead": tally.ahead_pushes,
        "late": tally.late_pushes,
        "aborted": tally.aborted_pushes,
    }
    return (((model.spec.name, outcome), count) for outcome, count in outcomes.items())


def _values(metric: Metric, rows: _Rows) -> Family:
    """Return a counter or a gauge; each row has the values of its labels, and the number."""
    make = CounterMetricFamily if metric.kind is Kind.COUNTER else GaugeMetricFamily
    family = make(metric.name, metric.help, labels=metric.labels)
    for labels, value in rows:
        family.add_metric(labels, value)
    return family


def _histograms(metric: Metric, rows: Iterable[tuple[str, Histogram]]) -> Family:
    """Return a histogram with the models' counts."""
    family = HistogramMetricFamily(metric.name, metric.help, labels=metric.labels)
    for model, histogram in rows:
        counted = histogram.read()
        bounds = [*(str(float(bound)) for bound in histogram.bounds), "+Inf"]
        family.add_metric((model,), list(zip(bounds, accumulate(counted.counts), strict=True)), counted.total)
    return family
