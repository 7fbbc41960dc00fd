"""Peers that stall in mid-transfer: their calls end, their memory is released, and others are not affected."""

import dataclasses
import threading

import grpc
import numpy as np
import pytest

from numba_adam.ps.v1 import parameter_service_pb2 as pb
from numba_adam.server.embedded import Server
from numba_adam.server.transport.watch import LEAST_BYTES, Allowance


@pytest.fixture
def server(config):
    with Server(dataclasses.replace(config, stall_seconds=0.3, rpc_threads=8)) as running:
        yield running


def test_stalled_pushes_release_their_threads_and_numbers(peer, params, grads_of):
    """As many stalled pushes as the server has permits."""
    peer.create(params)
    grads = grads_of(params, np.random.default_rng(1))
    sessions = [peer.session(worker_id=f"w{number}") for number in range(8)]
    never = threading.Event()

    def half(session):
        header, first, *_ = session.messages(grads, chunk_bytes=100)
        yield header
        yield first
        never.wait(800)

    stalled = [peer.stub.Push.future(half(session)) for session in sessions]
    for push in stalled:
        assert push.exception(800).code() == grpc.StatusCode.CANCELLED
    never.set()
    assert [session.push(grads).version for session in sessions] == list(range(1, 9))


def test_a_trickling_sender_is_ended_like_a_stalled_one(peer, params, grads_of):
    """Otherwise single bytes would hold a thread, memory and a sequence number forever."""
    peer.create(params)
    session = peer.session()
    grads = grads_of(params, np.random.default_rng(3))
    over = threading.Event()

    def trickle():
        for message in session.messages(grads, chunk_bytes=1):
            yield message
            if over.wait(0.05):
                return

    error = peer.stub.Push.future(trickle()).exception(800)
    over.set()
    assert error is not None
    assert error.code() == grpc.StatusCode.CANCELLED
    assert session.push(grads).version == 1


def test_only_a_mebibyte_restarts_a_peers_time_limit():
    allowance = Allowance(1.0)
    allowance.spend(0.5, LEAST_BYTES - 1)
    assert allowance.left_seconds == 0.5
    allowance.spend(0.25, 1)
    assert allowance.left_seconds == 1.0
    allowance.spend(0.25, LEAST_BYTES - 1)
    assert allowance.left_seconds == 0.75


def created_after_others(peer, params) -> bool:
    """Create a model; try again while the server says that another call creates it: its peer knows its end earlier."""
    while True:
        try:
            return peer.create(params).created
        except grpc.RpcError as error:
            if error.code() != grpc.StatusCode.ABORTED:
                raise


def test_a_stalled_creation_leaves_nothing(peer, params, wire, server):
    before = server._runtime.pool.used_bytes
    never = threading.Event()
    header = pb.CreateModelHeader(request_id="r", total_bytes=344, checksum_kind=1)
    header.spec.CopyFrom(peer.create(params, name="other").model.spec)
    header.spec.name = "model"
    used = server._runtime.pool.used_bytes

    def half():
        yield pb.CreateModelRequest(header=header)
        never.wait(800)

    assert peer.stub.CreateModel.future(half()).exception(800).code() == grpc.StatusCode.CANCELLED
    never.set()
    assert created_after_others(peer, params)
    assert server._runtime.pool.used_bytes - used == used - before


def test_a_stalled_pull_releases_its_copy(peer, server):
    """Its 40 MB exceed the connection's buffers, so the server blocks in mid-answer."""
    size = 10_000_000
    peer.create({"x": np.zeros(size, np.float32)})
    session = peer.session()
    answers = peer.stub.Pull(pb.PullRequest(model="model", checksum_kind=1))
    assert next(answers).header.total_bytes == 4 * size
    while server._runtime.pulls.copies._newest:  # the copy is let go of while nobody reads
        assert session.peer.state().version == 0
    with pytest.raises(grpc.RpcError) as caught:
        list(answers)
    assert caught.value.code() == grpc.StatusCode.CANCELLED


def test_waiting_for_a_version_does_not_count_as_a_stall(peer, params, grads_of):
    """It is the server's turn, not the peer's: the pull outlives two stalled pushes that are ended."""
    peer.create(params)
    session, *others = (peer.session(worker_id=name) for name in ("worker", "stuck", "stuck too"))
    grads = grads_of(params, np.random.default_rng(2))
    never = threading.Event()

    def stuck(other):
        yield next(other.messages(grads))
        never.wait(800)

    request = pb.PullRequest(model="model", min_version=1, state_id=session.state_id, checksum_kind=1)
    answers = peer.stub.Pull(request, timeout=800)
    for other in others:
        assert peer.stub.Push.future(stuck(other)).exception(800).code() == grpc.StatusCode.CANCELLED
    never.set()
    session.push(grads)
    assert next(answers).header.state.version == 1
