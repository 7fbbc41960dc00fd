"""`serve`, `status` and `snapshot` with a real server behind them."""

import doctest
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from numba_adam.cli import connection, main, status
from numba_adam.client import ParameterClient
from numba_adam.server.config import ServerConfig
from numba_adam.server.embedded import Server


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(ServerConfig(listen="127.0.0.1:0", data_dir=tmp_path / "data"))
    server.start()
    yield server
    server.stop()


def train(address: str, pushes: int, durability: str = "process") -> None:
    with ParameterClient(address, timeout_seconds=800) as client:
        params = {"slope": np.zeros((2, 3), np.float32), "offset": np.zeros(4, np.float32)}
        model = client.create_model("line", params, durability=durability)
        for _ in range(pushes):
            model.push({"slope": np.ones((2, 3), np.float32), "offset": None})


@pytest.mark.parametrize(("durability", "loss"), [("memory", "a crash"), ("process", "a stop of the machine")])
def test_status_shows_the_pushes_that_would_be_lost(
    server: Server, capsys: pytest.CaptureFixture[str], durability: str, loss: str
) -> None:
    train(server.address, 3, durability)
    assert main(["status", "--server", server.address]) == 0
    shown = capsys.readouterr().out
    assert f"server     {server.address}, numba-adam " in shown
    assert "model      line: 10 parameters in 2 arrays of float32" in shown
    assert f"  version  3, of which {loss} would lose 3 (durability {durability})" in shown
    assert "  pushes   3 applied, 0 repeated, 0 rejected" in shown


def test_status_of_a_server_without_models(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "--server", server.address]) == 0
    assert capsys.readouterr().out.endswith("\nno models\n")


def test_status_as_json_has_every_field(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    train(server.address, pushes=1)
    assert main(["status", "--server", server.address, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    (model,) = answer["models"]
    assert model["pushes_applied"] == 1
    assert model["model"]["shapes"] == {"slope": [2, 3], "offset": [4]}
    assert model["model"]["dtype"] == "float32"
    assert model["model"]["hyperparameters"]["betas"] == [0.9, 0.999]
    assert answer["memory_used_bytes"] > 0


def test_snapshot_saves_the_current_version(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    train(server.address, pushes=2)
    assert main(["snapshot", "--server", server.address, "--model", "line"]) == 0
    assert capsys.readouterr().out.startswith("line: version 2, ")
    main(["status", "--server", server.address])
    assert "of which a stop of the machine would lose 0" in capsys.readouterr().out
    assert main(["snapshot", "--server", server.address, "--json"]) == 0
    (snapshot,) = json.loads(capsys.readouterr().out)
    assert (snapshot["model"], snapshot["version"]) == ("line", 2)


def test_snapshot_of_an_unknown_model_is_an_error(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["snapshot", "--server", server.address, "--model", "nothing"]) == 1
    shown = capsys.readouterr().err
    assert shown.startswith("numba-adam: ")
    assert "'nothing'" in shown


def test_serve_prints_its_address_and_stops_on_a_signal(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "numba_adam",
        "serve",
        "--listen",
        "127.0.0.1:0",
        "--data-dir",
        str(tmp_path / "d"),
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        words = process.stdout.readline().split()
        assert words[:3] == ["numba-adam:", "serving", "on"]
        train(words[3], pushes=2)
        process.send_signal(signal.SIGTERM)
        rest, errors = process.communicate(timeout=800)
    finally:
        process.kill()
        process.wait()
    assert (process.returncode, rest) == (0, ""), errors


def test_serve_on_an_address_in_use_is_one_clear_error(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", "--listen", server.address, "--data-dir", str(tmp_path / "other")]) == 1
    assert server.address in capsys.readouterr().err


@pytest.mark.parametrize("module", [connection, status])
def test_examples_in_docstrings_run(module: ModuleType) -> None:
    results = doctest.testmod(module)
    assert results.attempted > 0
    assert results.failed == 0


def test_status_shows_the_formats_of_a_models_state(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    params = {"w": np.zeros(4, np.float32)}
    with ParameterClient(server.address, timeout_seconds=800) as client:
        client.create_model("small", params, state_dtype="8bit", seed=7, ema_decay=0.999)
    assert main(["status", "--server", server.address]) == 0
    shown = capsys.readouterr().out
    assert "  state    moments in 8bit, seed 7, an average of the weights (ema_decay 0.999)\n" in shown
    assert main(["status", "--server", server.address, "--json"]) == 0
    (model,) = json.loads(capsys.readouterr().out)["models"]
    assert (model["model"]["options"]["state_dtype"], model["model"]["options"]["ema_decay"]) == ("8bit", 0.999)


def test_set_changes_settings_and_status_shows_them(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    train(server.address, pushes=2)
    wave = '{"cosine": {"begin": 0.1, "end": 0.0, "steps": 4}}'
    values = [f"lr={wave}", "weight_decay=0.1", "decoupled_weight_decay=true", "betas=0.8,0.9", "max_grad_norm=1.5"]
    assert main(["set", "--server", server.address, "line", *values, "--freeze", "offset"]) == 0
    assert capsys.readouterr().out == "line: change 1, for every push after version 2\n"
    assert main(["status", "--server", server.address]) == 0
    shown = capsys.readouterr().out
    assert "  setting  lr 0.05 now, by Cosine(begin=0.1, end=0.0, steps=4), betas 0.8 and 0.9" in shown
    assert "weight_decay 0.1 decoupled" in shown
    assert "  setting  max_grad_norm 1.5" in shown
    assert "  frozen   offset" in shown
    assert "  changed  1 times, last at version 2" in shown
    main(["set", "--server", server.address, "line", "max_grad_norm=none", "--unfreeze", "offset", "--json"])
    assert json.loads(capsys.readouterr().out) == {"model": "line", "change": 2, "version": 2}
    main(["status", "--server", server.address, "--json"])
    settings = json.loads(capsys.readouterr().out)["models"][0]["model"]["settings"]
    assert (settings["max_grad_norm"], settings["frozen"], settings["change"]) == (None, [], 2)
    assert settings["groups"][0]["schedule"] == json.loads(wave)


@pytest.mark.parametrize(
    "words", [["lr"], ["speed=1"], ["lr=fast"], ["lr=-1"], ["betas=1"], ["maximize=maybe"], ["lr={}"], []]
)
def test_set_refuses_what_it_cannot_read(server: Server, capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    train(server.address, pushes=0)
    assert main(["set", "--server", server.address, "line", *words]) == 1
    assert capsys.readouterr().err.startswith("numba-adam: ")
