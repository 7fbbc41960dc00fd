"""A data folder that changed since the last stop: rewinds and missing models are always reported."""

import contextlib
import dataclasses
import json
import shutil

import grpc
import numpy as np
import pytest
import xxhash

from numba_adam.errors import ConfigurationError, SnapshotError
from numba_adam.ps.v1 import parameter_service_pb2 as pb
from numba_adam.ps.v1.error_pb2 import Reason
from numba_adam.server.embedded import Server


@pytest.fixture
def train(config, peers, params, grads_of):
    """Runs a server on the folder, makes pushes, and stops it cleanly; returns the session."""

    def run(pushes, name="model"):
        with Server(config) as server:
            peer = peers(server.address)
            peer.create(params, name, exist_ok=True)
            worker = peer.session(name)
            for seed in range(pushes):
                worker.push(grads_of(params, np.random.default_rng(seed)))
        return worker

    return run


@pytest.fixture
def found(config, peers):
    """Runs a server on the folder and returns a model's state, which the next clean start must keep."""

    def run(name="model"):
        with Server(config) as server:
            state = peers(server.address).state(name)
        with Server(config) as server:
            again = peers(server.address).state(name)
        assert (again.state_id, again.version) == (state.state_id, state.version)
        return state

    return run


def put_back(backup, folder):
    """Replace a file or folder by a copy, with all times and modes that a user can set."""
    if folder.is_dir():
        shutil.rmtree(folder)
        shutil.copytree(backup, folder, copy_function=shutil.copy2)
        shutil.copystat(backup, folder)
    else:
        shutil.copy2(backup, folder)


def flip(path, bit=0):
    whole = bytearray(path.read_bytes())
    whole[bit // 8] ^= 1 << bit % 8
    path.write_bytes(whole)


def snapshots(folder):
    return sorted((folder / "models" / "model").glob("*.snapshot"))


# What may become of a folder after a clean stop at version 4, beside a copy from a clean stop at version 2; and the
# version that is then found.
TAMPERINGS = {
    "the newest snapshot is missing": (lambda data, _: snapshots(data)[-1].unlink(), 2),
    "the two newest snapshots are missing": (lambda data, _: [path.unlink() for path in snapshots(data)[-2:]], 0),
    "an older snapshot has the name of the newest": (
        lambda data, _: shutil.copy2(snapshots(data)[-2], snapshots(data)[-1]),
        2,
    ),
    "an older snapshot has a newer name": (
        lambda data, _: shutil.copy2(snapshots(data)[0], snapshots(data)[-1].with_name("00000099.snapshot")),
        0,
    ),
    "an older copy of the model is put back": (lambda data, old: put_back(old / "models", data / "models"), 2),
    "an older copy of models and manifest is put back": (
        lambda data, old: [put_back(old / name, data / name) for name in ("models", "manifest")],
        2,
    ),
    "an older copy of all is put back": (lambda data, old: put_back(old, data), 2),
    "an older copy is moved to its place": (lambda data, old: (shutil.rmtree(data), old.rename(data)), 2),
    "an identical copy of the newest snapshot is put in its place": (
        lambda data, old: (
            shutil.copy2(snapshots(data)[-1], old),
            put_back(old / "00000003.snapshot", snapshots(data)[-1]),
        ),
        4,
    ),
    "the manifest is missing": (lambda data, _: (data / "manifest").unlink(), 4),
    "the manifest is damaged": (lambda data, _: flip(data / "manifest", 99), 4),
    "the manifest is empty": (lambda data, _: (data / "manifest").write_bytes(b""), 4),
    "the manifest is an older one": (lambda data, old: put_back(old / "manifest", data / "manifest"), 4),
    "the record of the run is missing": (lambda data, _: (data / "run").unlink(), 4),
    "the record of the run is damaged": (lambda data, _: flip(data / "run", 99), 4),
    "the record of the run is an older one": (lambda data, old: put_back(old / "run", data / "run"), 4),
    "run and manifest are missing": (lambda data, _: [(data / name).unlink() for name in ("run", "manifest")], 4),
    "only the models are left": (lambda data, _: [(data / name).unlink() for name in ("run", "manifest", "lock")], 4),
    "a server before this release has crashed there since": (
        lambda data, _: (data / "manifest").rename(data / "running"),
        4,
    ),
}


@pytest.mark.parametrize("case", TAMPERINGS)
def test_a_changed_data_folder_causes_a_rewind(
    config, train, found, peers, params, grads_of, refused, tmp_path, caplog, case
):
    train(2)
    shutil.copytree(config.data_dir, tmp_path / "old", copy_function=shutil.copy2)
    worker = train(2)
    tamper, version = TAMPERINGS[case]
    tamper(config.data_dir, tmp_path / "old")
    with Server(config) as server:
        worker.peer = peers(server.address)
        state = worker.peer.state()
        assert state.version == version
        assert state.state_id != worker.state_id
        refusal = refused(lambda: worker.push(grads_of(params, np.random.default_rng(0))))
        assert (refusal.code, refusal.detail.reason) == (grpc.StatusCode.FAILED_PRECONDITION, Reason.REASON_REWOUND)
        assert f"model model: rewound to version {version}: " in caplog.text
    assert found().state_id == state.state_id


def test_repeated_clean_stops_cause_no_rewind(train, found):
    """The snapshot of the first stop is still the newest at the third start."""
    worker = train(2)
    assert [found().state_id, found().version] == [worker.state_id, 2]


@pytest.mark.slow
def test_every_flipped_bit_of_manifest_and_run_is_detected(config, train, peers):
    """A damaged record must not be used, and must not make a model disappear."""
    worker = train(1)
    for name in ("manifest", "run"):
        whole = (config.data_dir / name).read_bytes()
        for bit in range(8 * len(whole)):
            flip(config.data_dir / name, bit)
            server = Server(config)
            state_id = server._runtime.registry.get("model").state().state_id
            assert server.stop()
            assert state_id != worker.state_id, bit
            (config.data_dir / name).write_bytes(whole)


@pytest.mark.slow
def test_every_truncation_of_the_manifest_is_detected(config, train):
    worker = train(1)
    whole = (config.data_dir / "manifest").read_bytes()
    for size in range(len(whole)):
        (config.data_dir / "manifest").write_bytes(whole[:size])
        server = Server(config)
        state_id = server._runtime.registry.get("model").state().state_id
        assert server.stop()
        assert state_id != worker.state_id, size


@pytest.mark.slow
def test_an_older_manifest_after_a_crash_does_not_count_as_a_clean_stop(tmp_path, processes, peers, params, grads_of):
    """No snapshot was written since, so the manifest describes the files exactly."""
    folder = tmp_path / "data"
    process = processes(folder)
    peers(process.address).create(params)
    assert process.stop() == 0
    shutil.copy2(folder / "manifest", tmp_path / "manifest")
    process = processes(folder)
    worker = peers(process.address).session()
    assert worker.push(grads_of(params, np.random.default_rng(1))).version == 1
    process.kill()
    shutil.copy2(tmp_path / "manifest", folder / "manifest")
    state = peers(processes(folder).address).state()
    assert state.version == 0
    assert state.state_id != worker.state_id


def test_the_manifest_is_removed_before_the_first_call(tmp_path, processes):
    folder = tmp_path / "data"
    assert processes(folder).stop() == 0
    assert (folder / "manifest").exists()
    process = processes(folder)
    assert not (folder / "manifest").exists()
    assert process.stop() == 0


def test_servers_on_two_copies_of_a_folder_have_different_state_ids(config, train, peers, params, tmp_path):
    """A client that uses both in turn must not confuse them."""
    worker = train(2)
    other = dataclasses.replace(config, data_dir=tmp_path / "copy")
    shutil.copytree(config.data_dir, other.data_dir, copy_function=shutil.copy2)
    ids = []
    for settings in (other, config, other):
        with Server(settings) as server:
            ids.append(peers(server.address).state().state_id)
    assert ids[0] != worker.state_id
    assert ids == [ids[0], worker.state_id, ids[0]]


def test_a_moved_folder_continues_with_the_same_state(config, train, peers, tmp_path):
    worker = train(2)
    config.data_dir.rename(tmp_path / "moved")
    with Server(dataclasses.replace(config, data_dir=tmp_path / "moved")) as server:
        state = peers(server.address).state()
    assert (state.state_id, state.version) == (worker.state_id, 2)


@pytest.mark.parametrize("clean", [True, False], ids=["after a clean stop", "after a crash"])
@pytest.mark.parametrize("what", ["folder", "snapshots", "all folders"])
def test_a_model_that_is_missing_is_named_and_stops_the_start(
    config, train, found, peers, params, tmp_path, clean, what
):
    worker = train(1)
    train(1, "another")
    if not clean:
        (config.data_dir / "manifest").unlink()
    models = config.data_dir / "models"
    away = tmp_path / "away"
    if what == "snapshots":
        away.mkdir()
        for path in (models / "model").iterdir():
            path.rename(away / path.name)
    else:
        (models if what == "all folders" else models / "model").rename(away)
    for _ in range(2):
        with pytest.raises(SnapshotError, match=r"there is no snapshot of .*'model'") as caught:
            Server(config)
        assert ("'another'" in str(caught.value)) == (what == "all folders")
    if what == "snapshots":
        shutil.rmtree(models / "model")
        away.rename(models / "model")
    elif what == "folder":
        away.rename(models / "model")
    else:
        models.rmdir()
        away.rename(models)
    state = found()
    assert state.version == 1
    is_as_it_was = clean and what != "snapshots"  # files that were moved may be others: the system cannot tell
    assert (state.state_id == worker.state_id) == is_as_it_was  # and the refusals changed nothing


def test_the_advice_for_starting_without_a_missing_model_works(config, train, peers):
    train(1)
    kept = train(1, "another")
    shutil.rmtree(config.data_dir / "models" / "model")
    for name in ("run", "manifest"):
        (config.data_dir / name).unlink()
    with Server(config) as server:
        (model,) = peers(server.address).stub.ListModels(pb.ListModelsRequest()).models
        assert model.spec.name == "another"
        assert model.state.state_id != kept.state_id


def test_a_model_created_in_an_emptied_folder_has_a_new_state_id(config, train, peers, params):
    worker = train(2)
    for path in config.data_dir.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    with Server(config) as server:
        peer = peers(server.address)
        assert not peer.stub.ListModels(pb.ListModelsRequest()).models
        peer.create(params)
        assert peer.state().state_id != worker.state_id


def test_only_a_model_that_could_not_be_saved_is_rewound(config, peers, params, grads_of, caplog):
    """The disk fails for one of two models at the stop."""
    with contextlib.ExitStack() as stack:
        server = Server(config)
        server.start()
        peer = peers(server.address)
        workers = {name: peer.session(name) for name in ("a", "b") if peer.create(params, name)}
        for worker in workers.values():
            worker.push(grads_of(params, np.random.default_rng(1)))
        (config.data_dir / "models" / "a" / "00000002.writing").mkdir()  # the snapshot cannot be made there
        stack.callback((config.data_dir / "models" / "a" / "00000002.writing").rmdir)
        assert not server.stop()
    with Server(config) as server:
        peer = peers(server.address)
        assert peer.state("a").version == 0
        assert peer.state("a").state_id != workers["a"].state_id
        assert peer.state("b").version == 1
        assert peer.state("b").state_id == workers["b"].state_id
    assert "its last state was not saved when the server stopped" in caplog.text


def test_a_snapshot_removed_during_the_run_is_written_again_at_the_stop(config, peers, params, grads_of):
    with Server(config) as server:
        peer = peers(server.address)
        peer.create(params)
        worker = peer.session()
        worker.push(grads_of(params, np.random.default_rng(1)))
        peer.stub.Snapshot(pb.SnapshotRequest())
        snapshots(config.data_dir)[-1].unlink()
    with Server(config) as server:
        state = peers(server.address).state()
        assert (state.version, state.state_id) == (1, worker.state_id)


def test_a_folder_that_replaced_the_served_one_is_not_changed(config, train, peers, params, grads_of):
    """The folder was moved, restored or unmounted meanwhile, so the server must not write to the new one."""
    train(1)
    server = Server(config)
    server.start()
    worker = peers(server.address).session()
    worker.push(grads_of(params, np.random.default_rng(1)))
    there = config.data_dir.rename(config.data_dir.with_name("moved"))
    shutil.copytree(there, config.data_dir)
    before = sorted(path.relative_to(config.data_dir) for path in config.data_dir.rglob("*"))
    assert not server.stop()
    assert sorted(path.relative_to(config.data_dir) for path in config.data_dir.rglob("*")) == before


@pytest.mark.parametrize("crashed", [False, True], ids=["stopped cleanly", "crashed"])
def test_a_folder_of_the_first_format_is_read(config, train, peers, crashed):
    """It had no manifest and no run record, but a file `running` while a server ran."""
    worker = train(2)
    for name in ("run", "manifest"):
        (config.data_dir / name).unlink()
    (config.data_dir / "lock").write_bytes(b"")
    if crashed:
        (config.data_dir / "running").touch()
    with Server(config) as server:
        state = peers(server.address).state()
        assert state.version == 2
        assert (state.state_id != worker.state_id) == crashed
        assert not (config.data_dir / "running").exists()
    with Server(config) as server:
        assert peers(server.address).state().state_id == state.state_id


@pytest.mark.parametrize("file", ["lock", "run", "manifest"])
def test_a_folder_of_a_later_release_is_refused_by_name(config, train, file):
    train(1)
    path = config.data_dir / file
    if file == "lock":
        path.write_text("numba-adam data folder, format 3\n")
    else:
        content = json.loads(path.read_bytes()) | {"format": 3}
        del content["xxh3_64"]
        text = json.dumps(content, separators=(",", ":")).encode()
        content["xxh3_64"] = xxhash.xxh3_64_hexdigest(text)
        path.write_text(json.dumps(content, separators=(",", ":")) + "\n")
    before = path.read_bytes()
    with pytest.raises(ConfigurationError, match=f"{file}'.* format 3.* use the release that wrote it"):
        Server(config)
    assert path.read_bytes() == before


def test_a_foreign_lock_file_is_refused(config):
    config.data_dir.mkdir(mode=0o700)
    (config.data_dir / "lock").write_text("12345\n")
    with pytest.raises(ConfigurationError, match="this is not a numba-adam data folder"):
        Server(config)
