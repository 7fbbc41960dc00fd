"""The real demonstration: it starts and kills processes, and reports what happened."""

import queue
import re
from pathlib import Path

import numpy as np
import pytest

from numba_adam.cli import main
from numba_adam.demo import digits, network, story, worker
from numba_adam.demo.picture import draw
from numba_adam.demo.processes import ServerProcess, WorkerProcess
from numba_adam.demo.story import Plan, Push, Record, play
from numba_adam.errors import ServerUnavailableError, ServiceError

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.mark.campaign
@pytest.mark.parametrize("durability", ["process", "memory"])
def test_the_command_trains_through_a_crash_and_reaches_97_percent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], durability: str
) -> None:
    """Runs the command once; the recorded history has no gaps before and after the crash."""
    records: list[Record] = []
    watched: list[Push] = []

    def play(plan: story.Plan, say: story.Say, watch: story.Watch) -> Record:
        def watch_both(push: Push) -> None:
            watched.append(push)
            watch(push)

        records.append(played(plan, say, watch_both))
        return records[-1]

    played = story.play
    monkeypatch.setattr(story, "play", play)
    picture = tmp_path / "digits.png"
    assert main(["demo", "--seed", "1", "--workers", "3", "--out", str(picture), "--durability", durability]) == 0
    shown = capsys.readouterr().out
    assert "kill -9   of the server at version" in shown
    assert re.search(r"server    is back as process \d+ after", shown)
    if durability == "process":
        assert re.search(r"crash     lost no push; training went on from version \d+", shown)
    else:
        assert re.search(r"crash     lost [1-9]\d* pushes after version \d+; training repeated them", shown)
    assert re.search(r"speed     [1-9]\d* pushes per second", shown)
    rewinds = len(re.findall(r"worker \d  continued from version \d+ after a pull", shown))
    assert rewinds == (0 if durability == "process" else 3)
    accuracy = re.search(r"accuracy  ([\d.]+)%", shown)
    assert accuracy is not None
    assert float(accuracy[1]) >= 97.0
    assert picture.read_bytes().startswith(PNG)

    (record,) = records
    assert watched == record.pushes
    assert {push.worker for push in record.pushes} == {0, 1, 2}
    assert record.crash is not None
    if durability == "process":
        (versions,) = (sorted(push.version for push in part) for part in record.parts)
        assert versions == list(range(1, versions[-1] + 1)), "each version was made by one push, and none was lost"
        assert 0 < record.restored < versions[-1]
        assert record.lost == 0
        return
    before, after = (sorted(push.version for push in part) for part in record.parts)
    assert before == list(range(1, before[-1] + 1)), "each version was made by one push"
    assert after == list(range(record.restored + 1, after[-1] + 1))
    assert 0 < record.restored < before[-1]
    assert record.lost == before[-1] - record.restored
    assert after[-1] >= 4000


@pytest.mark.campaign
def test_the_modes_are_drawn_beside_each_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "modes.png"
    assert main(["demo", "--modes", "--workers", "3", "--steps", "900", "--out", str(picture)]) == 0
    shown = capsys.readouterr().out
    found = re.findall(r"(async|sync|ssp) +[\d.]+ s for (\d+) pushes, ([\d + ]+) by worker; accuracy ([\d.]+)%", shown)
    assert [mode for mode, *_ in found] == ["async", "sync", "ssp"]
    shares = {mode: [int(share) for share in by_worker.split(" + ")] for mode, _, by_worker, _ in found}
    assert shares["sync"] == [300, 300, 300]
    assert max(shares["ssp"]) - min(shares["ssp"]) <= worker.STALENESS + 1
    assert all(900 <= int(pushes) <= 902 and float(accuracy) > 90 for _, pushes, _, accuracy in found)
    assert picture.read_bytes().startswith(PNG)


@pytest.mark.campaign
@pytest.mark.parametrize("mode", ["sync", "ssp"])
def test_a_kill_loses_no_push_in_any_mode(mode: str) -> None:
    lines: list[str] = []
    watched: list[Push] = []
    record = play(Plan(steps=600, workers=3, mode=mode), lines.append, watched.append)
    assert watched == record.pushes
    assert any(line.startswith("kill -9") for line in lines)
    assert record.lost == 0
    versions = sorted(push.version for push in record.pushes)
    each = 3 if mode == "sync" else 1
    assert versions == [version for version in range(1, versions[-1] + 1) for _ in range(each)]


def test_a_run_without_a_crash_can_be_drawn(tmp_path: Path) -> None:
    record = Record(pushes=[Push(i / 10, 0, i + 1, 1 / (i + 1), "a") for i in range(40)], correct=1, tested=2)
    draw(record, ["NumPy"], tmp_path / "short.png")
    assert (tmp_path / "short.png").read_bytes().startswith(PNG)


def test_a_server_that_cannot_start_is_reported_with_its_log(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file where the server wants a folder")
    with pytest.raises(ServerUnavailableError, match=r"did not start; the end of its log:\n(.|\n)*data"):
        ServerProcess(tmp_path, snapshot_every_pushes=10).start()


def test_a_failed_worker_is_reported_with_its_log(tmp_path: Path) -> None:
    events: queue.Queue = queue.Queue()
    process = WorkerProcess(0, [], tmp_path, events)
    exit_event = events.get(timeout=800)
    process.end()
    assert (exit_event.kind, exit_event.values) == ("exit", {"status": 2})
    with pytest.raises(ServiceError, match=r"worker 0 ended with status 2(.|\n)*are required: --server"):
        raise process.error(2)


def test_the_gradient_is_the_slope_of_the_loss() -> None:
    random = np.random.default_rng(3)
    training, _ = digits.load()
    batch = training.batch(20, random)
    batch = digits.Images(batch.pixels.astype(np.float64), batch.labels)
    params = {name: value.astype(np.float64) for name, value in network.initial_params(0).items()}
    _, gradients = network.loss_and_gradients(params, batch)
    for name, value in params.items():
        direction = random.standard_normal(value.shape)
        ahead, behind = (
            network.loss_and_gradients({**params, name: value + sign * 1e-6 * direction}, batch)[0] for sign in (1, -1)
        )
        assert (ahead - behind) / 2e-6 == pytest.approx((gradients[name] * direction).sum(), rel=1e-4)


def test_training_and_test_images_are_disjoint() -> None:
    training, test = digits.load()
    shards = [training.shard(index, 2) for index in range(2)]
    assert sum(len(shard.labels) for shard in shards) == len(training.labels) == 1437
    assert len(test.labels) == 360
    seen = {image.tobytes() for shard in shards for image in shard.pixels}
    assert not any(image.tobytes() in seen for image in test.pixels)


@pytest.mark.parity
def test_pytorch_computes_the_same_gradient_as_numpy() -> None:
    from numba_adam.demo import torch_network

    training, _ = digits.load()
    batch = training.batch(64, np.random.default_rng(0))
    params = network.initial_params(0)
    ours, theirs = network.loss_and_gradients(params, batch), torch_network.loss_and_gradients(params, batch)
    assert ours[0] == pytest.approx(theirs[0], rel=1e-5)
    for name in params:
        np.testing.assert_allclose(ours[1][name], theirs[1][name].numpy(), rtol=1e-4, atol=1e-6)


@pytest.mark.parity
def test_the_second_worker_uses_pytorch_where_it_is_installed() -> None:
    lines: list[str] = []
    watched: list[Push] = []
    record = play(Plan(steps=200), lines.append, watched.append)
    assert any(line.startswith("worker 1  PyTorch") for line in lines)
    assert {push.worker for push in watched} == {0, 1}
    assert record.lost == 0
