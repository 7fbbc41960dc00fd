"""The metrics: names, kinds, labels and meanings; docs/metrics.md lists the same. Imports the standard library."""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

MOST_MODELS = 256
"""Models with series of their own, in the order of their names."""


class Kind(Enum):
    """The kind of a metric, in Prometheus's words."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


class Metric(NamedTuple):
    """One metric."""

    name: str
    """The name in queries; a counter's ends with _total."""

    kind: Kind
    help: str
    labels: tuple[str, ...] = ()


_MODEL = ("model",)

INFO = Metric("numba_adam_info", Kind.GAUGE, "Always 1; its label is the version of numba-adam.", ("version",))
BUDGET = Metric("numba_adam_memory_budget_bytes", Kind.GAUGE, "Memory that models and transfers may hold.")
BUDGET_USED = Metric("numba_adam_memory_used_bytes", Kind.GAUGE, "Memory that models and transfers hold.")
CALLS = Metric("numba_adam_calls_in_flight", Kind.GAUGE, "Calls that are being served.")
MODELS = Metric("numba_adam_models", Kind.GAUGE, "Models, including those without series of their own.")
REFUSALS = Metric(
    "numba_adam_refusals_total",
    Kind.COUNTER,
    "Calls that ended with an error, by reason and by the name of their token; no name: no valid token.",
    ("reason", "token"),
)
VERSION = Metric("numba_adam_model_version", Kind.GAUGE, "Pushes applied since the model was created.", _MODEL)
SAVED_VERSION = Metric("numba_adam_snapshot_version", Kind.GAUGE, "Version of the newest snapshot.", _MODEL)
SESSIONS = Metric("numba_adam_sessions", Kind.GAUGE, "Workers that have a session.", _MODEL)
PUSHES = Metric(
    "numba_adam_pushes_total",
    Kind.COUNTER,
    "Pushes by outcome: applied, repeated (an earlier try has the answer), rejected (for their content), failed.",
    ("model", "outcome"),
)
PUSH_SECONDS = Metric(
    "numba_adam_push_seconds", Kind.HISTOGRAM, "Pushes with an answer, by seconds from header to answer.", _MODEL
)
STALENESS = Metric(
    "numba_adam_push_staleness",
    Kind.HISTOGRAM,
    "Applied pushes, by the versions between the parameters they were computed from and those they changed.",
    _MODEL,
)
MODE_PUSHES = Metric(
    "numba_adam_mode_pushes_total",
    Kind.COUNTER,
    "What the mode did to pushes: held in a round, ahead (told to wait), late, aborted; the last two are rejected.",
    ("model", "outcome"),
)
ROUND_SECONDS = Metric(
    "numba_adam_round_seconds", Kind.HISTOGRAM, "Rounds that closed, by seconds from their first gradient.", _MODEL
)
PULL_SECONDS = Metric("numba_adam_pull_seconds", Kind.HISTOGRAM, "Pulls that were sent, by seconds of sending.", _MODEL)
RECEIVED = Metric("numba_adam_received_bytes_total", Kind.COUNTER, "Gradients of pushes with an answer.", _MODEL)
SENT = Metric("numba_adam_sent_bytes_total", Kind.COUNTER, "Parameters that were sent.", _MODEL)
CHANGES = Metric("numba_adam_setting_changes_total", Kind.COUNTER, "Changes of the settings while it trains.", _MODEL)
SNAPSHOT_SECONDS = Metric(
    "numba_adam_snapshot_seconds", Kind.HISTOGRAM, "Snapshots on disk, by seconds of writing.", _MODEL
)
SNAPSHOT_FAILURES = Metric(
    "numba_adam_snapshot_failures_total", Kind.COUNTER, "Snapshots that could not be written.", _MODEL
)
SNAPSHOT_BYTES = Metric(
    "numba_adam_snapshot_bytes", Kind.GAUGE, "Size of the newest snapshot that this run has written.", _MODEL
)
SNAPSHOT_TIME = Metric(
    "numba_adam_snapshot_timestamp_seconds",
    Kind.GAUGE,
    "When this run has written its newest snapshot, in seconds since 1970; time() minus it is the age.",
    _MODEL,
)

OF_SERVER = (INFO, BUDGET, BUDGET_USED, CALLS, MODELS, REFUSALS)
OF_MODELS = (
    VERSION,
    SAVED_VERSION,
    SESSIONS,
    PUSHES,
    PUSH_SECONDS,
    STALENESS,
    MODE_PUSHES,
    ROUND_SECONDS,
    PULL_SECONDS,
    RECEIVED,
    SENT,
    CHANGES,
    SNAPSHOT_SECONDS,
    SNAPSHOT_FAILURES,
    SNAPSHOT_BYTES,
    SNAPSHOT_TIME,
)
