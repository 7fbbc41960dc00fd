"""Failures of the server's disk, memory or update: they are reported, and saved state is kept."""

import dataclasses
import logging
import shutil

import grpc
import numpy as np
import pytest

from numba_adam.cpu.table import UpdateTable
from numba_adam.errors import ConfigurationError, InternalServerError, ServerUnavailableError
from numba_adam.ps.v1 import parameter_service_pb2 as pb
from numba_adam.ps.v1.error_pb2 import Reason
from numba_adam.server.embedded import Server
from numba_adam.server.model.arena import Arena
from numba_adam.server.model.push_key import Content, PushKey
from numba_adam.server.model.push_ledger import PushLedger
from numba_adam.server.model.spec import Spec
from numba_adam.server.model.tensors import Tensor
from numba_adam.server.runtime.model import Model, Push
from numba_adam.server.storage import snapshot as snapshots
from numba_adam.settings.hyperparameters import Hyperparameters


def block(folder, name="model"):
    """Put a file in place of a model's folder, so that every write fails for any user."""
    shutil.rmtree(folder / "models" / name, ignore_errors=True)
    (folder / "models" / name).write_text("in the way")


def test_a_failed_snapshot_is_reported_and_pushes_continue(config, peers, params, grads_of, refused, caplog):
    rng = np.random.default_rng(1)
    server = Server(config)
    server.start()
    peer = peers(server.address)
    peer.create(params)
    worker = peer.session()
    worker.push(grads_of(params, rng))
    block(config.data_dir)
    refusal = refused(lambda: peer.stub.Snapshot(pb.SnapshotRequest()))
    assert (refusal.code, refusal.detail.reason) == (grpc.StatusCode.INTERNAL, Reason.REASON_SNAPSHOT)
    assert "model 'model': its snapshot could not be written" in refusal.message
    ack = worker.push(grads_of(params, rng))
    assert (ack.version, ack.state.snapshot_version) == (2, 0)
    with caplog.at_level(logging.ERROR):
        assert not server.stop()
    assert "the last snapshot could not be written" in caplog.text


def test_the_exit_status_reports_a_missing_last_snapshot(tmp_path, processes, peers, params, grads_of):
    process = processes(tmp_path / "data")
    peer = peers(process.address)
    peer.create(params)
    peer.session().push(grads_of(params, np.random.default_rng(2)))
    block(tmp_path / "data")
    assert process.stop() == 1


def test_a_data_folder_missing_at_the_stop_is_logged(tmp_path, processes, peers, params):
    folder = tmp_path / "data"
    process = processes(folder)
    peers(process.address).create(params)
    shutil.rmtree(folder)
    assert process.stop() == 1
    log = process.log.read_text()
    assert f"data folder {folder}: it could not be closed; is it still there?" in log
    assert "stopped" in log


def test_a_failed_snapshot_by_count_is_logged_and_retried_later(tmp_path, processes, peers, params, grads_of):
    rng = np.random.default_rng(3)
    process = processes(tmp_path / "data", snapshot_every_pushes=2)
    peer = peers(process.address)
    peer.create(params)
    worker = peer.session()
    block(tmp_path / "data")
    for _ in range(2):
        worker.push(grads_of(params, rng))
    while "the snapshot could not be written" not in process.log.read_text():
        assert peer.state().snapshot_version == 0
    (tmp_path / "data" / "models" / "model").unlink()
    for _ in range(2):
        worker.push(grads_of(params, rng))
    while peer.state().snapshot_version != 4:
        assert peer.state().version == 4


def test_an_unexpected_error_does_not_stop_later_snapshots(config, peers, params, grads_of, monkeypatch, caplog):
    """Uses a failing writer, because memory cannot be exhausted exactly there."""
    rng, write = np.random.default_rng(5), snapshots.write

    def fail(descriptor, snapshot, arrays, keys):
        if snapshot.model["name"] == "a":
            raise MemoryError("no room for the header")
        return write(descriptor, snapshot, arrays, keys)

    server = Server(dataclasses.replace(config, snapshot_every_pushes=1))
    server.start()
    peer = peers(server.address)
    workers = {name: peer.session(name) for name in ("a", "b") if peer.create(params, name)}
    with monkeypatch.context() as patch:
        patch.setattr(snapshots, "write", fail)
        workers["a"].push(grads_of(params, rng))
        while "the snapshot could not be written" not in caplog.text:  # the test's timeout is its limit
            workers["b"].push(grads_of(params, rng))
    workers["a"].push(grads_of(params, rng))
    while peer.state("a").snapshot_version < 2:
        assert peer.state("a").version == 2
    monkeypatch.setattr(snapshots, "write", fail)
    workers["a"].push(grads_of(params, rng))
    last = workers["b"].push(grads_of(params, rng)).version
    assert not server.stop()
    monkeypatch.undo()
    with Server(config) as server:
        assert peers(server.address).state("a").version == 2
        assert peers(server.address).state("b").version == last


def test_a_model_without_a_first_snapshot_is_not_created(config, server, peer, params, refused):
    before = server._runtime.pool.used_bytes
    block(config.data_dir)
    assert refused(lambda: peer.create(params)).detail.reason == Reason.REASON_SNAPSHOT
    assert not peer.stub.ListModels(pb.ListModelsRequest()).models
    assert server._runtime.pool.used_bytes == before


def test_a_model_with_a_failed_update_refuses_calls_until_a_restart(monkeypatch):
    """Uses a failing table, because the kernel cannot be made to fail."""
    spec = Spec("model", "float32", (Tensor("x", (4,)),), Hyperparameters())
    model = Model(spec, "r", Arena([4], "float32"), PushLedger("s", 1))
    epoch = model.open_session("w").epoch
    push = Push(PushKey("s", "w", epoch, 1), 0, (True,), Content("header", "payload"))

    def fail(*_):
        raise RuntimeError("half-way")

    monkeypatch.setattr(UpdateTable, "update", fail)
    with pytest.raises(InternalServerError, match="an update failed"):
        model.apply(push, np.ones(4, np.float32))
    monkeypatch.undo()
    assert model.version == 0
    for call in (lambda: model.apply(push, np.ones(4, np.float32)), lambda: model.capture()):
        with pytest.raises(InternalServerError, match="restart the server"):
            call()


def test_a_server_that_was_never_started_releases_its_folder(config, peers, params):
    with Server(config) as server:
        peer = peers(server.address)
        peer.create(params)
        state = peer.state()
    for _ in range(2):
        assert Server(config).stop()
    with Server(config) as server:  # and as it was found
        assert peers(server.address).state() == state


def test_a_data_folder_that_is_not_writable_at_the_start_is_released_unchanged(config, peers, params):
    """As on a full disk. Nothing was served, so nothing is rewound."""
    with Server(config) as server:
        peer = peers(server.address)
        peer.create(params)
        state = peer.state()
    (config.data_dir / "run.writing").mkdir()  # in the way of the new run
    server = Server(config)
    with pytest.raises(ConfigurationError, match="must be a folder this user can write"):
        server.start()
    (config.data_dir / "run.writing").rmdir()
    with Server(config) as server:
        assert peers(server.address).state() == state


def test_a_deletion_with_a_disk_error_is_reported_and_stays(config, peers, params, refused):
    """Its folder is already renamed; only the record could not be written."""
    server = Server(config)
    server.start()
    peer = peers(server.address)
    for name in ("gone", "kept"):
        peer.create(params, name)
    (config.data_dir / "run.writing").mkdir()
    refusal = refused(lambda: peer.stub.DeleteModel(pb.DeleteModelRequest(model="gone")))
    assert (refusal.code, refusal.detail.reason) == (grpc.StatusCode.INTERNAL, Reason.REASON_SNAPSHOT)
    assert "model 'gone': its folder could not be removed" in refusal.message
    (config.data_dir / "run.writing").rmdir()
    assert server.stop()
    with Server(config) as server:
        models = peers(server.address).stub.ListModels(pb.ListModelsRequest()).models
        assert [model.spec.name for model in models] == ["kept"]


def test_calls_after_the_stop_are_refused_at_once(config):
    """A call that outlived the stop's deadline may still reach the disk."""
    server = Server(config)
    server.start()
    runtime = server._runtime
    spec = Spec("late", "float32", (Tensor("x", (4,)),), Hyperparameters())
    server.stop()
    model = Model(spec, "r", Arena([4], "float32"), PushLedger("s", 1))
    for call in (lambda: runtime.snapshots.begin(model), lambda: runtime.snapshots.delete(model)):
        with pytest.raises(ServerUnavailableError, match="stopping"):
            call()


def test_a_deleted_model_leaves_no_folder_behind(config, peers, params, grads_of):
    """Snapshots by count and the deletion happen at the same time."""
    rng = np.random.default_rng(4)
    with Server(dataclasses.replace(config, snapshot_every_pushes=1)) as server:
        peer = peers(server.address)
        for _ in range(10):
            peer.create(params)
            worker = peer.session()
            for _ in range(3):
                worker.push(grads_of(params, rng))
            peer.stub.DeleteModel(pb.DeleteModelRequest(model="model"))
        peer.create(params, name="last")  # written after whatever was still asked for
        assert [path.name for path in (config.data_dir / "models").iterdir()] == ["last"]
