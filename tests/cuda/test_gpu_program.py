"""`make gpu` in the simulator: tests its questions, its budget and its journal, not its times."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.gpu.journal import Finding, Journal, Record
from benchmarks.gpu.kept import Launch, compared
from benchmarks.gpu.report import text
from benchmarks.gpu.stages import STAGES, chosen

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_SECONDS = 1200


def started(*arguments, **environment):
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "benchmarks.gpu", *map(str, arguments)],
        env={**os.environ, "OMP_WAIT_POLICY": "passive", "NUMBA_ENABLE_CUDASIM": "1", **environment},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def run(*arguments, **environment):
    """Return the exit status, what was printed, and the records."""
    with started(*arguments, **environment) as process:
        output, errors = process.communicate(timeout=PATIENCE_SECONDS)
    return process.returncode, output, errors


def records_in(folder):
    (path,) = folder.glob("*.jsonl")
    return Journal(path).records()


def test_without_a_gpu_the_program_says_so():
    status, _, errors = run(NUMBA_ENABLE_CUDASIM="0", CUDA_VISIBLE_DEVICES="")
    assert status == 2
    assert "finds no GPU" in errors
    assert "Traceback" not in errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--stages", "speed,sped"], "there is no stage 'sped': choose among machine, first, compile"),
        (["--budget-seconds", "0"], "must be above 0, got 0"),
        (["--budget-seconds", "nan"], "must be above 0, got nan"),
    ],
)
def test_an_argument_that_means_nothing_is_refused(arguments, message):
    status, _, errors = run(*arguments)
    assert status == 2
    assert message in errors


@pytest.mark.timeout(PATIENCE_SECONDS + 60)
def test_in_the_simulator_every_question_is_answered_and_every_bit_equals_the_cpus(tmp_path):
    status, output, errors = run("--output", tmp_path, "--budget-seconds", PATIENCE_SECONDS)
    assert status == 0, output + errors
    records = records_in(tmp_path)
    ended = [record for record in records if record.outcome != "begun"]
    assert [record for record in ended if record.outcome in ("bad", "not run")] == []
    assert {record.stage for record in ended} == {stage.name for stage in chosen(None)}
    compared_bits = [record for record in ended if "every bit is the same" in record.said]
    assert len(compared_bits) > 80
    assert all(record.data["elements"] > 0 for record in compared_bits)
    refused = [record for record in ended if record.item.startswith("refused")]
    assert len(refused) >= 5
    timed = [record for record in ended if record.stage == "speed" and "timings" in record.data]
    assert {timing["contestant"] for record in timed for timing in record.data["timings"]} == {"numba-adam"}
    (saved,) = tmp_path.glob("*.txt")
    assert saved.read_text() == text(records)
    assert output.splitlines()[-2] == saved.read_text().splitlines()[-1]


@pytest.mark.timeout(PATIENCE_SECONDS + 60)
def test_when_the_time_is_up_nothing_begins_and_the_rest_is_named(tmp_path):
    status, output, errors = run("--output", tmp_path, "--budget-seconds", "0.001", "--stages", "machine,doors")
    assert status == 0, output + errors
    records = records_in(tmp_path)
    assert records
    assert all(record.outcome == "not run" for record in records)
    assert {record.stage for record in records} == {"machine", "doors"}
    assert "0 measured" in text(records)


@pytest.mark.timeout(PATIENCE_SECONDS + 60)
def test_a_run_that_is_killed_leaves_all_that_it_found(tmp_path):
    """Kill -9 of all its processes, as at the end of a lease."""
    process = started("--output", tmp_path, "--budget-seconds", PATIENCE_SECONDS, "--stages", "doors")
    found = [process.stdout.readline() for _ in range(3)]
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=PATIENCE_SECONDS)
    records = records_in(tmp_path)
    assert all("good" in line for line in found)
    assert sum(record.outcome == "good" for record in records) >= 3
    assert records[0].item in text(records)


def test_the_beginning_of_a_line_is_not_read(tmp_path):
    journal = Journal(tmp_path / "run.jsonl")
    journal.add(Record("speed", "one", "noted", "1 ms"))
    journal.add(Record("speed", "two", "begun", lane=1))
    with journal.path.open("ab") as file:
        file.write(json.dumps({"stage": "speed", "item": "three"}).encode()[:20])
    assert [record.item for record in journal.records()] == ["one", "two"]
    assert (journal.unfinished("speed", 0), journal.unfinished("speed", 1)) == (None, "two")
    assert "cut during: speed, two" in text(journal.records())


def test_a_process_that_dies_costs_one_item(tmp_path, monkeypatch):
    """The stage is one of three questions; the second one kills its process, the third one raises an exception."""
    from benchmarks.gpu import runner

    (tmp_path / "dying.py").write_text(
        "import os, signal\n"
        "from benchmarks.gpu.journal import Finding\n"
        "from benchmarks.gpu.stages import Item\n"
        "def die():\n"
        "    os.kill(os.getpid(), signal.SIGSEGV)\n"
        "def items():\n"
        "    yield Item('one', lambda: Finding('fine', True))\n"
        "    yield Item('two', die)\n"
        "    yield Item('three', lambda: 1 / 0)\n"
        "    yield Item('four', lambda: Finding('fine too', True))\n"
    )
    (tmp_path / "sitecustomize.py").write_text(
        "import sys, dying\n"
        "from benchmarks.gpu import stages\n"
        "sys.modules['benchmarks.gpu.dying'] = dying\n"
        "stages.BY_NAME['dying'] = stages.Stage('dying', 1.0, 'dying')\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{ROOT}")
    monkeypatch.setenv("NUMBA_ENABLE_CUDASIM", "1")
    journal, said = Journal(tmp_path / "run.jsonl"), []
    stage = STAGES[0]._replace(name="dying", module="dying")
    runner.Runner(journal, PATIENCE_SECONDS, tmp_path / "cache", said.append).run([stage])
    outcomes = {record.item: (record.outcome, record.said) for record in journal.results()}
    assert outcomes["one"] == ("good", "fine")
    assert outcomes["two"] == ("bad", "the process ended with status -11.")
    assert outcomes["three"][0] == "bad"
    assert "ZeroDivisionError at dying.py:9: division by zero" in outcomes["three"][1]
    assert outcomes["four"] == ("good", "fine too")
    assert len(said) == 4


def test_a_finding_is_good_bad_or_a_remark():
    assert [Finding("", is_good).outcome for is_good in (True, False, None)] == ["good", "bad", "noted"]


@pytest.mark.parametrize(
    ("cold", "warm", "is_kept"),
    [((0, 1), (1, 0), True), ((0, 1), (0, 1), False), ((1, 0), (1, 0), False), ((0, 0), (0, 0), False)],
)
def test_a_kernel_is_cached_by_one_process_and_loaded_by_the_next(cold, warm, is_kept):
    """In the last case, the CUDA package counts neither."""
    first, second = (Launch("lanes", seconds, *counts) for seconds, counts in ((1.5, cold), (0.25, warm)))
    (found,) = compared([first], [second])
    assert (found.is_kept, found.cold_seconds, found.warm_seconds) == (is_kept, 1.5, 0.25)


def test_processes_that_launched_other_kernels_are_not_compared():
    one, other = (Launch(name, 1.0, 0, 1) for name in ("lanes", "total"))
    with pytest.raises(ValueError, match="expected all"):
        compared([one], [other])
