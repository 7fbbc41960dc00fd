"""`python -m benchmarks`: run the cases, print the results and write them to files."""

from __future__ import annotations

import argparse
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

from benchmarks import report, results, worker
from benchmarks.case import Case, Settings
from benchmarks.machine import folder_name, machine, versions
from benchmarks.registry import chosen

_QUICK = Settings(seconds=1.0, fewest_pairs=3, largest_elements=1_000_000)


class Printer:
    """Prints lines and keeps them."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def __call__(self, *lines: str) -> None:
        """Print lines."""
        for line in lines:
            print(line, flush=True)
        self.lines += lines


def main() -> None:
    """Run the chosen cases. Exit non-zero if a case failed; a bar that was not met is not a failure."""
    arguments = _parser().parse_args()
    try:
        cases = chosen([prefix for prefix in arguments.only.split(",") if prefix])
    except LookupError as error:
        sys.exit(f"benchmarks: {error}")
    if arguments.list:
        print("\n".join(_listed(cases)))
        return
    defaults = _QUICK if arguments.quick else Settings()
    seconds = defaults.seconds if arguments.seconds is None else arguments.seconds
    settings = Settings(arguments.threads, seconds, defaults.fewest_pairs, defaults.largest_elements)
    run = _run(cases, settings, None if arguments.quick else arguments.name or _default_name(cases))
    sys.exit(any(outcome.problem.startswith("failed") for outcome in run.outcomes))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Compare numba-adam with its peers.")
    parser.add_argument("--only", default="", metavar="PREFIX,...", help="only cases with these prefixes")
    parser.add_argument("--list", action="store_true", help="list the cases and their bars")
    parser.add_argument("--quick", action="store_true", help="a short run with small arrays; writes no files")
    parser.add_argument("--threads", type=int, default=Settings.threads, help="threads per contestant (%(default)s)")
    parser.add_argument("--seconds", type=float, help=f"time for each case ({Settings.seconds:g})")
    parser.add_argument("--name", help="name of the result files; default: the date")
    return parser


def _listed(cases: list[Case]) -> list[str]:
    outcomes = [results.outcome_of(case, {}) for case in cases]
    rows = [(outcome.name, report.asked(outcome), outcome.title, outcome.peer) for outcome in outcomes]
    return report.aligned([("name", "asked", "case", "against"), *rows])


def _default_name(cases: list[Case]) -> str:
    """Return the date, with a mark if some cases are not run."""
    date = datetime.now(UTC).date().isoformat()
    return date if _is_complete(cases) else f"{date}-part"


def _is_complete(cases: list[Case]) -> bool:
    return {case.name for case in chosen([])} <= {case.name for case in cases}


def _run(cases: list[Case], settings: Settings, name: str | None) -> results.Run:
    """Run cases one after another. After each, write the results so far to files of this name; None: to none."""
    out, begin = Printer(), time.monotonic()
    run = results.Run(
        started=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        complete=False,
        settings=settings,
        machine=machine(),
        versions=versions(),
        outcomes=[],
    )
    path = None if name is None else results.free_path(name, results.FOLDER / folder_name(run.machine["CPU"]))
    out(f"started: {run.started}", *report.header(run.machine, run.versions, settings), "")
    for case in cases:
        run.outcomes.append(results.outcome_of(case, worker.run(case.name, case.settings(settings))))
        out(*report.details(run.outcomes[-1]))
        _save(run, path, out)
    rows = [report.HEADINGS, *map(report.row, run.outcomes)]
    minutes = (time.monotonic() - begin) / 60
    out("", *report.aligned(rows), "", *report.summary(run.outcomes), f"this took {minutes:.0f} minutes")
    run = results.Run(**{**vars(run), "complete": _is_complete(cases)})
    _save(run, path, out)
    return run


def _save(run: results.Run, path: Path | None, out: Printer) -> None:
    if path is not None:
        results.save(run, path)
        path.with_suffix(".txt").write_text("\n".join(out.lines) + "\n")


if __name__ == "__main__":
    main()
