"""`numba-adam restore` goes back to a kept snapshot, reported as a rewind, and removes nothing."""

import dataclasses
import json

import numpy as np
import pytest

from numba_adam.cli import main
from numba_adam.errors import ConfigurationError, SnapshotError
from numba_adam.ps.v1 import model_pb2
from numba_adam.ps.v1 import parameter_service_pb2 as pb
from numba_adam.ps.v1.error_pb2 import Reason
from numba_adam.server.embedded import Server

LEVELS = {
    "memory": model_pb2.DURABILITY_MEMORY,
    "process": model_pb2.DURABILITY_PROCESS,
    "disk": model_pb2.DURABILITY_DISK,
}


@pytest.fixture
def memory(tmp_path):
    (tmp_path / "memory").mkdir()
    return tmp_path / "memory"


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "data"


@pytest.fixture
def serve(processes, folder, memory):
    return lambda: processes(folder, memory_dir=str(memory), snapshots_kept=10)


@pytest.fixture
def restore(folder, memory):
    """Runs the command; returns its exit status."""
    return lambda *words, path=folder: main(["restore", str(path), *map(str, words), "--memory-dir", str(memory)])


@pytest.fixture
def train(serve, peers, params, grads_of):
    """Runs a server with two models, and takes a snapshot after each push; returns what each version was."""

    def run(level, *, is_killed):
        process = serve()
        peer = peers(process.address)
        for name in ("model", "other"):
            peer.create(params, name, durability=LEVELS[level])
        worker, pulled = peer.session(), [peer.pull()]
        for seed in range(4):
            worker.push(grads_of(params, np.random.default_rng(seed)))
            pulled.append(peer.pull())
            if seed < 3:  # the last push is in no snapshot if the server is killed
                peer.stub.Snapshot(pb.SnapshotRequest(model="model"))
        other = peer.state("other")
        if is_killed:
            process.kill()
        else:
            assert process.stop() == 0
        return pulled, worker, other

    return run


def content(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def values(arrays):
    return {name: array.tobytes() for name, array in arrays.items()}


@pytest.mark.parametrize("is_killed", [False, True], ids=["stopped", "killed"])
@pytest.mark.parametrize("level", LEVELS)
def test_a_restored_snapshot_is_the_state_of_the_next_start(
    level, is_killed, train, restore, serve, peers, params, grads_of, folder, refused, capsys
):
    pulled, worker, other = train(level, is_killed=is_killed)
    if level == "process" and is_killed:  # what the killed server left is saved first, as the message says
        before = content(folder)
        assert restore("model", "--snapshot", 2) == 1
        assert "start the server and stop it, which saves that state as a snapshot" in capsys.readouterr().err
        assert content(folder) == before
        assert serve().stop() == 0
    files = content(folder)
    assert restore("model", "--snapshot", 2) == 0
    shown = capsys.readouterr().out
    assert "the next server starts it from snapshot 2, version 1, as a rewind with a new state id" in shown
    kept = content(folder)
    assert sorted(kept.values()) == sorted([*files.values(), kept["models/model/restored"]])  # nothing is removed
    assert main(["verify", str(folder)]) == 0
    process = serve()
    peer = peers(process.address)
    state = peer.state()
    assert (state.version, state.state_id != pulled[1].state.state_id) == (1, True)
    assert values(peer.pull().arrays) == values(pulled[1].arrays)
    assert "numba-adam restore went back to snapshot 2" in process.log.read_text()
    if level != "memory" or not is_killed:  # the other model went on
        assert peer.state("other") == other
    worker.peer = peer
    grads = grads_of(params, np.random.default_rng(1))
    assert refused(lambda: worker.push(grads)).detail.reason == Reason.REASON_REWOUND
    peer.session(worker_id="next").push(grads)  # the same gradient as then: the moments were restored too
    assert values(peer.pull().arrays) == values(pulled[2].arrays)
    assert process.stop() == 0
    again = peers(serve().address)
    assert (again.state().version, again.state().state_id) == (2, state.state_id)  # a restart is no second rewind


def test_without_a_number_the_snapshots_are_listed_and_nothing_changes(train, restore, folder, capsys):
    pulled, *_ = train("memory", is_killed=False)
    before = content(folder)
    assert restore("model") == 0
    lines = capsys.readouterr().out.splitlines()
    state = pulled[0].state.state_id
    assert [line.split(", ")[0] for line in lines] == [
        f"snapshot {number}: version {number - 1} of state {state}" for number in range(1, 6)
    ]
    assert restore("model", "--json") == 0
    assert [each["version"] for each in json.loads(capsys.readouterr().out)["snapshots"]] == [0, 1, 2, 3, 4]
    assert content(folder) == before


def test_the_newest_snapshot_can_be_restored_and_a_second_choice_counts(train, restore, serve, peers, folder):
    """The journal goes on after the newest snapshot, and is not used."""
    pulled, *_ = train("disk", is_killed=True)
    assert restore("model", "--snapshot", 4) == 0
    assert restore("model", "--snapshot", 3) == 0
    assert {path.name for path in (folder / "models" / "model").glob("set-aside-*")} == {
        "set-aside-0001",
        "set-aside-0002",
    }
    process = serve()
    assert values(peers(process.address).pull().arrays) == values(pulled[2].arrays)
    process.kill()
    assert peers(serve().address).state().version == 2


def test_a_restoration_can_be_undone_before_the_next_start(train, restore, serve, peers, folder):
    pulled, *_ = train("memory", is_killed=False)
    assert restore("model", "--snapshot", 1) == 0
    place = folder / "models" / "model"
    for path in (place / "set-aside-0001").iterdir():
        path.rename(place / path.name)
    (place / "restored").unlink()
    peer = peers(serve().address)
    assert peer.state().version == 4
    assert values(peer.pull().arrays) == values(pulled[4].arrays)


def test_an_interrupted_restoration_stops_the_start_and_can_be_repeated(train, restore, serve, peers, config, folder):
    pulled, *_ = train("memory", is_killed=False)
    assert restore("model", "--snapshot", 2) == 0
    place = folder / "models" / "model"
    (place / "set-aside-0001" / "00000005.snapshot").rename(place / "00000005.snapshot")
    with pytest.raises(SnapshotError, match=r"was interrupted, .* run it again with --snapshot 2"):
        Server(config)
    assert restore("model", "--snapshot", 2) == 0
    assert values(peers(serve().address).pull().arrays) == values(pulled[1].arrays)


def test_a_newer_state_in_another_memory_folder_stops_the_start(train, folder, memory, config, tmp_path):
    """The command was given another --memory-dir than the server, so it could not find what the killed one left."""
    train("process", is_killed=True)
    (tmp_path / "elsewhere").mkdir()
    words = ["restore", str(folder), "model", "--snapshot", "2", "--memory-dir", str(tmp_path / "elsewhere")]
    assert main(words) == 0
    left = content(memory)
    with pytest.raises(ConfigurationError, match=r"has a newer state, which a killed server left. To lose it, remove"):
        Server(dataclasses.replace(config, memory_dir=memory))
    assert content(memory) == left


def test_what_cannot_be_restored_changes_nothing(train, restore, serve, folder, tmp_path, capsys):
    train("disk", is_killed=False)
    path = folder / "models" / "model" / "00000002.snapshot"
    raw = path.read_bytes()
    path.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    before = content(folder)
    for words, message in (
        (("model", "--snapshot", 2), "the data's checksum differs"),
        (("model", "--snapshot", 99), "has no such snapshot; it has 1, 2, 3, 4"),
        (("nobody", "--snapshot", 1), "has no such model; it has 'model', 'other'"),
        (("nobody",), "has no such model"),
        (("../model",), "../model"),
    ):
        assert restore(*words) == 1
        assert message in capsys.readouterr().err
    assert restore("model", path=tmp_path) == 1
    assert "is not a data folder of a server" in capsys.readouterr().err
    assert content(folder) == before
    serve()
    for words in ((), ("--snapshot", 1)):
        assert restore("model", *words) == 1
        assert "a server uses it and changes its files; stop the server, or" in capsys.readouterr().err
