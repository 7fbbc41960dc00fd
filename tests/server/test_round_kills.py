"""Gradients held in a round survive the kill of the server: without being sent again, they are in their round."""

from functools import partial

import numpy as np
import pytest

from numba_adam.ps.v1 import model_pb2
from numba_adam.ps.v1 import parameter_service_pb2 as pb
from numba_adam.ps.v1.error_pb2 import Reason

LEVELS = [model_pb2.DURABILITY_PROCESS, model_pb2.DURABILITY_DISK]
NEVER = {"timeout_seconds": 86_400.0}
SIZE = 60_000


def gradient_of(worker, number):
    return np.random.default_rng([worker, number]).standard_normal(SIZE, dtype=np.float32)


def mean_of(gradients):
    total = gradients[0].copy()
    for gradient in gradients[1:]:
        total = total + gradient
    return total / np.float32(len(gradients))


@pytest.fixture
def start():
    return np.random.default_rng(1).standard_normal(SIZE, dtype=np.float32)


@pytest.fixture
def serve(processes, tmp_path):
    (tmp_path / "memory").mkdir()
    return partial(processes, tmp_path / "data", memory_dir=str(tmp_path / "memory"))


def answer_to(session, sequence):
    request = pb.AwaitPushRequest(
        model=session.model,
        state_id=session.state_id,
        worker_id=session.worker_id,
        epoch=session.epoch,
        sequence=sequence,
    )
    (answer,) = session.peer.stub.AwaitPush(request, timeout=800)
    return answer.ack if answer.HasField("ack") else None


def held(refused, session, worker, number):
    push = partial(session.push, {"x": gradient_of(worker, number)}, base_version=number, sequence=number + 1)
    assert refused(push).detail.reason == Reason.REASON_HELD


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("snapshot", [False, pytest.param(True, marks=pytest.mark.campaign)])
def test_a_held_gradient_is_in_its_round_after_kills_without_being_sent_again(
    serve, peers, refused, start, level, snapshot
):
    process = serve()
    peer = peers(process.address)
    peer.create({"x": start}, "team", durability=level, rounds={"workers": 3, **NEVER})
    sessions = [peer.session("team", f"w{number}") for number in range(3)]
    for number in range(3):  # rounds; a kill after the first gradient, and one after the second
        for worker in range(2):
            held(refused, sessions[worker], worker, number)
            if snapshot:
                peer.stub.Snapshot(pb.SnapshotRequest(model="team"))
            process.kill()
            process = serve()
            peer = peers(process.address)
            for session in sessions:
                session.peer = peer
        push = {"x": gradient_of(2, number)}
        assert sessions[2].push(push, base_version=number, sequence=number + 1).version == number + 1
        for session in sessions:
            assert answer_to(session, number + 1).version == number + 1
    assert peer.state("team").state_id == sessions[0].state_id
    peer.create({"x": start}, "alone")
    alone = peer.session("alone")
    for number in range(3):
        alone.push({"x": mean_of([gradient_of(worker, number) for worker in range(3)])})
    assert peer.pull("team").arrays["x"].tobytes() == peer.pull("alone").arrays["x"].tobytes()
    process.kill()
    peer = peers(serve().address)
    assert peer.pull("team").state.version == 3


@pytest.mark.parametrize("level", LEVELS)
def test_a_round_that_an_earlier_server_left_is_aborted_after_its_timeout(serve, peers, refused, start, level):
    process = serve()
    peer = peers(process.address)
    peer.create({"x": start}, durability=level, rounds={"workers": 2, "timeout_seconds": 5.0})
    session = peer.session()
    held(refused, session, 0, 0)
    process.kill()
    session.peer = peers(serve().address)
    assert refused(lambda: answer_to(session, 1)).detail.reason == Reason.REASON_ROUND_ABORTED
    assert session.peer.pull().arrays["x"].tobytes() == start.tobytes()


def test_at_the_level_memory_a_held_gradient_must_be_sent_again_after_a_kill(serve, peers, refused, start):
    process = serve()
    peer = peers(process.address)
    peer.create({"x": start}, rounds={"workers": 2, **NEVER})
    first, second = peer.session(worker_id="a"), peer.session(worker_id="b")
    peer.stub.Snapshot(pb.SnapshotRequest(model="model"))  # it has the sessions
    held(refused, first, 0, 0)
    process.kill()
    first.peer = second.peer = peers(serve().address)
    first.state_id = second.state_id = first.peer.state().state_id
    assert answer_to(first, 1) is None
    held(refused, first, 0, 0)
    assert second.push({"x": gradient_of(1, 0)}).version == 1
