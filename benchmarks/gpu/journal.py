"""The findings of a run, one line of JSON each. A line is on disk before the next item begins."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

Outcome = Literal["good", "bad", "noted", "begun", "not run"]


@dataclass(frozen=True)
class Finding:
    """What an item found."""

    said: str
    """One line for people."""

    is_good: bool | None = None
    """Whether it is as it must be; None for a measurement or a remark."""

    data: dict[str, Any] = field(default_factory=dict)
    """The numbers, for programs."""

    @property
    def outcome(self) -> Outcome:
        """How the journal calls it."""
        return "noted" if self.is_good is None else "good" if self.is_good else "bad"


@dataclass(frozen=True)
class Record:
    """One line of the journal."""

    stage: str
    item: str
    outcome: Outcome
    said: str = ""
    seconds: float = 0.0
    data: dict[str, Any] = field(default_factory=dict)
    lane: int = 0  # which of the stage's processes it comes from


class Journal:
    """A file that only grows. Several processes may add to it."""

    def __init__(self, path: Path) -> None:
        """Use the file at `path`, which need not exist."""
        self.path = path

    def add(self, record: Record) -> None:
        """Add one record; when this returns, it is on disk."""
        line = (json.dumps(asdict(record)) + "\n").encode()
        number = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(number, line)
            os.fsync(number)
        finally:
            os.close(number)

    def records(self) -> list[Record]:
        """Return all records. The beginning of a line at the end is left out: its writer was killed."""
        if not self.path.exists():
            return []
        lines = self.path.read_bytes().split(b"\n")
        return [Record(**json.loads(line)) for line in lines[:-1] if line]

    def results(self, stage: str | None = None) -> list[Record]:
        """Return the records of items that have ended, or will not run; of one stage or of all."""
        return [each for each in self.records() if each.outcome != "begun" and stage in (None, each.stage)]

    def unfinished(self, stage: str, lane: int) -> str | None:
        """Return the item that a process has begun and not ended, as when it died; None if there is none."""
        of_lane = [each for each in self.records() if (each.stage, each.lane) == (stage, lane)]
        return of_lane[-1].item if of_lane and of_lane[-1].outcome == "begun" else None
