"""Results as files, as text, and as tables in the documents."""

from pathlib import Path

import pytest

from benchmarks import machine, report, results, table
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


def test_the_newest_complete_run_of_each_cpu_is_found(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    results.save(run_of(started="2026-11-23T02:00:00Z"), one / "z.json")
    results.save(run_of(started="2026-11-24T02:00:00Z"), one / "a.json")
    results.save(run_of(started="2026-11-25T02:00:00Z", complete=False), one / "part.json")
    results.save(run_of(started="2026-11-22T02:00:00Z"), other / "b.json")
    results.save(run_of(complete=False), tmp_path / "third" / "part.json")
    assert {path: run.started[:10] for path, run in results.newest(tmp_path).items()} == {
        one / "a.json": "2026-11-24",
        other / "b.json": "2026-11-22",
    }


def test_the_newest_run_with_curves_is_found_even_if_other_cases_are_missing(tmp_path: Path) -> None:
    curves = outcome(curves={"ours": [(1e5, 2e-5)]})
    results.save(run_of(outcome(), started="2026-11-26T02:00:00Z"), tmp_path / "one" / "a.json")
    results.save(run_of(curves, started="2026-11-25T02:00:00Z", complete=False), tmp_path / "one" / "b.json")
    results.save(run_of(curves, started="2026-11-24T02:00:00Z"), tmp_path / "other" / "c.json")
    assert results.newest_curves(tmp_path) == tmp_path / "one" / "b.json"


@pytest.mark.parametrize(
    ("cpu", "name"),
    [
        ("AMD EPYC (family 25, model 17, AVX-512)", "amd-epyc-25-17"),
        ("Intel(R) Xeon(R) Processor (family 6, model 167, AVX-512)", "intel-xeon-6-167"),
        ("Intel(R) Xeon(R) Gold 6148 CPU @ 2.40GHz (family 6, model 85)", "intel-xeon-gold-6148-6-85"),
        ("", "unknown"),
    ],
)
def test_each_kind_of_cpu_has_a_folder(cpu: str, name: str) -> None:
    assert machine.folder_name(cpu) == name


def test_every_result_lies_in_the_folder_of_its_cpu() -> None:
    paths = [path for path in results.FOLDER.glob("*/*.json") if path.parent.name not in results.OTHERS]
    assert len(paths) >= 5
    for path in paths:
        assert path.parent.name == machine.folder_name(results.load(path).machine["CPU"]), path.name


def test_a_run_records_what_llvm_compiles_for() -> None:
    from llvmlite import binding

    assert machine.machine()["kernels"].startswith(f"for {binding.get_host_cpu_name()}, ")


def test_without_a_complete_run_none_is_found(tmp_path: Path) -> None:
    results.save(run_of(complete=False), tmp_path / "one" / "part.json")
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
    lines = table.markdown(EVERYTHING, Path("a-cpu/run.json")).splitlines()
    rows = [line for line in lines if line.startswith("| one array of 1 million ")]
    assert len(rows) == len(EVERYTHING.outcomes)
    assert any("missing: torch does not run here" in line for line in rows)
    assert lines[0] == "### a CPU"
    assert "(results/a-cpu/run.json)" in lines[4]


def test_the_short_table_has_the_highlights_of_every_cpu_and_the_machines() -> None:
    chosen = [outcome(name=name, bar=None) for name in table.HIGHLIGHTS]
    faster = [outcome(name=name, bar=None, pairs=[(0.0001, 0.0004)]) for name in table.HIGHLIGHTS]
    runs = {Path("a.json"): run_of(outcome(title="another"), *chosen), Path("b.json"): run_of(*faster)}
    lines = table.highlights(runs).splitlines()
    assert lines[0] == "| case | against | a CPU | a CPU |"
    assert lines[2:8] == [
        "| one array of 1 million | torch | 0.75 [0.625, 0.875]: 300 us, 400 us | 0.25: 100 us, 400 us |"
    ] * len(table.HIGHLIGHTS)
    assert all(word in lines[-1] for word in ("a CPU", "1 GB", "a system", "2026-11-23"))


def test_cases_with_a_bar_stand_side_by_side() -> None:
    other = run_of(outcome(bar=Bar(0.7)), outcome(name="only here", title="only here"))
    lines = table.side_by_side([EVERYTHING, other]).splitlines()
    assert (
        lines[2] == "| one array of 1 million | torch | at most 0.7 | 0.75 [0.625, 0.875] | 0.75 [0.625, 0.875], NO |"
    )
    assert lines[-1] == "| only here | torch | at most 0.8 | - | 0.75 [0.625, 0.875] |"


def test_a_run_without_a_highlight_is_refused_for_the_short_table() -> None:
    with pytest.raises(ValueError, match=table.HIGHLIGHTS[0]):
        table.highlights({Path("run.json"): EVERYTHING})


def test_the_documents_have_the_tables_of_the_newest_runs() -> None:
    for path, text in table.documents(results.newest()).items():
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
