"""`numba-adam doctor`: it reports the installation, and what is broken."""

import json

import pytest

from numba_adam.cli import checkup, main
from numba_adam.cli.connection import bytes_in_words


def test_on_this_machine_nothing_is_broken(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    shown = capsys.readouterr().out
    for subject in ("python", "numba", "processor", "threads", "kernel cache", "memory", "gpu", "server extra"):
        assert f"ok     {subject}" in shown
    assert "Everything needed works." in shown


def test_json_output_is_one_object(capsys: pytest.CaptureFixture[str]) -> None:
    import numba

    assert main(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    found = {finding["subject"]: finding for finding in report["findings"]}
    assert report["ok"] is True
    assert found["numba"]["found"] == numba.__version__
    assert not any(finding["broken"] for finding in report["findings"])


def test_threads_are_reported_after_a_parallel_update() -> None:
    found = {finding.subject: finding.found for finding in checkup.examine()}
    assert "layer" in found["threads"]


def test_a_broken_finding_exits_with_1_and_gives_advice(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(checkup._SUBJECTS, "numpy", checkup._required("a_package_that_is_nowhere"))
    assert main(["doctor"]) == 1
    shown = capsys.readouterr().out
    assert "BROKEN numpy" in shown
    assert "-> pip install" in shown
    assert "1 broken" in shown


def test_a_failing_check_does_not_stop_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(subject: str) -> checkup.Finding:
        raise OSError(f"{subject} cannot be read")

    monkeypatch.setitem(checkup._SUBJECTS, "memory", fails)
    findings = checkup.examine()
    assert [finding.subject for finding in findings if finding.broken] == ["memory"]
    assert "memory cannot be read" in next(finding.found for finding in findings if finding.broken)


@pytest.mark.parametrize(
    ("count", "words"), [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (28_000_000, "28.0 MB"), (10**12, "1.0 TB")]
)
def test_bytes_are_formatted_with_units(count: int, words: str) -> None:
    assert bytes_in_words(count) == words
