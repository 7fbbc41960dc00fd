"""The mode of a model changes between rounds, as a versioned change: kept like a push, and told to open rounds."""

from functools import partial

import numpy as np
import pytest

import numba_adam as na
from numba_adam.ps.v1 import model_pb2
from numba_adam.ps.v1 import parameter_service_pb2 as pb
from numba_adam.ps.v1.error_pb2 import Reason

LEVELS = [model_pb2.DURABILITY_MEMORY, model_pb2.DURABILITY_PROCESS, model_pb2.DURABILITY_DISK]
KEPT = LEVELS[1:]
SIZE = 60_000
SYNC = {"mode": model_pb2.MODE_SYNC, "rounds": model_pb2.Rounds(workers=2, timeout_seconds=86_400)}
SSP = {"mode": model_pb2.MODE_SSP, "staleness": 1}
ASYNC = {"mode": model_pb2.MODE_ASYNC}


def gradient_of(number):
    return np.random.default_rng(number).standard_normal(SIZE, dtype=np.float32)


@pytest.fixture
def start():
    return np.random.default_rng(1).standard_normal(SIZE, dtype=np.float32)


@pytest.fixture
def serve(processes, tmp_path):
    (tmp_path / "memory").mkdir()
    return partial(processes, tmp_path / "data", memory_dir=str(tmp_path / "memory"))


def change(peer, request_id, **fields):
    model = peer.stub.GetModel(pb.GetModelRequest(model="model")).model
    request = pb.UpdateModelRequest(
        model="model", state_id=model.state.state_id, request_id=request_id, seen_change=model.change,
        change=pb.SettingsChange(**fields),
    )  # fmt: skip
    return peer.stub.UpdateModel(request)


def awaited(session, sequence):
    request = pb.AwaitPushRequest(
        model="model", state_id=session.state_id, worker_id=session.worker_id, epoch=session.epoch, sequence=sequence
    )
    (answer,) = session.peer.stub.AwaitPush(request, timeout=800)
    return answer.ack


def mode_of(peer):
    return peer.stub.GetModel(pb.GetModelRequest(model="model")).model.settings.mode


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("kills", [False, True])
def test_a_model_goes_through_all_modes_with_the_bits_of_the_library(serve, peers, refused, start, level, kills):
    process = serve()
    peer = peers(process.address)
    peer.create({"x": start}, durability=level, lr=0.01)
    sessions = [peer.session(worker_id=name) for name in "ab"]
    alone = start.copy()
    optimizer = na.Adam([alone], lr=0.01)

    def kill():
        nonlocal process, peer
        if kills and level in KEPT:
            process.kill()
            process = serve()
            peer = peers(process.address)
            for session in sessions:
                session.peer = peer

    def push(worker, number, version, **fields):
        ack = sessions[worker].push({"x": gradient_of(number)}, base_version=version, **fields)
        assert ack.version == version + 1

    push(0, 0, 0)
    optimizer.step([gradient_of(0)])
    answer = change(peer, "first", **SYNC)
    assert (answer.change, answer.version, answer.model.settings.mode) == (1, 1, model_pb2.MODE_SYNC)
    kill()
    for worker in range(2):
        fields = {"base_version": 1, "sequence": sessions[worker].sequence + 1}
        call = partial(sessions[worker].push, {"x": gradient_of(1 + worker)}, **fields)
        if worker == 0:
            assert refused(call).detail.reason == Reason.REASON_HELD
            kill()
        else:
            assert call().version == 2
    assert awaited(sessions[0], 2).version == 2
    sessions[0].sequence = 2
    optimizer.step([(gradient_of(1) + gradient_of(2)) / np.float32(2)])
    kill()
    change(peer, "second", **SSP)
    for number, worker in enumerate((0, 1, 0, 0), start=3):  # each joins with its first push, at the slowest clock
        push(worker, number, number - 1)
        optimizer.step([gradient_of(number)])
    kill()
    again = partial(sessions[0].push, {"x": gradient_of(7)}, base_version=6)
    assert refused(again).detail.reason == Reason.REASON_AHEAD
    change(peer, "third", **ASYNC)
    kill()
    assert again().version == 7
    optimizer.step([gradient_of(7)])
    assert mode_of(peer) == model_pb2.MODE_ASYNC
    assert peer.pull().arrays["x"].tobytes() == alone.tobytes()


@pytest.mark.parametrize("level", LEVELS)
def test_an_open_round_is_told_that_the_mode_changes(peer, refused, start, level):
    peer.create({"x": start}, durability=level, rounds={"workers": 3, "timeout_seconds": 86_400})
    sessions = [peer.session(worker_id=name) for name in "ab"]
    for session in sessions:
        call = partial(session.push, {"x": gradient_of(1)})
        assert refused(call).detail.reason == Reason.REASON_HELD
    assert change(peer, "first", **ASYNC).version == 0
    for session in sessions:
        told = refused(lambda session=session: awaited(session, 1))
        assert told.detail.reason == Reason.REASON_ROUND_ABORTED
        assert told.detail.sequence_recorded
        assert "its mode changes" in told.message
    assert sessions[0].push({"x": gradient_of(2)}, sequence=2).version == 1


def test_a_repeated_change_is_made_once_and_one_with_other_content_is_refused(peer, refused, start):
    peer.create({"x": start})
    first = change(peer, "one", **SSP)
    assert (first.change, first.duplicate) == (1, False)
    assert change(peer, "one", **SSP).duplicate
    other = refused(lambda: change(peer, "one", **SYNC))
    assert other.detail.reason == Reason.REASON_INVALID_REQUEST
    assert mode_of(peer) == model_pb2.MODE_SSP


def test_a_change_to_more_workers_than_the_budget_has_memory_for_is_refused(peer, refused, start):
    start = np.tile(start, 2)  # 480 kB; the budget is 256 MiB
    peer.create({"x": start})
    fields = {"mode": model_pb2.MODE_SYNC, "rounds": model_pb2.Rounds(workers=1024)}
    status = refused(lambda: change(peer, "one", **fields))
    assert status.detail.reason == Reason.REASON_BUDGET
    assert mode_of(peer) == model_pb2.MODE_UNSPECIFIED
    assert peer.session().push({"x": start}).version == 1
    change(peer, "two", mode=model_pb2.MODE_SYNC, rounds=model_pb2.Rounds(workers=1))
    session = peer.session(worker_id="b")
    assert session.push({"x": start}, base_version=1).version == 2


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({"rounds": model_pb2.Rounds(workers=2)}, "without a mode"),
        ({"staleness": 2}, "without a mode"),
        ({"mode": model_pb2.MODE_SYNC}, "need rounds"),
        ({"mode": model_pb2.MODE_SSP}, "need staleness"),
        ({"mode": model_pb2.MODE_ASYNC, "staleness": 2}, "others have none"),
        ({"mode": 7}, "mode=7"),
        ({"staleness_power": 0.25}, "staleness_power=0.25"),
    ],
)
def test_an_invalid_change_is_refused_and_changes_nothing(peer, refused, start, fields, what):
    peer.create({"x": start})
    status = refused(lambda: change(peer, "one", **fields))
    assert status.detail.reason == Reason.REASON_INVALID_REQUEST
    assert what in status.message
    assert peer.stub.GetModel(pb.GetModelRequest(model="model")).model.change == 0
