"""The demonstration, for real: processes are started and killed, and what it shows is what happened."""

import queue
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from numba_adam.demo import digits, network
from numba_adam.demo.picture import draw
from numba_adam.demo.processes import ServerProcess, WorkerProcess
from numba_adam.demo.story import Plan, Push, Record, framework, play
from numba_adam.errors import ServerUnavailableError, ServiceError

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.mark.slow
def test_the_command_trains_through_a_crash_and_reads_97_percent_of_the_test_images(tmp_path: Path) -> None:
    picture = tmp_path / "digits.png"
    command = [sys.executable, "-m", "numba_adam", "demo", "--seed", "1", "--out", str(picture)]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True, timeout=800)
    assert "kill -9   of the server at version" in run.stdout
    assert re.search(r"server    is back as process \d+ after", run.stdout)
    assert re.search(r"crash     cost [1-9]\d* pushes", run.stdout)
    assert re.search(r"speed     [1-9]\d* pushes per second", run.stdout)
    accuracy = re.search(r"accuracy  ([\d.]+)%", run.stdout)
    assert accuracy is not None
    assert float(accuracy[1]) >= 97.0
    assert picture.read_bytes().startswith(PNG)


def test_what_is_recorded_is_a_history_without_gaps_before_and_after_the_crash(tmp_path: Path) -> None:
    story: list[str] = []
    watched: list[Push] = []
    record = play(Plan(workers=3, steps=300), story.append, watched.append)
    assert watched == record.pushes
    before, after = (sorted(push.version for push in part) for part in record.parts)
    assert before == list(range(1, before[-1] + 1)), "each version was made by one push"
    assert after == list(range(record.restored + 1, after[-1] + 1))
    assert 0 < record.restored < before[-1]
    assert record.lost == before[-1] - record.restored
    assert after[-1] >= 300
    assert {push.worker for push in record.pushes} == {0, 1, 2}
    assert record.accuracy > 0.8
    assert sum("pulled it and went on" in line for line in story) == 3
    draw(record, [framework(worker) for worker in range(3)], tmp_path / "three.png")
    assert (tmp_path / "three.png").read_bytes().startswith(PNG)


def test_a_run_too_short_for_a_crash_can_be_drawn_too(tmp_path: Path) -> None:
    record = Record(pushes=[Push(i / 10, 0, i + 1, 1 / (i + 1), "a") for i in range(40)], correct=1, tested=2)
    draw(record, ["NumPy"], tmp_path / "short.png")
    assert (tmp_path / "short.png").read_bytes().startswith(PNG)


def test_a_server_that_cannot_start_is_an_error_with_the_end_of_its_log(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file where the server wants a folder")
    with pytest.raises(ServerUnavailableError, match=r"did not start; the end of its log:\n(.|\n)*data"):
        ServerProcess(tmp_path, snapshot_every_pushes=10).start()


def test_a_worker_that_fails_is_an_error_with_its_last_words(tmp_path: Path) -> None:
    events: queue.Queue = queue.Queue()
    worker = WorkerProcess(0, [], tmp_path, events)
    exit_event = events.get(timeout=800)
    worker.end()
    assert (exit_event.kind, exit_event.values) == ("exit", {"status": 2})
    with pytest.raises(ServiceError, match=r"worker 0 ended with status 2(.|\n)*are required: --server"):
        raise worker.error(2)


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


def test_workers_and_test_never_see_the_same_image() -> None:
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
    story: list[str] = []
    watched: list[Push] = []
    record = play(Plan(steps=200), story.append, watched.append)
    assert any(line.startswith("worker 1  PyTorch") for line in story)
    assert {push.worker for push in watched} == {0, 1}
    assert record.lost > 0
