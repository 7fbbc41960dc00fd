"""`make torture` notes what ran, goes on where it was stopped, and reports what failed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT)]  # for the program, which is no test itself

from tests.torture.__main__ import main  # noqa: E402
from tests.torture.campaigns import CAMPAIGNS, Campaign  # noqa: E402
from tests.torture.rounds import Round, append, as_table, play, read, total, unfinished  # noqa: E402

TINY = """
import random

def test_reports(campaign):
    campaign.did(kills=3, pushes=campaign.seed(1))

def test_fails_for_odd_seeds(campaign):
    assert campaign.seed(1) % 2 == 0
"""


@pytest.fixture
def tiny(tmp_path):
    """A campaign of two tests."""
    (tmp_path / "test_tiny.py").write_text(TINY)
    (tmp_path / "conftest.py").write_text((ROOT / "tests" / "conftest.py").read_text())
    return Campaign("nothing", (str(tmp_path / "test_tiny.py"),), "kills", 9, {}, {"extra": 2})


def test_a_round_has_its_seed_and_the_counts_that_its_tests_report(tiny, tmp_path):
    done = play("tiny", tiny, 40, tmp_path / "log")
    assert (done.campaign, done.seed, done.failed) == ("tiny", 40, 0)
    assert done.counts == {"kills": 3, "pushes": 40, "tests": 2, "extra": 2}
    assert not (tmp_path / "log").exists()


def test_a_failure_is_counted_and_its_output_is_kept(tiny, tmp_path):
    done = play("tiny", tiny, 41, tmp_path / "log")
    assert (done.failed, done.counts) == (1, {"kills": 3, "pushes": 41, "tests": 1})
    assert "test_fails_for_odd_seeds" in (tmp_path / "log").read_text()


def test_tests_that_cannot_run_at_all_are_a_failure(tiny, tmp_path):
    missing = tiny._replace(tests=(str(tmp_path / "absent.py"),))
    assert play("tiny", missing, 2, tmp_path / "log").failed == 1


def test_a_run_goes_on_where_it_was_stopped(tiny, tmp_path):
    path = tmp_path / "what" / "ran.jsonl"
    assert read(path) == []
    done = Round("tiny", 2, {"kills": 4, "tests": 2}, 0, 1.5, "c0ffee")
    append(path, done)
    with path.open("a") as file:
        file.write(json.dumps(done._asdict())[:20])  # killed while it wrote
    append(path, done._replace(seed=3))
    assert read(path) == [done, done._replace(seed=3)]
    assert total(read(path), "tiny", tiny) == 8
    other = tiny._replace(release=100)
    assert list(unfinished({"tiny": tiny, "other": other}, read(path))) == ["other", "tiny"]
    append(path, done._replace(seed=4))
    assert list(unfinished({"tiny": tiny}, read(path))) == []


def test_the_table_says_what_ran_and_what_failed(tiny):
    rounds = [Round("tiny", seed, {"kills": 3, "pushes": 7, "tests": 1}, 1, 1.0, "c") for seed in (1, 2)]
    lines = as_table({"tiny": tiny, "other": tiny}, rounds).splitlines()
    assert "| `tiny` | nothing: [test_tiny.py](" in lines[2]
    assert lines[2].endswith("| 6 of 9 kills, 14 pushes | 2 rounds | **2 failed** |")
    assert lines[3].endswith("| 0 of 9 kills | 0 rounds | not run yet |")


def test_a_round_that_was_run_again_counts_once_and_its_failure_is_not_forgotten(tiny):
    failed = Round("tiny", 1, {"kills": 1, "tests": 1}, 1, 1.0, "c")
    rounds = [failed, Round("tiny", 2, {"kills": 3, "tests": 2}, 0, 1.0, "c"), failed._replace(failed=0)]
    assert total(rounds, "tiny", tiny) == 4
    line = as_table({"tiny": tiny}, rounds).splitlines()[2]
    assert line.endswith("| 4 of 9 kills | 2 rounds | nothing failed, 1 failed before they were run again |")


def test_failed_rounds_are_run_again_with_their_seeds(tiny, tmp_path, monkeypatch, capsys):
    path = tmp_path / "ran.jsonl"
    for seed, failed in ((40, 1), (41, 1), (42, 0)):
        append(path, Round("tiny", seed, {"kills": 3, "tests": 1}, failed, 1.0, "c"))
    monkeypatch.setattr("tests.torture.__main__.CAMPAIGNS", {"tiny": tiny})
    assert main(["--file", str(path), "--again"]) == 1  # seed 41 fails again
    assert [(each.seed, each.failed) for each in read(path)[3:]] == [(40, 0), (41, 1)]
    assert "tiny: seed 40 ... ok" in capsys.readouterr().out


def test_every_campaign_finds_tests():
    command = [sys.executable, "-m", "pytest", "--collect-only", "-qq", "-p", "no:cacheprovider", "-m", "not parity"]
    wanted = [each for campaign in CAMPAIGNS.values() for each in campaign.tests]
    found = subprocess.run([*command, *wanted], cwd=ROOT, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout
    files = {line.partition(":")[0] for line in found.stdout.splitlines()}
    assert {each.partition(":")[0] for each in wanted} <= files


def test_the_committed_rounds_are_those_of_the_table_in_the_guarantees():
    table = (ROOT / "docs" / "guarantees.md").read_text().split("<!-- torture:begin -->\n")[1]
    rounds = read(ROOT / "tests" / "torture" / "rounds.jsonl")
    assert table.split("<!-- torture:end -->")[0] == as_table(CAMPAIGNS, rounds)
