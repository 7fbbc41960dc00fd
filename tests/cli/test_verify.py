"""`numba-adam verify` finds every damaged file of a data folder, and changes nothing."""

from __future__ import annotations

import json
import os
import random
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from numba_adam.cli import main
from numba_adam.client import ParameterClient
from numba_adam.server.config import ServerConfig
from numba_adam.server.embedded import Server

GRADS = {"w": np.linspace(-1, 1, 1000, dtype=np.float32), "b": np.ones(3, np.float32)}
LEVELS = {"kept": "process", "stored": "disk"}
MARK = b"NBADREC1"  # each record of a journal begins with it


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
    """A data folder with every kind of file: two models with two snapshots each, journals, a deletion, a token."""
    with server, ParameterClient(server.address, timeout_seconds=800) as client:
        for name, level in LEVELS.items():
            client.create_model(name, GRADS, amsgrad=name == "kept", durability=level).push(GRADS)
        client.create_model("gone", GRADS, durability="memory")
        client.delete_model("gone")
    assert main(["token", "make", "alice", "--pull", "kept", "--data-dir", str(tmp_path / "data")]) == 0
    return tmp_path / "data"


def running(server: Server, tmp_path: Path, last: dict[str, Any]) -> Path:
    """Return a copy of the data folder after three pushes at the level `disk`, as a power failure would leave it."""
    with server, ParameterClient(server.address, timeout_seconds=800) as client:
        model = client.create_model("stored", GRADS, durability="disk")
        for grads in (GRADS, GRADS, last):
            model.push(grads)
        shutil.copytree(tmp_path / "data", tmp_path / "copy")
    return tmp_path / "copy"


def content(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def found(folder: Path, capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    """Return the findings. The exit status agrees with them."""
    capsys.readouterr()
    status = main(["verify", str(folder), "--json"])
    answer = json.loads(capsys.readouterr().out)
    assert answer["ok"] == all(each["is_intact"] for each in answer["files"]) == (status == 0)
    return answer["files"]


def damaged(folder: Path, capsys: pytest.CaptureFixture[str]) -> list[str]:
    return [each["path"] for each in found(folder, capsys) if not each["is_intact"]]


def flip(raw: bytes, position: int) -> bytes:
    return raw[:position] + bytes([raw[position] ^ 1]) + raw[position + 1 :]


def test_a_whole_folder_is_intact_and_stays_as_it_is(folder, capsys) -> None:
    before = content(folder)
    capsys.readouterr()
    assert main(["verify", str(folder)]) == 0
    shown = capsys.readouterr().out
    assert "ok       run: the record of the last run, with 2 models\n" in shown
    assert "ok       manifest: the record of the last stop, with 2 models\n" in shown
    assert "ok       deletions: 1 deletions\nok       tokens.json: 1 access tokens\n" in shown
    for name in LEVELS:
        assert f"ok       models/{name}/00000002.snapshot: version 1 of state " in shown
    assert shown.endswith("files are intact\n")
    assert content(folder) == before


def test_each_flipped_byte_of_each_file_is_found(folder, capsys) -> None:
    """After a clean stop. The journal's last file has one record, the others are said to be on disk by a later one."""
    names = {"lock", "run", "manifest", "deletions", "tokens.json"}
    files = [path for path in folder.rglob("*") if path.suffix in (".snapshot", ".journal") or path.name in names]
    assert len(files) == len(names) + 4 + 2
    chosen = random.Random(17)
    for path in files:
        raw, where = path.read_bytes(), str(path.relative_to(folder))
        for position in {0, len(raw) - 1, *chosen.sample(range(len(raw)), min(len(raw), 30))}:
            path.write_bytes(flip(raw, position))
            assert damaged(folder, capsys) == [where], position
        path.write_bytes(raw)
    assert damaged(folder, capsys) == []


def test_each_flipped_byte_of_an_acknowledged_record_is_damage(server, tmp_path, capsys) -> None:
    """A later record says that those before it were on disk, so zeros in them are no torn end."""
    folder = running(server, tmp_path, {"w": np.zeros(1000, np.float32), "b": None})
    (path,) = (folder / "models" / "stored").glob("*.journal")
    raw = path.read_bytes()
    last = raw.rindex(MARK)
    assert raw.count(MARK) == 4 + 1  # the beginning, the opened session, three pushes
    assert damaged(folder, capsys) == []
    for position in range(0, last, 23):
        path.write_bytes(flip(raw, position))
        assert damaged(folder, capsys) == ["models/stored/00000001.journal"], position
    for start in range(0, last, 512):  # a sector that reads as zeros
        path.write_bytes(raw[:start] + bytes(min(512, last - start)) + raw[min(start + 512, last) :])
        assert damaged(folder, capsys) == ["models/stored/00000001.journal"], start


@pytest.mark.parametrize(("last", "words"), [(1.0, "is damaged at offset"), (0.0, "is torn: a start cuts it off")])
def test_a_flipped_byte_of_the_last_record_is_damage_unless_it_looks_torn(last, words, server, tmp_path, capsys):
    """Nothing says that it was on disk. With zeros after its head of 56 bytes, it is as a power failure leaves one."""
    folder = running(server, tmp_path, {"w": np.full(1000, last, np.float32), "b": None})
    (path,) = (folder / "models" / "stored").glob("*.journal")
    raw = path.read_bytes()
    begin = raw.rindex(MARK)
    event_bytes, gradient_bytes = struct.unpack_from("<QQ", raw, begin + 8)
    assert gradient_bytes == 4000  # several sectors, wherever it begins: a flip leaves others zero
    end = begin + 56 + event_bytes  # where its gradient begins; a multiple of 8 ends the record
    for position in (begin, begin + 20, begin + 60, end - 9, end, end + 2000, end + 3999):
        path.write_bytes(flip(raw, position))
        (journal,) = [each for each in found(folder, capsys) if each["path"].endswith(".journal")]
        assert (words if position > begin + 56 else "is damaged at offset") in journal["found"], position
        assert str(begin) in journal["found"], position
    for size in range(begin + 1, end + 4000, 331):
        path.write_bytes(raw[:size])
        assert damaged(folder, capsys) == [], "a record that is cut short was never acknowledged"


def test_an_earlier_file_of_a_journal_that_ends_too_early_is_damage(folder, capsys) -> None:
    first, second = sorted((folder / "models" / "stored").glob("*.journal"))
    raw = first.read_bytes()
    for size in (0, 8, 100, len(raw) - 1):
        first.write_bytes(raw[:size])
        assert damaged(folder, capsys) == [str(first.relative_to(folder))], size
    first.write_bytes(raw)
    second.unlink()
    first.write_bytes(raw[:-1])
    assert damaged(folder, capsys) == []


def test_a_folder_that_cannot_be_written_is_verified(folder) -> None:
    """A backup is mounted read-only, and whoever verifies it may not be allowed to write."""
    command = [sys.executable, "-m", "numba_adam", "verify", str(folder)]
    if os.geteuid() == 0:  # root may write to any file, so the file system itself must be read-only
        mounts = 'mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && ! touch "$0/lock" && exec "$@"'
        command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", mounts, str(folder), *command]
    else:
        for path in (folder, *folder.rglob("*")):
            path.chmod(0o500 if path.is_dir() else 0o400)
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=800)
    if "unshare:" in done.stderr:
        pytest.skip(f"the system forbids mount namespaces: {done.stderr}")
    assert done.stdout.endswith("files are intact\n"), done.stderr + done.stdout
    assert done.returncode == 0


def test_a_model_without_a_snapshot_is_named(folder, capsys) -> None:
    shutil.rmtree(folder / "models" / "kept")
    assert damaged(folder, capsys) == ["models/kept"]


def test_files_of_earlier_releases_without_checksums_are_said_to_be_so(folder, capsys) -> None:
    for name in ("deletions", "tokens.json"):
        values = json.loads((folder / name).read_text())
        del values["xxh3_64"]
        (folder / name).write_text(json.dumps(values))
    records = {each["path"]: each for each in found(folder, capsys)}
    for name in ("deletions", "tokens.json"):
        assert records[name]["is_intact"]
        assert records[name]["found"].endswith("readable, without a checksum: an earlier release wrote it")


def test_a_folder_in_use_or_of_something_else_is_refused(server, tmp_path, capsys) -> None:
    (tmp_path / "other").mkdir()
    for name, words in (("other", "is not a data folder"), ("nothing", "is not a data folder")):
        assert main(["verify", str(tmp_path / name)]) == 1
        assert words in capsys.readouterr().err
    with server:
        assert main(["verify", str(tmp_path / "data")]) == 1
        assert "a server uses it and changes its files; stop the server, or verify a copy" in capsys.readouterr().err
