"""`python -m benchmarks.evidence`: train with every contestant, print them side by side, keep it as files.

Everything runs on one thread: the models are small, and sums of gradients then have the same bits on every machine of
a kind.
"""

from __future__ import annotations

import os

os.environ.update({f"{name}_NUM_THREADS": "1" for name in ("OMP", "MKL", "OPENBLAS", "NUMBA")})

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import results
from benchmarks.__main__ import Printer
from benchmarks.case import MissingError
from benchmarks.evidence import tables
from benchmarks.evidence.digits import Digits
from benchmarks.evidence.language import Language
from benchmarks.evidence.measure import stream_through, train
from benchmarks.evidence.optimizers import ALL, FLOAT32, NEAREST, Contestant, missing_ones
from benchmarks.evidence.problem import Problem
from benchmarks.evidence.streams import STREAMS
from benchmarks.machine import machine, versions

FOLDER = results.FOLDER / "evidence"


class Training(NamedTuple):
    """What is trained."""

    name: str
    title: str
    make: Callable[[int], Problem]
    steps: int


TRAININGS = (
    Training("digits", "the demonstration's network on handwritten digits, 19,210 parameters", Digits, 600),
    Training("language", "a transformer of 2 layers on Python's help texts, 118 thousand parameters", Language, 400),
)
_STREAM_SEEDS = 2


def main() -> None:
    """Run what the arguments choose."""
    arguments = _parser().parse_args()
    steps, out = 60 if arguments.quick else None, Printer()
    begin, started = time.monotonic(), datetime.now(UTC)
    record: dict[str, Any] = {
        "started": started.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "machine": machine(),
        "versions": versions(),
    }
    out(f"started: {record['started']}", *(f"{k}: {v}" for k, v in record["machine"].items() if k != "load before"))
    out("versions: " + ", ".join(f"{name} {version}" for name, version in record["versions"].items()))
    record["missing"] = missing_ones(ALL)
    out(*(f"missing: {reason}" for reason in record["missing"].values()))
    contestants = [each for each in ALL if each.name not in record["missing"]]
    record["training"] = [_train(each, contestants, arguments.seeds, steps, out) for each in TRAININGS]
    record["streams"] = _stream([*contestants[1:], NEAREST], out)
    out("", f"this took {(time.monotonic() - begin) / 60:.0f} minutes")
    if not arguments.quick:
        _save(record, out, results.free_path(started.date().isoformat(), FOLDER))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.evidence", description=__doc__)
    parser.add_argument("--seeds", type=int, default=5, help="of each training (%(default)s)")
    parser.add_argument("--quick", action="store_true", help="a short try; nothing is written")
    return parser


def _train(
    training: Training, contestants: list[Contestant], seeds: int, steps: int | None, out: Printer
) -> dict[str, Any]:
    """Train all seeds; print and return what comes of them."""
    count = steps or training.steps
    head = {"name": training.name, "title": training.title, "steps": count}
    out("", f"{training.title}; {count} steps, {seeds} seeds")
    try:
        done = [train(training.make(seed), contestants, count) for seed in range(seeds)]
    except MissingError as error:
        out(f"missing: {error}")
        return {**head, "missing": str(error)}
    out(*tables.of_losses(done), "", *tables.of_errors(done))
    return {**head, "seeds": [{name: asdict(trained) for name, trained in seed.items()} for seed in done]}


def _stream(contestants: list[Contestant], out: Printer) -> list[dict[str, Any]]:
    """Run all streams; print and return what comes of them."""
    out("", f"random gradients without a model; parameter errors in lr, against {FLOAT32.name}")
    done = [
        (stream, [stream_through(stream, contestants, seed) for seed in range(_STREAM_SEEDS)]) for stream in STREAMS
    ]
    out(*tables.of_streams(done))
    return [
        {"name": stream.name, "seeds": [{name: asdict(one) for name, one in seed.items()} for seed in seeds]}
        for stream, seeds in done
    ]


def _save(record: dict[str, Any], out: Printer, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n")
    path.with_suffix(".txt").write_text("\n".join(out.lines) + "\n")


if __name__ == "__main__":
    main()
