"""The tables of README.md and benchmarks/README.md, made from result files.

    python -m benchmarks.table              print the full tables of the newest complete run of each kind of CPU
    python -m benchmarks.table RESULT       print those of another run
    python -m benchmarks.table --write      put the tables between the markers of the two documents

README.md shows a few cases, `HIGHLIGHTS`; benchmarks/README.md shows all.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.report import HEADINGS, Row, asked, row
from benchmarks.results import Outcome, Run, load, newest

BEGIN, END = "<!-- benchmarks:begin -->", "<!-- benchmarks:end -->"
ROOT = Path(__file__).resolve().parent.parent
HIGHLIGHTS = (
    "flat/50m/numpy",
    "many/1000x1000/torch",
    "phase/50m/torch",
    "formats/8bit/bitsandbytes",
    "rows/torch",
    "service/push",
)


def markdown(run: Run, path: Path) -> str:
    """Return the full tables of a run, for benchmarks/README.md: machine, versions, bars, comparisons.

    Args:
        run: the run.
        path: its file.
    """
    return "\n\n".join((f"### {run.machine['CPU']}", _preamble(run, path), *_tables(run.outcomes)))


def side_by_side(runs: Sequence[Run]) -> str:
    """Return the table of all cases that have a bar, with a column for each run."""
    cases = {outcome.name: outcome for run in runs for outcome in run.outcomes if outcome.bar}
    of_run = [{outcome.name: outcome for outcome in run.outcomes} for run in runs]
    rows = []
    for name, case in cases.items():
        cells = [row(found[name]) if name in found else None for found in of_run]
        figures = ["-" if cell is None else f"{cell.figure}{', NO' * (cell.verdict == 'NO')}" for cell in cells]
        rows.append((case.title, case.peer or "-", asked(case), *figures))
    return _table(("case", "against", "asked", *(run.machine["CPU"] for run in runs)), rows)


def highlights(runs: Mapping[Path, Run]) -> str:
    """Return the short table, for README.md: the cases of `HIGHLIGHTS`, and where each run was made.

    Args:
        runs: the newest run of each kind of CPU, by path.

    Raises:
        ValueError: a run lacks one of the cases.
    """
    columns = []
    for path, run in runs.items():
        outcomes = {outcome.name: outcome for outcome in run.outcomes}
        missing = [name for name in HIGHLIGHTS if name not in outcomes]
        if missing:
            raise ValueError(
                f"the run {path.stem} has no case {missing[0]!r}: run all benchmarks, or change HIGHLIGHTS"
            )
        columns.append([row(outcomes[name]) for name in HIGHLIGHTS])
    rows = [
        (cells[0].title, cells[0].peer, *(f"{one.figure}: {one.ours}, {one.theirs}" for one in cells))
        for cells in zip(*columns, strict=True)
    ]
    headings = ("case", "against", *(run.machine["CPU"] for run in runs.values()))
    return "\n\n".join(
        (
            _table(headings, rows),
            "A cell is the ratio of our time to theirs with its quartiles, then our time and theirs: below 1, ours is "
            "faster.",
            *map(_made, runs.values()),
        )
    )


def _made(run: Run) -> str:
    return (
        f"{run.machine['CPU']}: {run.started[:10]}, {run.settings.threads} threads for every contestant, "
        f"{run.machine['memory']} of memory, {run.machine['system']}."
    )


def _preamble(run: Run, path: Path) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in run.versions.items() if version != "not installed")
    kernels = f"Kernels are compiled {run.machine['kernels']}. " if "kernels" in run.machine else ""
    file = f"results/{path.parent.name}/{path.stem}"
    return (
        f"Machine: {run.machine['CPU']}, {run.settings.threads} threads for every contestant, {run.machine['memory']} "
        f"of memory, {run.machine['system']}. {kernels}Versions: {versions}. Date: {run.started[:10]}.\n\n"
        "A figure is the median of interleaved pairs, with its quartiles: our time divided by theirs, unless it has a "
        "unit or its case is called a share. "
        f"[{path.stem}.json]({file}.json) holds every pair, [{path.stem}.txt]({file}.txt) the output."
    )


def _tables(outcomes: Sequence[Outcome]) -> tuple[str, ...]:
    """Return the cases with a bar first, then the comparisons for information."""
    bars = [row(outcome) for outcome in outcomes if outcome.bar]
    others = [row(outcome) for outcome in outcomes if not outcome.bar]
    tables = [_table(HEADINGS, bars)] if bars else []
    if others:
        tables += ["For comparison:", _table(HEADINGS[:5], [entry[:5] for entry in others])]
    return tuple(tables)


def _table(headings: Sequence[str], rows: Sequence[Row | tuple[str, ...]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def replaced(text: str, table: str) -> str:
    """Return a text with the part between the markers replaced.

    Raises:
        ValueError: the markers are not there, once each and in order.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end or BEGIN in rest or END in before + after:
        raise ValueError(f"the text must hold {BEGIN} and then {END}, once each: the table goes between them")
    return f"{before}{BEGIN}\n{table}\n{END}{after}"


def documents(runs: Mapping[Path, Run], root: Path = ROOT) -> dict[Path, str]:
    """Return the two documents with the tables of the newest run of each kind of CPU, by path."""
    sections = [markdown(run, path) for path, run in runs.items()]
    if len(runs) > 1:
        sections.insert(0, side_by_side(list(runs.values())))
    tables = {root / "README.md": highlights(runs), root / "benchmarks/README.md": "\n\n".join(sections)}
    return {path: replaced(path.read_text(), table) for path, table in tables.items()}


def main() -> None:
    """Print the full table, or write both tables into the documents."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.table", description="Make the documents' tables.")
    parser.add_argument(
        "result", nargs="?", type=Path, help="a result file; default: the newest complete run of each kind of CPU"
    )
    parser.add_argument("--write", action="store_true", help="write the tables into README.md and benchmarks/README.md")
    arguments = parser.parse_args()
    try:
        runs = {arguments.result: load(arguments.result)} if arguments.result else newest()
        if not arguments.write:
            print("\n\n".join(markdown(run, path) for path, run in runs.items()))
            return
        for document, text in documents(runs).items():
            document.write_text(text)
    except (OSError, ValueError) as error:
        sys.exit(f"benchmarks.table: {error}")


if __name__ == "__main__":
    main()
