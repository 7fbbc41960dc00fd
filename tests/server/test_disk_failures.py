"""A disk that fails or is full, at the level `disk`: nothing is acknowledged that may not be kept."""

import contextlib
import os
import subprocess

import grpc
import numpy as np
import pytest
from power_loss import Recorder

import numba_adam as na
from numba_adam.ps.v1 import model_pb2
from numba_adam.ps.v1 import parameter_service_pb2 as pb
from numba_adam.ps.v1.error_pb2 import Reason
from numba_adam.server.embedded import Server
from numba_adam.server.storage.durable import FAILED_SYNC_STATUS

DISK = model_pb2.DURABILITY_DISK
SIZE = 5000


def gradient_of(number, size=SIZE):
    return np.random.default_rng(number).standard_normal(size, dtype=np.float32)


def replay(start, pushes):
    param, exp_avg, exp_avg_sq = start.copy(), np.zeros_like(start), np.zeros_like(start)
    for step in range(1, pushes + 1):
        na.adam_update(param, gradient_of(step, start.size), exp_avg, exp_avg_sq, step, lr=0.01)
    return param.tobytes()


@pytest.fixture
def start():
    return np.random.default_rng(99).standard_normal(SIZE, dtype=np.float32)


FAIL = """
import errno, os
def failing(name, nth, number):
    real, calls = getattr(os, name), [0]
    def call(*arguments, **options):
        calls[0] += 1
        if calls[0] == nth:
            raise OSError(number, os.strerror(number))
        return real(*arguments, **options)
    setattr(os, name, call)
"""


@pytest.mark.parametrize("nth", [3, *(pytest.param(nth, marks=pytest.mark.campaign) for nth in (1, 2, 4, 6))])
@pytest.mark.parametrize("number", ["errno.EIO", "errno.ENOSPC"])
def test_a_failed_fsync_of_the_journal_ends_the_server(tmp_path, processes, peers, start, nth, number):
    process = processes(tmp_path / "data", first=f"{FAIL}\nfailing('fdatasync', {nth}, {number})")
    peer = peers(process.address)
    acknowledged, session = 0, None
    with contextlib.suppress(grpc.RpcError):
        peer.create({"x": start}, lr=0.01, durability=DISK)
        session = peer.session()
        while True:
            session.push({"x": gradient_of(acknowledged + 1)})
            acknowledged += 1
    assert process.wait() == FAILED_SYNC_STATUS == 74
    log = process.log.read_text()
    assert "00000001.journal: fsync failed" in log
    assert "ends with status 74" in log
    assert acknowledged == max(0, nth - 3)  # one for the creation, one for the session
    peer = peers(processes(tmp_path / "data").address)
    if session is None:
        return
    assert peer.state().version in (acknowledged, acknowledged + 1)
    assert peer.state().state_id == session.state_id
    assert peer.pull().arrays["x"].tobytes() == replay(start, peer.state().version)
    session.peer = peer
    assert session.push({"x": gradient_of(acknowledged + 1)}, sequence=acknowledged + 1).version == acknowledged + 1


def test_a_failed_fsync_of_a_snapshot_ends_the_server(tmp_path, processes, peers, start):
    process = processes(tmp_path / "data", first=f"{FAIL}\nfailing('fsync', 15, errno.EIO)")
    peer = peers(process.address)
    with contextlib.suppress(grpc.RpcError):
        peer.create({"x": start}, lr=0.01, durability=DISK)
        while True:
            peer.stub.Snapshot(pb.SnapshotRequest())
    assert process.wait() == FAILED_SYNC_STATUS


def test_an_embedded_server_acknowledges_nothing_after_a_failed_fsync(config, peers, refused, start, monkeypatch):
    """Its process belongs to another program, so it does not end it."""

    def fail(descriptor):
        raise OSError(5, "Input/output error")

    server = Server(config)
    server.start()
    peer = peers(server.address)
    peer.create({"x": start}, lr=0.01, durability=DISK)
    session = peer.session()
    session.push({"x": gradient_of(1)})
    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", fail)
        assert "could not be fsynced" in refused(lambda: session.push({"x": gradient_of(2)})).message
    for call in (lambda: session.push({"x": gradient_of(2)}), lambda: peer.session(worker_id="other"), peer.pull):
        refusal = refused(call)
        assert refusal.code == grpc.StatusCode.INTERNAL
        assert "until the server is started again" in refusal.message
    assert peer.state().version == 1
    assert not server.stop()
    with Server(config) as server:
        session.peer = peers(server.address)
        assert session.push({"x": gradient_of(2)}, sequence=2).version == 2
        assert session.peer.pull().arrays["x"].tobytes() == replay(start, 2)


def test_a_failed_write_of_a_large_push_ends_the_server(tmp_path, processes, peers):
    """Its update may have happened already."""
    process = processes(tmp_path / "data", first=f"{FAIL}\nfailing('pwritev', 2, errno.EIO)")
    peer, size = peers(process.address), 70_000
    large = np.zeros(size, np.float32)
    peer.create({"x": large}, lr=0.01, durability=DISK)
    session = peer.session()
    session.push({"x": gradient_of(1, size)})
    with contextlib.suppress(grpc.RpcError):
        session.push({"x": gradient_of(2, size)})
    assert process.wait() == FAILED_SYNC_STATUS
    assert "00000001.journal: a write failed" in process.log.read_text()
    session.peer = peers(processes(tmp_path / "data").address)
    assert session.push({"x": gradient_of(2, size)}, sequence=2).version == 2
    assert session.peer.pull().arrays["x"].tobytes() == replay(large, 2)


def test_an_embedded_server_serves_nobody_after_a_failed_write_of_a_large_push(config, peers, refused, monkeypatch):
    def fail(*_):
        raise OSError(5, "Input/output error")

    large = np.zeros(70_000, np.float32)
    server = Server(config)
    server.start()
    peer = peers(server.address)
    peer.create({"x": large}, lr=0.01, durability=DISK)
    session = peer.session()
    session.push({"x": gradient_of(1, large.size)})
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwritev", fail)
        assert "could not be written" in refused(lambda: session.push({"x": gradient_of(2, large.size)})).message
    for call in (lambda: session.push({"x": gradient_of(2, large.size)}), peer.session, peer.pull):
        assert "until the server is started again" in refused(call).message
    assert not server.stop()
    with Server(config) as server:
        session.peer = peers(server.address)
        assert session.push({"x": gradient_of(2, large.size)}, sequence=2).version == 2
        assert session.peer.pull().arrays["x"].tobytes() == replay(large, 2)


@pytest.mark.parametrize("written", [0, 1, 30, 56, 200, 20_000])
def test_a_disk_that_is_full_in_the_middle_of_a_record_leaves_no_trace(
    config, peers, refused, start, monkeypatch, written
):
    with Server(config) as server:
        peer = peers(server.address)
        peer.create({"x": start}, lr=0.01, durability=DISK)
        session = peer.session()
        session.push({"x": gradient_of(1)})
        (journal,) = config.data_dir.glob("models/model/*.journal")
        before = journal.read_bytes()

        def full(descriptor, parts):
            if written and os.fstat(descriptor).st_size == len(before):
                return os.write(descriptor, b"".join(map(bytes, parts))[:written])
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(os, "writev", full)
            refusal = refused(lambda: session.push({"x": gradient_of(2)}))
            assert (refusal.code, refusal.detail.reason) == (grpc.StatusCode.UNAVAILABLE, Reason.REASON_DISK_FULL)
            assert refusal.detail.retry_after_milliseconds > 0
            assert peer.pull().arrays["x"].tobytes() == replay(start, 1)
        assert journal.read_bytes() == before
        assert session.push({"x": gradient_of(2)}).version == 2
        assert peer.pull().arrays["x"].tobytes() == replay(start, 2)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 8 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m,mode=700", "tmpfs", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False) if os.geteuid() == 0 else None
    if done is None or done.returncode:
        pytest.skip(f"a small file system needs root and mount: {done.stderr if done else 'not root'}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("size", [50_000, 70_000])  # a small push and a large one
def test_a_full_disk_serves_pulls_and_goes_on_when_there_is_room(small_disk, processes, peers, refused, size):
    start = np.zeros(size, np.float32)
    folder = small_disk / "data"
    process = processes(folder)
    peer = peers(process.address)
    peer.create({"x": start}, lr=0.01, durability=DISK)
    (small_disk / "filler").write_bytes(bytes(3 << 20))
    session, version = peer.session(), 0
    with contextlib.suppress(grpc.RpcError):
        while True:
            session.push({"x": gradient_of(version + 1, size)})
            version += 1
    assert version > 3
    refusal = refused(lambda: session.push({"x": gradient_of(version + 1, size)}))
    assert refusal.detail.reason == Reason.REASON_DISK_FULL
    assert "room on the server's disk" in refusal.message
    assert peer.pull().arrays["x"].tobytes() == replay(start, version)
    with contextlib.suppress(grpc.RpcError):
        peer.stub.Snapshot(pb.SnapshotRequest())  # there is no room for it either
    (small_disk / "filler").unlink()
    assert session.push({"x": gradient_of(version + 1, size)}).version == version + 1
    process.kill()
    session.peer = peers(processes(folder).address)
    assert session.peer.state().state_id == session.state_id
    assert session.push({"x": gradient_of(version + 2, size)}).version == version + 2
    assert session.peer.pull().arrays["x"].tobytes() == replay(start, version + 2)


def faulty_run(config, peers, start, monkeypatch, nth, error):
    """Make a run whose n-th operation on the data folder fails; return what was told, and whether one failed."""
    told, failed = {"version": 0, "state_id": None}, []

    def fail(kind, number):
        if number == nth:
            failed.append(kind)
            raise OSError(error, os.strerror(error))

    recorder = Recorder(config.data_dir, fail)
    with monkeypatch.context() as patch:
        recorder.install(patch)
        try:
            server = Server(config)
            server.start()
        except Exception:
            return told, failed
        peer = peers(server.address)
        session = None
        for number in range(1, 9):
            with contextlib.suppress(grpc.RpcError):
                if told["state_id"] is None:
                    told["state_id"] = peer.create({"x": start}, lr=0.01, durability=DISK).model.state.state_id
                session = session or peer.session(worker_id=f"worker-{number}")
                session.push({"x": gradient_of(told["version"] + 1)}, sequence=told["version"] + 1)
                told["version"] += 1
            if number in (3, 5):
                with contextlib.suppress(grpc.RpcError):
                    peer.stub.Snapshot(pb.SnapshotRequest())
        with contextlib.suppress(Exception):
            server.stop()
    return told, failed


@pytest.mark.campaign
@pytest.mark.parametrize("error", [5, 28])
def test_every_operation_in_turn_fails_and_nothing_acknowledged_is_lost(
    tmp_path, config, peers, start, monkeypatch, error
):
    kinds, nth, failed = set(), 0, ["first"]
    while failed:
        nth += 1
        here = config.__class__(**{**vars(config), "data_dir": tmp_path / str(nth)})
        told, failed = faulty_run(here, peers, start, monkeypatch, nth, error)
        kinds.update(failed)
        with Server(here) as server:
            peer = peers(server.address)
            names = [model.spec.name for model in peer.stub.ListModels(pb.ListModelsRequest()).models]
            if told["state_id"] is None:
                continue
            assert names == ["model"]
            state = peer.state()
            assert state.state_id == told["state_id"], (nth, failed)
            assert state.version in (told["version"], told["version"] + 1), (nth, failed)
            assert peer.pull().arrays["x"].tobytes() == replay(start, state.version), (nth, failed)
    assert nth > 60
    assert kinds >= {"open", "write", "writev", "fsync", "fdatasync", "rename", "unlink", "mkdir"}
