"""The README's table, made from a result file: `python -m benchmarks.table [RESULT] [--write README.md]`.

Without --write the table is printed. The newest complete run is taken unless one is named.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.report import HEADINGS, Row, row
from benchmarks.results import Outcome, Run, load, newest

BEGIN, END = "<!-- benchmarks:begin -->", "<!-- benchmarks:end -->"


def markdown(run: Run, source: str) -> str:
    """Return a run as Markdown: what it was made on, the table, what was not measured.

    Args:
        run: the run.
        source: name of its file, without folder and suffix.
    """
    return "\n\n".join((_preamble(run, source), *_tables(run.outcomes)))


def _preamble(run: Run, source: str) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in run.versions.items() if version != "not installed")
    return (
        f"{run.machine['CPU']}, {run.settings.threads} threads for everybody, {run.machine['memory']} of memory, "
        f"{run.machine['system']}; {versions}; {run.started[:10]}. "
        "Figures are medians of interleaved pairs with their quartiles: ours divided by theirs, unless they carry a "
        "unit or are called a share. "
        f"Made with `python -m benchmarks`; every pair is in [{source}.json](benchmarks/results/{source}.json), "
        f"the output in [{source}.txt](benchmarks/results/{source}.txt)."
    )


def _tables(outcomes: Sequence[Outcome]) -> tuple[str, ...]:
    """Return what was asked for first, then the comparisons for information."""
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
    """Return a text with what stands between the markers replaced.

    Raises:
        ValueError: the markers are not there, once each and in order.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end or BEGIN in rest or END in before + after:
        raise ValueError(f"the text must hold {BEGIN} and then {END}, once each: the table goes between them")
    return f"{before}{BEGIN}\n{table}\n{END}{after}"


def main() -> None:
    """Print the table, or write it into a file."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.table", description="Make the README's table.")
    parser.add_argument("result", nargs="?", type=Path, help="a result file; default: the newest complete run")
    parser.add_argument("--write", type=Path, metavar="FILE", help="put the table between the markers of this file")
    arguments = parser.parse_args()
    try:
        path = arguments.result or newest()
        table = markdown(load(path), path.stem)
        if arguments.write:
            arguments.write.write_text(replaced(arguments.write.read_text(), table))
        else:
            print(table)
    except (OSError, ValueError) as error:
        sys.exit(f"benchmarks.table: {error}")


if __name__ == "__main__":
    main()
