"""The mode ssp over the wire, and staleness in every mode: who waits, who is refused, and the bits of pushes."""

import math
from functools import partial

import grpc
import numpy as np
import pytest

import numba_adam as na
from numba_adam.ps.v1 import model_pb2
from numba_adam.ps.v1 import parameter_service_pb2 as pb
from numba_adam.ps.v1.error_pb2 import Reason

LEVELS = [model_pb2.DURABILITY_MEMORY, model_pb2.DURABILITY_PROCESS, model_pb2.DURABILITY_DISK]
KEPT = LEVELS[1:]
SIZE = 60_000


def gradient_of(number, dtype="float32"):
    return np.random.default_rng(number).standard_normal(SIZE).astype(dtype)


@pytest.fixture
def start():
    return np.random.default_rng(1).standard_normal(SIZE, dtype=np.float32)


@pytest.fixture
def serve(processes, tmp_path):
    (tmp_path / "memory").mkdir()
    return partial(processes, tmp_path / "data", memory_dir=str(tmp_path / "memory"))


def workers_of(peer, model="model"):
    return {worker.worker_id: worker for worker in peer.stub.ListWorkers(pb.ListWorkersRequest(model=model)).workers}


def ahead(refused, push):
    status = refused(push)
    assert (status.code, status.detail.reason) == (grpc.StatusCode.UNAVAILABLE, Reason.REASON_AHEAD)
    assert status.detail.retry_after_milliseconds > 0
    assert not status.detail.sequence_recorded


@pytest.mark.parametrize("level", LEVELS)
def test_a_worker_that_is_ahead_is_told_to_wait_and_its_number_stays_free(peer, refused, start, level):
    peer.create({"x": start}, durability=level, staleness=2)
    fast, slow = peer.session(worker_id="fast"), peer.session(worker_id="slow")
    for number in range(2):
        assert fast.push({"x": gradient_of(number)}).version == number + 1
    for other in range(3):  # nothing is recorded, so the number may have any content
        ahead(refused, lambda other=other: fast.push({"x": gradient_of(other)}, sequence=3))
    assert peer.state().version == 2
    assert slow.push({"x": gradient_of(7)}).version == 3
    assert fast.push({"x": gradient_of(8)}, sequence=3).version == 4
    ahead(refused, lambda: fast.push({"x": gradient_of(9)}))
    assert fast.push({"x": gradient_of(8)}, sequence=3).duplicate  # an answer is repeated, however far ahead
    assert {name: each.clock for name, each in workers_of(peer).items()} == {"fast": 3, "slow": 1}


def test_a_worker_that_joins_starts_at_the_slowest_clock_and_a_restarted_one_keeps_its_own(peer, refused, start):
    peer.create({"x": start}, staleness=1)
    first, second = peer.session(worker_id="a"), peer.session(worker_id="b")
    for number in range(3):
        first.push({"x": gradient_of(number)})
        second.push({"x": gradient_of(number)})
    first.push({"x": gradient_of(9)})
    peer.session(worker_id="c")
    assert {name: each.clock for name, each in workers_of(peer).items()} == {"a": 4, "b": 3, "c": 3}
    request = pb.OpenSessionRequest(
        model="model", worker_id="a", nonce="n", seen_epoch=first.epoch, state_id=first.state_id
    )
    first.epoch, first.sequence = peer.stub.OpenSession(request).epoch, 0
    ahead(refused, lambda: first.push({"x": gradient_of(10)}))


def test_a_rejected_push_is_a_tick_of_the_clock(peer, refused, start):
    peer.create({"x": start}, staleness=1)
    fast, slow = peer.session(worker_id="fast"), peer.session(worker_id="slow")
    fast.push({"x": gradient_of(1)})
    bad = np.full(SIZE, np.nan, np.float32)
    assert refused(lambda: slow.push({"x": bad})).detail.reason == Reason.REASON_NON_FINITE
    assert fast.push({"x": gradient_of(2)}).version == 2
    ahead(refused, lambda: fast.push({"x": bad}))


@pytest.mark.parametrize("level", KEPT)
@pytest.mark.parametrize("snapshot", [False, True])
def test_clocks_survive_kills(serve, peers, refused, start, level, snapshot):
    process = serve()
    peer = peers(process.address)
    peer.create({"x": start}, durability=level, staleness=2)
    fast, slow, gone = (peer.session(worker_id=name) for name in ("fast", "slow", "gone"))
    for number in range(2):
        fast.push({"x": gradient_of(number)})
        if number == 1:
            peer.stub.Heartbeat(heartbeat_of(gone, leaving=True))
        if snapshot and number == 0:
            peer.stub.Snapshot(pb.SnapshotRequest(model="model"))
        process.kill()
        process = serve()
        peer = peers(process.address)
        for session in (fast, slow, gone):
            session.peer = peer
    found = {name: each.clock if each.HasField("clock") else None for name, each in workers_of(peer).items()}
    assert found == {"fast": 2, "slow": 0, "gone": None}
    ahead(refused, lambda: fast.push({"x": gradient_of(3)}, sequence=3))
    slow.push({"x": gradient_of(4)})
    assert fast.push({"x": gradient_of(3)}, sequence=3).version == 4


def heartbeat_of(session, **changes):
    fields = {"model": session.model, "state_id": session.state_id, "worker_id": session.worker_id}
    return pb.HeartbeatRequest(**{**fields, "epoch": session.epoch, **changes})


def evict(peer, session, **changes):
    fields = {"model": session.model, "state_id": session.state_id, "worker_id": session.worker_id}
    return peer.stub.EvictWorker(pb.EvictWorkerRequest(**{**fields, "epoch": session.epoch, **changes}))


@pytest.mark.parametrize("way", ["leaving", "evicted"])
def test_nobody_waits_for_a_worker_that_left_or_was_evicted_and_its_session_stays(peer, refused, start, way):
    peer.create({"x": start}, staleness=1)
    fast, slow = peer.session(worker_id="fast"), peer.session(worker_id="slow")
    slow.push({"x": gradient_of(0)})
    for number in (1, 2):
        fast.push({"x": gradient_of(number)})
    ahead(refused, lambda: fast.push({"x": gradient_of(3)}))
    if way == "leaving":
        assert peer.stub.Heartbeat(heartbeat_of(slow, leaving=True)).lease_seconds == 0
    else:
        evict(peer, slow)
        evict(peer, slow)  # a retry changes nothing
    for number in (3, 4, 5):
        fast.push({"x": gradient_of(number)})
    assert not workers_of(peer)["slow"].HasField("clock")
    assert slow.push({"x": gradient_of(0)}, sequence=1).duplicate
    assert slow.push({"x": gradient_of(6)}, sequence=2).version == 7  # it joins at the slowest clock
    assert {name: each.clock for name, each in workers_of(peer).items()} == {"fast": 5, "slow": 6}


def test_a_late_heartbeat_or_eviction_does_nothing_to_a_newer_session(peer, refused, start):
    peer.create({"x": start}, staleness=1)
    old = peer.session(worker_id="w")
    new = peer.session(worker_id="w")
    for call in (
        lambda: peer.stub.Heartbeat(heartbeat_of(old, leaving=True)),
        lambda: peer.stub.Heartbeat(heartbeat_of(old)),
        lambda: evict(peer, old),
    ):
        assert refused(call).detail.reason == Reason.REASON_SESSION_FENCED
    assert workers_of(peer)["w"].clock == 0
    unknown = refused(lambda: evict(peer, new, worker_id="other"))
    assert unknown.detail.reason == Reason.REASON_SESSION_UNKNOWN
    assert refused(lambda: evict(peer, new, state_id="0" * 32)).detail.reason == Reason.REASON_REWOUND
    assert refused(lambda: evict(peer, new, state_id="")).detail.reason == Reason.REASON_INVALID_REQUEST


def until_taken(push):
    """Push again until the server takes it."""
    while True:
        try:
            return push()
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE:
                raise


@pytest.mark.parametrize("level", LEVELS)
def test_the_end_of_a_lease_frees_a_clock_and_not_the_session(peer, start, level):
    peer.create({"x": start}, durability=level, staleness=1, lease_seconds=0.2)
    fast, slow = peer.session(worker_id="fast"), peer.session(worker_id="slow")
    slow.push({"x": gradient_of(0)})
    for number in range(1, 6):
        until_taken(lambda number=number: fast.push({"x": gradient_of(number)}, sequence=number))
    found = workers_of(peer)["slow"]
    assert (found.HasField("clock"), found.lease_seconds, found.pushes) == (False, 0, 1)
    assert slow.push({"x": gradient_of(0)}, sequence=1).duplicate
    assert slow.push({"x": gradient_of(9)}, sequence=2).version == 7


def test_the_end_of_a_lease_takes_a_gradient_out_of_its_round_and_it_may_come_again(peer, refused, start):
    peer.create({"x": start}, rounds={"workers": 2, "timeout_seconds": 86_400}, lease_seconds=0.2)
    first, second = peer.session(worker_id="a"), peer.session(worker_id="b")
    assert refused(lambda: first.push({"x": gradient_of(1)})).detail.reason == Reason.REASON_HELD
    while workers_of(peer)["a"].round:  # until the lease is over
        pass
    assert refused(lambda: second.push({"x": gradient_of(2)})).detail.reason == Reason.REASON_HELD
    ack = first.push({"x": gradient_of(3)}, sequence=1)  # its number is free
    assert ack.version == 1


def test_a_server_looks_for_ended_leases_after_a_kill(serve, peers, start):
    process = serve()
    peer = peers(process.address)
    peer.create({"x": start}, durability=LEVELS[1], staleness=1, lease_seconds=1.0)
    fast, _ = peer.session(worker_id="fast"), peer.session(worker_id="slow")
    fast.push({"x": gradient_of(0)})
    process.kill()
    fast.peer = peers(serve().address)
    assert until_taken(lambda: fast.push({"x": gradient_of(1)}, sequence=2)).version == 2


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("power", [0.5, 1.0, 2.5])
def test_stale_pushes_have_the_bits_of_the_library_with_a_smaller_learning_rate(serve, peers, start, level, power):
    process = serve()
    peer = peers(process.address)
    peer.create({"x": start}, durability=level, lr=0.01, weight_decay=0.1, settings={"staleness_power": power})
    session, alone = peer.session(), start.copy()
    optimizer = na.Adam([alone], lr=0.01, weight_decay=0.1)
    for number, base in enumerate([0, 0, 0, 3, 1, 5, 0]):
        ack = session.push({"x": gradient_of(number)}, base_version=base)
        assert ack.staleness == number - base
        stale = 1.0 + ack.staleness
        divisor = math.prod([stale] * int(power), start=1.0) * (math.sqrt(stale) if power % 1 else 1.0)
        optimizer.param_groups[0]["lr"] = 0.01 / divisor
        optimizer.step([gradient_of(number)])
    if level != LEVELS[0]:
        process.kill()  # the journal is played back, with the same learning rates
        peer = peers(serve().address)
    assert peer.pull().arrays["x"].tobytes() == alone.tobytes()


@pytest.mark.parametrize("level", LEVELS)
def test_a_push_that_is_too_stale_is_late_in_every_try(peer, refused, start, level):
    peer.create({"x": start}, durability=level, settings={"largest_staleness": 1})
    session = peer.session()
    for number in range(2):
        session.push({"x": gradient_of(number)}, base_version=0)
    before = peer.pull().arrays["x"].tobytes()
    for _ in range(2):  # the second one is a retry
        late = refused(lambda: session.push({"x": gradient_of(2)}, base_version=0, sequence=3))
        assert (late.code, late.detail.reason) == (grpc.StatusCode.FAILED_PRECONDITION, Reason.REASON_LATE)
        assert late.detail.sequence_recorded
        assert "largest_staleness=1" in late.message
    assert peer.pull().arrays["x"].tobytes() == before
    assert session.push({"x": gradient_of(2)}, base_version=1, sequence=4).staleness == 1


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({"staleness": 0, "mode": model_pb2.MODE_SSP}, "staleness: expected a whole number from 1"),
        ({"staleness": 1 << 31, "mode": model_pb2.MODE_SSP}, "staleness: expected a whole number from 1"),
        ({"mode": model_pb2.MODE_SSP}, "need staleness"),
        ({"staleness": 1}, "others have none"),
        ({"lease_seconds": 0.0}, "lease_seconds: expected a finite number of seconds above 0"),
        ({"lease_seconds": math.nan}, "lease_seconds: expected"),
        ({"settings": model_pb2.Settings(staleness_power=0.3)}, "staleness_power=0.3"),
        ({"settings": model_pb2.Settings(staleness_power=4.5)}, "staleness_power=4.5"),
        ({"settings": model_pb2.Settings(staleness_power=-0.5)}, "staleness_power=-0.5"),
        ({"settings": model_pb2.Settings(staleness_power=math.nan)}, "staleness_power=nan"),
        ({"settings": model_pb2.Settings(largest_staleness=0)}, "largest_staleness=0"),
        ({"mode": 9}, "mode=9"),
    ],
)
def test_a_model_with_invalid_settings_is_refused(peer, refused, fields, what):
    spec = model_pb2.ModelSpec(name="m", dtype=1, tensors=[model_pb2.TensorSpec(name="x", shape=[0])], **fields)
    header = pb.CreateModelHeader(spec=spec, request_id="r", checksum_kind=1)
    status = refused(lambda: peer.stub.CreateModel(iter([pb.CreateModelRequest(header=header)])))
    assert status.detail.reason == Reason.REASON_INVALID_REQUEST
    assert what in status.message
