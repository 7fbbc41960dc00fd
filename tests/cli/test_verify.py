"""`numba-adam verify` finds every damaged file of a data folder, and changes nothing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from numba_adam.cli import main
from numba_adam.client import ParameterClient
from numba_adam.server.config import ServerConfig
from numba_adam.server.embedded import Server

GRADS = {"w": np.linspace(-1, 1, 300, dtype=np.float32), "b": np.ones(3, np.float32)}
LEVELS = {"kept": "process", "stored": "disk"}


@pytest.fixture
def server(tmp_path: Path) -> Server:
    (tmp_path / "memory").mkdir()
    return Server(
        ServerConfig(
            listen="127.0.0.1:0",
            data_dir=tmp_path / "data",
            memory_dir=tmp_path / "memory",
            snapshot_interval_seconds=0,
            snapshot_every_pushes=0,
        )
    )


@pytest.fixture
def folder(server: Server, tmp_path: Path) -> Path:
    """A data folder with two models, two snapshots of each, and a journal."""
    with server, ParameterClient(server.address, timeout_seconds=800) as client:
        for name, level in LEVELS.items():
            client.create_model(name, GRADS, amsgrad=name == "kept", durability=level).push(GRADS)
    return tmp_path / "data"


def content(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_whole_folder_is_intact_and_stays_as_it_is(folder, capsys) -> None:
    before = content(folder)
    assert main(["verify", str(folder)]) == 0
    shown = capsys.readouterr().out
    assert "ok       run: the record of the last run\nok       manifest: the record of the last stop\n" in shown
    for name in LEVELS:
        assert f"ok       models/{name}/00000002.snapshot: version 1 of state " in shown
    assert shown.endswith("files are intact\n")
    assert content(folder) == before


def test_each_damaged_file_is_named(folder, capsys) -> None:
    files = [path for path in folder.rglob("*") if path.suffix in (".snapshot", ".journal") or path.name == "manifest"]
    assert len(files) >= 5
    for path in files:
        raw = path.read_bytes()
        for position in (0, len(raw) // 2, len(raw) - 1) if path.suffix == ".snapshot" else (len(raw) // 2,):
            path.write_bytes(raw[:position] + bytes([raw[position] ^ 1]) + raw[position + 1 :])
            status = main(["verify", str(folder), "--json"])
            answer = json.loads(capsys.readouterr().out)
            damaged = [each["path"] for each in answer["files"] if not each["is_intact"]]
            if path.suffix == ".journal":  # a torn end is no damage: a power failure leaves one
                assert (status, damaged) in ((1, [str(path.relative_to(folder))]), (0, []))
            else:
                assert (status, answer["ok"], damaged) == (1, False, [str(path.relative_to(folder))])
        path.write_bytes(raw)
    assert main(["verify", str(folder)]) == 0


def test_a_folder_in_use_or_of_something_else_is_refused(server, tmp_path, capsys) -> None:
    (tmp_path / "other").mkdir()
    for name, words in (("other", "is not a data folder"), ("nothing", "is not a data folder")):
        assert main(["verify", str(tmp_path / name)]) == 1
        assert words in capsys.readouterr().err
    with server:
        assert main(["verify", str(tmp_path / "data")]) == 1
        assert "a server uses it and changes its files; stop the server, or verify a copy" in capsys.readouterr().err
