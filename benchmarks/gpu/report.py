"""The journal as text."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.gpu.journal import Record

_MARKS = {"good": "good     ", "bad": "BAD      ", "noted": "         ", "not run": "not run  ", "begun": "begun    "}


def line(record: Record) -> str:
    """Return one record as a line."""
    return f"{_MARKS[record.outcome]}{record.item}: {record.said} [{record.seconds:.1f} s]"


def text(records: Sequence[Record]) -> str:
    """Return a run as text: every finding, stage by stage, and a summary at the end."""
    lines: list[str] = []
    results = [record for record in records if record.outcome != "begun"]
    for stage in dict.fromkeys(record.stage for record in results):
        lines += [stage, *("  " + line(record) for record in results if record.stage == stage), ""]
    count = {outcome: sum(record.outcome == outcome for record in results) for outcome in _MARKS}
    lines.append(
        f"{count['good']} as they must be, {count['bad']} not, {count['noted']} measured, {count['not run']} not run"
    )
    ended = {(record.stage, record.item) for record in results}
    cut = [record for record in records if (record.stage, record.item) not in ended]
    lines += [f"cut during: {record.stage}, {record.item}" for record in cut]
    return "\n".join(lines) + "\n"


def is_bad(records: Sequence[Record]) -> bool:
    """Return whether something is not as it must be."""
    return any(record.outcome == "bad" for record in records)
