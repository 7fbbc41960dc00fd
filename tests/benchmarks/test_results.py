"""Results as files, as text, and as tables in the documents."""

from pathlib import Path

import pytest

from benchmarks import report, results, table
from benchmarks.case import Bar, Quantity, Settings, Unit
from benchmarks.results import Outcome, Run


def outcome(**changes: object) -> Outcome:
    values: dict[str, object] = {
        "name": "flat/1m/torch",
        "title": "one array of 1 million",
        "peer": "torch",
        "quantity": Quantity.RATIO,
        "unit": Unit.SECONDS,
        "bar": Bar(0.8),
        "pairs": [(0.0002, 0.0004), (0.0003, 0.0004), (0.0003, 0.0003)],
        "notes": {"arrays": "1"},
    }
    return Outcome(**{**values, **changes})  # type: ignore[arg-type]


def run_of(*outcomes: Outcome, started: str = "2026-11-23T02:10:00Z", complete: bool = True) -> Run:
    return Run(
        started=started,
        complete=complete,
        settings=Settings(),
        machine={"CPU": "a CPU", "memory": "1 GB", "system": "a system"},
        versions={"Python": "3.11", "torch": "not installed"},
        outcomes=list(outcomes),
    )


EVERYTHING = run_of(
    outcome(),
    outcome(name="a", bar=None),
    outcome(name="b", quantity=Quantity.VALUE, unit=Unit.BYTES, bar=Bar(4e6), pairs=[(0.0, None), (8192.0, None)]),
    outcome(name="c", quantity=Quantity.FRACTION, bar=Bar(0.9, at_least=True)),
    outcome(name="d", pairs=[], problem="missing: torch does not run here"),
    outcome(name="e", quantity=Quantity.VALUE, unit=Unit.BYTES_EACH, bar=Bar(10.1), pairs=[(10.0625, 16.0)]),
    outcome(name="f", curves={"ours": [(1e5, 2.1e-05), (1e6, 0.00015)]}),
)


def test_a_run_reads_back_as_written(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    results.save(EVERYTHING, path)
    assert results.load(path) == EVERYTHING


def test_an_older_run_without_curves_is_read(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    results.save(run_of(outcome()), path)
    path.write_text(path.read_text().replace(', "curves": {}', ""))
    assert results.load(path) == run_of(outcome())


def test_a_run_that_ended_early_is_saved(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    results.save(run_of(complete=False), path)
    assert results.load(path).outcomes == []


def test_a_file_of_another_format_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_text('{"format": 99}')
    with pytest.raises(ValueError, match="format 1"):
        results.load(path)


def test_the_newest_complete_run_is_found(tmp_path: Path) -> None:
    results.save(run_of(started="2026-11-23T02:00:00Z"), tmp_path / "z.json")
    results.save(run_of(started="2026-11-24T02:00:00Z"), tmp_path / "a.json")
    results.save(run_of(started="2026-11-25T02:00:00Z", complete=False), tmp_path / "part.json")
    assert results.newest(tmp_path).name == "a.json"


def test_without_a_complete_run_none_is_found(tmp_path: Path) -> None:
    results.save(run_of(complete=False), tmp_path / "part.json")
    with pytest.raises(FileNotFoundError, match="no complete run"):
        results.newest(tmp_path)


def test_a_new_result_never_replaces_an_old_one(tmp_path: Path) -> None:
    paths = []
    for _ in range(3):
        paths.append(results.free_path("2026-11-23", tmp_path))
        results.save(run_of(), paths[-1])
    assert [path.stem for path in paths] == ["2026-11-23", "2026-11-23-2", "2026-11-23-3"]


def test_a_row_shows_median_quartiles_and_the_verdict() -> None:
    met = report.Row("one array of 1 million", "torch", "300 us", "400 us", "0.75 [0.625, 0.875]", "at most 0.8", "yes")
    assert report.row(outcome()) == met
    assert report.row(outcome(bar=Bar(0.7))).verdict == "NO"
    assert report.row(outcome(bar=None))[-2:] == ("-", "-")


def test_a_missing_peer_has_a_row_with_the_reason() -> None:
    missing = report.row(outcome(pairs=[], problem="missing: no compiler"))
    assert (missing.figure, missing.verdict, missing.asked) == ("missing: no compiler", "not measured", "at most 0.8")


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.0000289, Unit.SECONDS, "28.9 us"),
        (0.0123, Unit.SECONDS, "12.3 ms"),
        (-0.0123, Unit.SECONDS, "-12.3 ms"),
        (0.9999, Unit.SECONDS, "1000 ms"),
        (123.4, Unit.SECONDS, "123 s"),
        (0.0, Unit.SECONDS, "0 s"),
        (3_600_000.0, Unit.BYTES, "3.6 MB"),
        (0.0, Unit.COUNT, "0"),
        (5.31e-10, Unit.SECONDS, "0.531 ns"),
        (10.0625, Unit.BYTES_EACH, "10.06 bytes"),
    ],
)
def test_amounts_are_formatted_with_units(value: float, unit: Unit, text: str) -> None:
    assert report.amount(value, unit) == text


def test_the_summary_lists_missed_bars_and_missing_measurements() -> None:
    short, missing = outcome(bar=Bar(0.5)), outcome(name="d", pairs=[], problem="missing: no compiler")
    assert report.summary([outcome(), short, missing]) == [
        "1 of 3 bars met",
        "NOT MET: flat/1m/torch: 0.75 [0.625, 0.875]",
        "NOT MEASURED: d: missing: no compiler",
    ]


def test_every_case_is_in_the_table() -> None:
    lines = table.markdown(EVERYTHING, "run").splitlines()
    rows = [line for line in lines if line.startswith("| one array of 1 million ")]
    assert len(rows) == len(EVERYTHING.outcomes)
    assert any("missing: torch does not run here" in line for line in rows)
    assert "(results/run.json)" in lines[2]


def test_the_short_table_has_the_highlights_and_the_machine() -> None:
    chosen = [outcome(name=name, bar=None) for name in table.HIGHLIGHTS]
    lines = table.highlights(run_of(outcome(title="another"), *chosen), "run").splitlines()
    assert [line.split(" | ")[0] for line in lines[2:-2]] == ["| one array of 1 million"] * 6
    assert "| torch | 300 us | 400 us | 0.75 [0.625, 0.875] |" in lines[2]
    assert all(word in lines[-1] for word in ("a CPU", "1 GB", "a system", "2026-11-23"))


def test_a_run_without_a_highlight_is_refused_for_the_short_table() -> None:
    with pytest.raises(ValueError, match=table.HIGHLIGHTS[0]):
        table.highlights(EVERYTHING, "run")


def test_the_documents_have_the_tables_of_the_newest_run() -> None:
    newest = results.newest()
    for path, text in table.documents(results.load(newest), newest.stem).items():
        assert path.read_text() == text, f"{path.name}: run `python -m benchmarks.table --write`"


def test_the_table_replaces_the_text_between_the_markers() -> None:
    text = f"# Title\n\n{table.BEGIN}\nold\n{table.END}\n\nMore.\n"
    once = table.replaced(text, "| new |")
    assert once == f"# Title\n\n{table.BEGIN}\n| new |\n{table.END}\n\nMore.\n"
    assert table.replaced(once, "| new |") == once


@pytest.mark.parametrize(
    "text",
    ["", table.BEGIN, table.END, f"{table.END}\n{table.BEGIN}", f"{table.BEGIN}\n{table.BEGIN}\n{table.END}"],
)
def test_a_text_without_its_markers_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="once each"):
        table.replaced(text, "| new |")
