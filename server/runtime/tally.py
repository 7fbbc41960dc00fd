"""Counts what happens to a model, and refused calls, for the metrics. Imports the standard library.

Counting is a few additions under a lock, so it costs a push about a microsecond. Nothing here is kept on disk: counts
begin at 0 when the server starts.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Sequence
from typing import NamedTuple

SECONDS_BOUNDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0)
"""Upper bounds of the buckets of durations, in seconds."""

STALENESS_BOUNDS = (0, 1, 2, 4, 8, 16, 32, 64, 128, 1024)
"""Upper bounds of the buckets of staleness, in versions."""

_MOST_REFUSALS = 1024
_OTHERS = ("others", "")


class Counted(NamedTuple):
    """What a histogram has counted."""

    counts: tuple[int, ...]
    """Values in each bucket, and at the end those above the last bound."""

    total: float
    """Their sum."""


class Histogram:
    """Counts values by size.

    Args:
        bounds: upper bounds of the buckets, ascending; a value that equals a bound is in its bucket.
    """

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self._counts = [0] * (len(bounds) + 1)
        self._total = 0.0
        self._lock = threading.Lock()

    def add(self, value: float) -> None:
        """Count a value."""
        bucket = bisect_left(self.bounds, value)
        with self._lock:
            self._counts[bucket] += 1
            self._total += value

    def read(self) -> Counted:
        """Return what was counted."""
        with self._lock:
            return Counted(tuple(self._counts), self._total)

    def mean(self) -> float:
        """Return the mean of the values; 0 if there are none."""
        counted = self.read()
        return counted.total / max(1, sum(counted.counts))


class Tally:
    """What happened to one model since the server started, beside its counters of pushes."""

    def __init__(self) -> None:
        self.push_seconds = Histogram(SECONDS_BOUNDS)
        """Pushes that were answered, by time from their header to the answer."""

        self.staleness = Histogram(STALENESS_BOUNDS)
        """Pushes that were applied, by staleness."""

        self.pull_seconds = Histogram(SECONDS_BOUNDS)
        """Pulls that were sent completely, by time from the request until the last message."""

        self.snapshot_seconds = Histogram(SECONDS_BOUNDS)
        """Snapshots that are on disk, by time."""

        self.round_seconds = Histogram(SECONDS_BOUNDS)
        """Rounds that closed, by time from their first gradient."""

        self.held_pushes = self.ahead_pushes = self.late_pushes = self.aborted_pushes = 0
        self.failed_pushes = 0
        self.failed_snapshots = 0
        self.changes = 0
        """Changes of the settings."""

        self.received_bytes = 0
        """Payload of pushes that were answered."""

        self.sent_bytes = 0
        """Payload of pulls."""

        self.snapshot_bytes = 0
        """Size of the newest snapshot; 0 before the first one of this run."""

        self.snapshot_time = 0.0
        """When it was written, in seconds since 1970; 0 before the first one of this run."""

        self._lock = threading.Lock()

    def note_push(self, seconds: float, nbytes: int, staleness: int | None) -> None:
        """Count a push that was answered; `staleness` is None unless it was applied by this try."""
        self.push_seconds.add(seconds)
        if staleness is not None:
            self.staleness.add(staleness)
        with self._lock:
            self.received_bytes += nbytes

    def note_waiting(self, *, is_held: bool) -> None:
        """Count a try of a push that is told to wait: it is held in its round, or its worker is ahead."""
        with self._lock:
            self.held_pushes += is_held
            self.ahead_pushes += not is_held

    def note_failed_push(self) -> None:
        """Count a push without an answer that the server keeps."""
        with self._lock:
            self.failed_pushes += 1

    def note_change(self) -> None:
        """Count a change of the settings."""
        with self._lock:
            self.changes += 1

    def note_sent(self, nbytes: int) -> None:
        """Count payload that was sent."""
        with self._lock:
            self.sent_bytes += nbytes

    def note_snapshot(self, seconds: float, nbytes: int, now: float) -> None:
        """Count a snapshot that is on disk. Runs in the model's snapshot queue."""
        self.snapshot_seconds.add(seconds)
        self.snapshot_bytes, self.snapshot_time = nbytes, now

    def note_failed_snapshot(self) -> None:
        """Count a snapshot that could not be written. Runs in the model's snapshot queue."""
        self.failed_snapshots += 1


class Refusals:
    """Counts refused calls by reason, and by the name of their token.

    There are at most 1,024 such pairs; further ones are counted together, so that renamed tokens cannot fill memory.
    """

    def __init__(self) -> None:
        self._counts: dict[tuple[str, str], int] = {}
        self._lock = threading.Lock()

    def note(self, reason: str, token: str = "") -> None:
        """Count a refused call.

        Args:
            reason: why, in words of the protocol.
            token: the name of its token, never the token itself; empty: it has no valid one.
        """
        pair = (reason, token)
        with self._lock:
            if pair not in self._counts and len(self._counts) >= _MOST_REFUSALS:
                pair = _OTHERS
            self._counts[pair] = self._counts.get(pair, 0) + 1

    def read(self) -> dict[tuple[str, str], int]:
        """Return the number of refused calls for each pair of reason and token."""
        with self._lock:
            return dict(self._counts)
