"""Pushes with a session that ends meanwhile; tests/client/test_late.py tests all calls."""

import threading

import numpy as np
import pytest

from numba_adam.ps.v1 import parameter_service_pb2 as pb
from numba_adam.ps.v1.error_pb2 import Reason
from numba_adam.server.embedded import Server


@pytest.fixture
def worker(peer, params):
    peer.create(params, lr=0.1)
    return peer.session()


@pytest.fixture
def grads(params, grads_of):
    return grads_of(params, np.random.default_rng(1))


def same(left, right):
    return left.state == right.state and all(
        left.arrays[name].tobytes() == array.tobytes() for name, array in right.arrays.items()
    )


class Halted:
    """A push that pauses in mid-stream until it is released."""

    def __init__(self, server, peer, messages):
        self._go_on = threading.Event()

        def slowly():
            header, first, *rest = messages
            yield header
            yield first
            self._go_on.wait(800)
            yield from rest

        self.call = peer.stub.Push.future(slowly())
        while not server._runtime.pushes.receiving:  # the test's timeout is its limit
            peer.state()

    def finish(self):
        self._go_on.set()
        return self.call.result(800)


def test_a_push_of_a_session_fenced_meanwhile_is_not_applied(server, peer, worker, grads, refused):
    push = Halted(server, peer, worker.messages(grads, chunk_bytes=100))
    newer = peer.session()
    before = peer.pull()
    refusal = refused(push.finish)
    assert refusal.detail.reason == Reason.REASON_SESSION_FENCED
    assert not refusal.detail.sequence_recorded
    assert same(peer.pull(), before)
    assert newer.push(grads).version == 1


def test_an_invalid_push_of_a_session_fenced_meanwhile_records_no_answer(server, peer, worker, grads, refused):
    bad = grads | {"bias": np.full(70, np.nan, np.float32)}
    push = Halted(server, peer, worker.messages(bad, chunk_bytes=100))
    newer = peer.session()
    assert refused(push.finish).detail.reason == Reason.REASON_SESSION_FENCED
    (status,) = peer.stub.GetServerStatus(pb.GetServerStatusRequest()).models
    assert status.pushes_rejected == 0
    assert newer.push(grads).version == 1


def test_a_push_to_a_model_deleted_meanwhile_is_not_applied(server, peer, worker, grads, params, refused):
    push = Halted(server, peer, worker.messages(grads, chunk_bytes=100))
    peer.stub.DeleteModel(pb.DeleteModelRequest(model="model", state_id=worker.state_id))
    peer.create(params)
    assert refused(push.finish).detail.reason == Reason.REASON_MODEL_NOT_FOUND
    assert peer.state().version == 0


def forget(server, peer, worker):
    """Open sessions of other workers until the server drops this one; return their number."""
    opened = 0
    while worker.worker_id in server._runtime.registry.get("model").ledger.sessions:
        peer.stub.OpenSession(pb.OpenSessionRequest(model="model", worker_id=f"other-{opened}"))
        opened += 1
    return opened


@pytest.mark.parametrize("is_restarted", [False, True])
def test_a_retry_after_its_session_was_dropped_is_not_applied_again(
    config, peers, params, grads, refused, is_restarted
):
    """The worker lost the answer, and 1,024 others opened sessions: a retry is refused, not applied again."""
    with Server(config) as server:
        peer = peers(server.address)
        peer.create(params, lr=0.1)
        worker = peer.session()
        worker.push(grads)  # the answer is lost
        assert forget(server, peer, worker) == 1024
        if not is_restarted:
            assert_is_refused_and_then_opened_anew(peer, worker, grads, refused)
    if is_restarted:
        with Server(config) as server:
            worker.peer = peers(server.address)
            assert_is_refused_and_then_opened_anew(worker.peer, worker, grads, refused)


def assert_is_refused_and_then_opened_anew(peer, worker, grads, refused):
    before = peer.pull()
    for _ in range(2):
        refusal = refused(lambda: worker.push(grads, sequence=1))
        assert refusal.detail.reason == Reason.REASON_SESSION_UNKNOWN
        assert not refusal.detail.sequence_recorded
    assert same(peer.pull(), before)
    opening = {"model": "model", "worker_id": worker.worker_id, "nonce": "again", "state_id": worker.state_id}
    # It was the first session of all, so others may have been opened since that the worker cannot know of.
    late = refused(lambda: peer.stub.OpenSession(pb.OpenSessionRequest(**opening, seen_epoch=0)))
    assert (late.detail.reason, late.detail.epoch) == (Reason.REASON_SESSION_UNKNOWN, 1025)
    opened = peer.stub.OpenSession(pb.OpenSessionRequest(**opening, seen_epoch=late.detail.epoch))
    assert (opened.epoch, opened.first_sequence) == (1026, 1)
    assert refused(lambda: worker.push(grads, sequence=1)).detail.reason == Reason.REASON_SESSION_FENCED
    assert same(peer.pull(), before)


def test_a_late_snapshot_has_the_models_current_state(peer, worker, grads):
    versions = []
    for sequence in range(1, 4):
        worker.push(grads, sequence=sequence)
        versions += [peer.stub.Snapshot(pb.SnapshotRequest(model="model")).snapshots[0].state.version for _ in range(2)]
    assert versions == [1, 1, 2, 2, 3, 3]
    assert peer.state().snapshot_version == 3


@pytest.mark.parametrize("content", [b"", b"[" * 200_000, b"\xff"], ids=["empty", "deeply nested", "no text"])
def test_a_damaged_record_of_deletions_does_not_stop_a_start(config, content, caplog):
    config.data_dir.mkdir(mode=0o700, exist_ok=True)
    (config.data_dir / "deletions").write_bytes(content)
    (config.data_dir / "deletions").chmod(0o600)
    server = Server(config)
    server.start()
    assert server.stop()
    assert "the earlier deletions are forgotten" in caplog.text
