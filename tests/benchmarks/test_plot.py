"""The plot of benchmarks/README.md: two pictures with the data of one run."""

from pathlib import Path
from xml.etree import ElementTree

import pytest

from benchmarks import plot
from benchmarks.case import Curves, Quantity, Settings, Unit
from benchmarks.results import Outcome, Run

OURS: Curves = {"ours, float32, 2 threads": [(1e5, 3e-5), (1e6, 3e-4)], "ours, float32, 1 thread": [(1e5, 6e-5)]}
PEERS: Curves = {"a peer": [(1e5, 5e-5), (1e6, 6e-4)], "a slow peer": [(1e5, 4e-3), (1e6, 5e-2)]}


def run_of(*curves: Curves) -> Run:
    outcomes = [
        Outcome(
            name=f"scaling/{number}",
            title="",
            peer="",
            quantity=Quantity.RATIO,
            unit=Unit.SECONDS,
            bar=None,
            curves=curve,
        )
        for number, curve in enumerate(curves)
    ]
    return Run(
        started="2026-11-23T02:10:00Z",
        complete=True,
        settings=Settings(),
        machine={"CPU": "a CPU"},
        versions={},
        outcomes=outcomes,
    )


def texts(path: Path) -> str:
    return " ".join("".join(element.itertext()) for element in ElementTree.parse(path).iter() if "text" in element.tag)


def test_both_pictures_name_all_contestants_and_the_machine(tmp_path: Path) -> None:
    paths = plot.draw(run_of(OURS, PEERS), tmp_path)
    assert [path.name for path in paths] == ["scaling-light.svg", "scaling-dark.svg"]
    for path in paths:
        assert all(word in texts(path) for word in ("ours, float32, 2 threads", "a peer", "a CPU", "2026-11-23"))
    light, dark = (path.read_text() for path in paths)
    assert plot.LIGHT.ink in light
    assert plot.DARK.ink in dark


def test_a_much_slower_contestant_is_named_but_not_drawn(tmp_path: Path) -> None:
    path, _ = plot.draw(run_of(OURS, PEERS), tmp_path)
    assert "above this plot: a slow peer, 40 to 50 ns" in texts(path)


def test_the_same_run_gives_the_same_bytes(tmp_path: Path) -> None:
    before = [path.read_bytes() for path in plot.draw(run_of(OURS, PEERS), tmp_path)]
    assert [path.read_bytes() for path in plot.draw(run_of(OURS, PEERS), tmp_path)] == before


def test_a_run_without_curves_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no curves"):
        plot.draw(run_of({}), tmp_path)
