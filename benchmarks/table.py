"""The tables of README.md and benchmarks/README.md, made from a result file.

    python -m benchmarks.table              print the full table of the newest complete run
    python -m benchmarks.table RESULT       print that of another run
    python -m benchmarks.table --write      put both tables between the markers of the two documents

README.md shows a few cases, `HIGHLIGHTS`; benchmarks/README.md shows all.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.report import HEADINGS, Row, row
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


def markdown(run: Run, source: str) -> str:
    """Return the full table of a run, for benchmarks/README.md: machine, versions, bars, comparisons.

    Args:
        run: the run.
        source: name of its file, without folder and suffix.
    """
    return "\n\n".join((_preamble(run, source), *_tables(run.outcomes)))


def highlights(run: Run, source: str) -> str:
    """Return the short table of a run, for README.md: the machine, and the cases of `HIGHLIGHTS`.

    Args:
        run: the run.
        source: name of its file, without folder and suffix.

    Raises:
        ValueError: the run lacks one of the cases.
    """
    outcomes = {outcome.name: outcome for outcome in run.outcomes}
    missing = [name for name in HIGHLIGHTS if name not in outcomes]
    if missing:
        raise ValueError(f"the run {source} has no case {missing[0]!r}: run all benchmarks, or change HIGHLIGHTS")
    headings = HEADINGS._replace(figure="ratio [quartiles]")
    rows = [row(outcomes[name])[:5] for name in HIGHLIGHTS]
    measured = (
        f"Measured on {run.started[:10]} on one machine: {run.machine['CPU']}, {run.settings.threads} threads for "
        f"every contestant, {run.machine['memory']} of memory, {run.machine['system']}. A ratio is our time divided by "
        f"theirs: below 1, ours is faster."
    )
    return f"{_table(headings[:5], rows)}\n\n{measured}"


def _preamble(run: Run, source: str) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in run.versions.items() if version != "not installed")
    return (
        f"Machine: {run.machine['CPU']}, {run.settings.threads} threads for every contestant, {run.machine['memory']} "
        f"of memory, {run.machine['system']}. Versions: {versions}. Date: {run.started[:10]}.\n\n"
        "A figure is the median of interleaved pairs, with its quartiles: our time divided by theirs, unless it has a "
        "unit or its case is called a share. "
        f"[{source}.json](results/{source}.json) holds every pair, [{source}.txt](results/{source}.txt) the output."
    )


def _tables(outcomes: Sequence[Outcome]) -> tuple[str, ...]:
    """Return the cases with a bar first, then the comparisons for information."""
    asked = [row(outcome) for outcome in outcomes if outcome.bar]
    others = [row(outcome) for outcome in outcomes if not outcome.bar]
    tables = [_table(HEADINGS, asked)] if asked else []
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


def documents(run: Run, source: str, root: Path = ROOT) -> dict[Path, str]:
    """Return the two documents with the tables of a run, by path."""
    tables = {root / "README.md": highlights(run, source), root / "benchmarks/README.md": markdown(run, source)}
    return {path: replaced(path.read_text(), table) for path, table in tables.items()}


def main() -> None:
    """Print the full table, or write both tables into the documents."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.table", description="Make the documents' tables.")
    parser.add_argument("result", nargs="?", type=Path, help="a result file; default: the newest complete run")
    parser.add_argument("--write", action="store_true", help="write the tables into README.md and benchmarks/README.md")
    arguments = parser.parse_args()
    try:
        path = arguments.result or newest()
        run = load(path)
        if not arguments.write:
            print(markdown(run, path.stem))
            return
        for document, text in documents(run, path.stem).items():
            document.write_text(text)
    except (OSError, ValueError) as error:
        sys.exit(f"benchmarks.table: {error}")


if __name__ == "__main__":
    main()
