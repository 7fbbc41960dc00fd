"""Many workers at once: versions without gaps, one hash, consistent pulls, and a budget that is kept."""

import contextlib
import dataclasses
import hashlib
import threading
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest
import xxhash
from grpc_health.v1 import health_pb2, health_pb2_grpc

import numba_adam as na
from numba_adam.ps.v1 import model_pb2
from numba_adam.ps.v1 import parameter_service_pb2 as pb
from numba_adam.ps.v1.error_pb2 import Reason
from numba_adam.server.config import ServerConfig
from numba_adam.server.embedded import Server

WORKERS, PUSHES = 4, 25


def gradient_of(worker, number, size):
    """Return the gradient of one worker's push; always the same."""
    return np.random.default_rng([worker, number]).standard_normal(size, dtype=np.float32)


def sha256(*arrays):
    found = hashlib.sha256()
    for array in arrays:
        found.update(np.ascontiguousarray(array))
    return found.hexdigest()


def test_the_state_equals_a_replay_in_version_order(config, peers):
    """Four workers push, sometimes twice, and the server restarts in between. One SHA-256 shows that none is lost."""
    size = 40_000  # enough for the parallel kernel
    start = np.random.default_rng(0).standard_normal(size, dtype=np.float32)
    order = {}

    def work(address, worker, numbers):
        peer = peers(address)
        session = sessions.get(worker) or sessions.setdefault(worker, peer.session(worker_id=f"worker-{worker}"))
        session.peer = peer
        for number in numbers:
            gradient = {"x": gradient_of(worker, number, size)}
            ack = session.push(gradient, sequence=number)
            assert not ack.duplicate
            order[ack.version] = (worker, number)
            if number % 3 == 0:
                again = session.push(gradient, sequence=number)
                assert (again.version, again.duplicate) == (ack.version, True)

    sessions = {}
    for numbers in (range(1, PUSHES), range(PUSHES, 2 * PUSHES)):
        with Server(config) as server, ThreadPoolExecutor(WORKERS) as pool:
            peers(server.address).create({"x": start}, exist_ok=True, lr=0.01, weight_decay=0.1)
            list(pool.map(lambda worker: work(server.address, worker, numbers), range(WORKERS)))  # noqa: B023
            pulled = peers(server.address).pull()
            arena = server._runtime.registry.get("model").arena
            found = sha256(pulled.arrays["x"], arena.exp_avg, arena.exp_avg_sq)

    assert sorted(order) == list(range(1, WORKERS * (2 * PUSHES - 1) + 1))
    param, exp_avg, exp_avg_sq = start.copy(), np.zeros_like(start), np.zeros_like(start)
    for version in sorted(order):
        gradient = gradient_of(*order[version], size)
        na.adam_update(param, gradient, exp_avg, exp_avg_sq, version, lr=0.01, weight_decay=0.1)
    assert found == sha256(param, exp_avg, exp_avg_sq)


def test_a_pull_during_pushes_returns_one_version(server, peers):
    """All elements of a version are equal, so a mixture of versions would be detected."""
    peer = peers(server.address)
    peer.create({"x": np.zeros(300_000, np.float32)}, lr=0.1)
    done = threading.Event()
    seen = []

    def push():
        session = peer.session()
        for number in range(60):
            session.push({"x": np.full(300_000, number % 7 - 3, np.float32)})
        done.set()

    def pull():
        mine = peers(server.address)
        versions = []
        while not done.is_set() or not versions:
            pulled = mine.pull()
            assert (pulled.arrays["x"] == pulled.arrays["x"][0]).all()
            versions.append(pulled.state.version)
        assert versions == sorted(versions)
        seen.append(len(versions))

    with ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(task) for task in (push, pull, pull, pull)]
        for future in futures:
            future.result(800)
    assert sum(seen) > 3


def test_a_slow_pull_keeps_its_version_and_delays_nobody(server, peers):
    peer = peers(server.address)
    size = 4_000_000
    peer.create({"x": np.zeros(size, np.float32)}, lr=0.1)
    session = peer.session()
    answers = peer.stub.Pull(pb.PullRequest(model="model", checksum_kind=1))
    header = next(answers).header
    assert header.state.version == 0
    for _ in range(3):
        session.push({"x": np.ones(size, np.float32)})
    payload, trailer = b"", None
    for answer in answers:
        payload += answer.chunk.data
        trailer = answer.trailer
    assert payload == bytes(4 * size)
    assert trailer.checksum == xxhash.xxh3_64_intdigest(payload)


@pytest.fixture
def tight(tmp_path):
    """Return settings with a budget for a model of 1 MB, one pull, and one push besides the model's own slot."""
    return ServerConfig(
        listen="127.0.0.1:0",
        data_dir=tmp_path / "data",
        memory_budget_bytes=4 * (1 << 20) + 4096 + 2 * (1 << 20),
        snapshot_interval_seconds=0,
        snapshot_every_pushes=0,
        stall_seconds=800,
        rpc_threads=16,
    )


@pytest.mark.parametrize("changes", [{}, {"dtype": model_pb2.DTYPE_BFLOAT16}], ids=["float32", "bfloat16"])
def test_transfers_beyond_the_budget_are_told_to_retry(tight, peers, refused, changes):
    """A gradient in bfloat16 needs as much memory as a wide one: it is widened when it arrives."""
    x = np.ones(1 << 18, np.float32)
    grad = (x.view(np.uint32) >> 16).astype(np.uint16) if changes else x
    finish = threading.Event()
    with Server(tight) as server:
        peer = peers(server.address)
        peer.create({"x": x})
        begun = threading.Semaphore(0)

        def slowly(messages):
            yield next(messages)
            yield next(messages)
            begun.release()
            finish.wait(800)
            yield from messages

        sessions = [peer.session(worker_id=f"w{number}") for number in range(4)]
        half = [
            peer.stub.Push.future(slowly(s.messages({"x": grad}, chunk_bytes=1 << 15, **changes))) for s in sessions[:3]
        ]
        for _ in half:
            assert begun.acquire(timeout=800)
        while peer.stub.GetServerStatus(pb.GetServerStatusRequest()).memory_used_bytes < tight.memory_budget_bytes:
            assert not any(push.done() for push in half)  # until the server has seen all three headers
        refusal = refused(lambda: sessions[3].push({"x": grad}, **changes))
        assert (refusal.code, refusal.detail.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, Reason.REASON_BUDGET)
        assert refusal.detail.retry_after_milliseconds > 0
        assert not refusal.detail.sequence_recorded
        assert refused(peer.pull).detail.reason == Reason.REASON_BUDGET
        assert refused(lambda: peer.create({"x": x}, name="second")).detail.reason == Reason.REASON_BUDGET
        finish.set()
        assert sorted(push.result(800).ack.version for push in half) == [1, 2, 3]
        assert sessions[3].push({"x": grad}, sequence=1, **changes).version == 4
        assert peer.pull().state.version == 4
        refusal = refused(lambda: peer.create({"x": np.ones(1 << 20, np.float32)}, name="huge"))
        assert refusal.detail.reason == Reason.REASON_TOO_LARGE
        assert refusal.detail.retry_after_milliseconds == 0


def test_pulls_of_one_version_share_one_copy(server, peers):
    peer = peers(server.address)
    peer.create({"x": np.zeros(1 << 20, np.float32)})
    before = server._runtime.pool.used_bytes
    calls = [peer.stub.Pull(pb.PullRequest(model="model", checksum_kind=1)) for _ in range(8)]
    assert all(next(call).header.state.version == 0 for call in calls)
    assert server._runtime.pool.used_bytes - before == 1 << 22
    for call in calls:
        assert sum(len(answer.chunk.data) for answer in call) == 1 << 22


@contextlib.contextmanager
def half_sent(session, grads):
    """Send the first half of a push; yields its future, and sends the rest when the context ends."""
    sent, go_on = threading.Event(), threading.Event()

    def slowly():
        messages = list(session.messages(grads, chunk_bytes=1 << 16))
        yield from messages[: len(messages) // 2]
        sent.set()
        go_on.wait(800)
        yield from messages[len(messages) // 2 :]

    push = session.peer.stub.Push.future(slowly())
    assert sent.wait(800)
    try:
        yield push
    finally:
        go_on.set()


def wait_for_transfers(server, count):
    """Wait until the server receives this number of pushes; the test's timeout is the limit."""
    while len(server._runtime.pushes.receiving) != count:
        threading.Event().wait(0.001)


def test_two_pushes_received_at_the_same_time_do_not_share_memory(server, peer):
    start = np.ones(1 << 18, np.float32)
    peer.create({"x": start}, lr=0.1)
    first, second = (peer.session(worker_id=name) for name in ("first", "second"))
    grads = [np.random.default_rng(seed).standard_normal(1 << 18, dtype=np.float32) for seed in (1, 2)]
    with half_sent(first, {"x": grads[0]}) as push:
        wait_for_transfers(server, 1)
        assert second.push({"x": grads[1]}).version == 1
    assert push.result(800).ack.version == 2
    exp_avg, exp_avg_sq = np.zeros_like(start), np.zeros_like(start)
    for step, grad in ((1, grads[1]), (2, grads[0])):
        na.adam_update(start, grad, exp_avg, exp_avg_sq, step, lr=0.1)
    np.testing.assert_array_equal(peer.pull().arrays["x"], start)


def test_a_push_of_a_session_fenced_meanwhile_changes_nothing(server, peer, refused):
    x = {"x": np.ones(1 << 18, np.float32)}
    peer.create(x)
    older = peer.session()
    with half_sent(older, x) as push:
        wait_for_transfers(server, 1)
        newer = peer.session()
    assert refused(push.result).detail.reason == Reason.REASON_SESSION_FENCED
    assert (peer.pull().arrays["x"] == 1).all()
    assert newer.push(x).version == 1


def test_sequential_pushes_need_only_the_models_own_memory(server, peer):
    x = {"x": np.ones(1 << 18, np.float32)}
    peer.create(x)
    session, before = peer.session(), server._runtime.pool.used_bytes
    for _ in range(3):
        session.push(x)
    assert server._runtime.pool.used_bytes == before


def test_finished_waits_for_a_version_do_not_count(config, server, peer):
    """Sequentially, as many as the limit of concurrent calls."""
    peer.create({"x": np.ones(4, np.float32)})
    session, waiters = peer.session(), server._runtime.waiters
    all_free = waiters.free
    for version in range(1, config.rpc_threads + 1):
        request = pb.PullRequest(model="model", min_version=version, state_id=session.state_id, checksum_kind=1)
        answers = peer.stub.Pull(request, timeout=800)
        while waiters.free == all_free and not answers.done():  # the test's timeout is its limit
            threading.Event().wait(0.001)
        session.push({"x": np.ones(4, np.float32)})
        assert next(answers).header.state.version == version
    assert waiters.free == all_free


def test_a_busy_server_still_reports_that_it_is_serving(config, peers, params, grads_of):
    """Otherwise a supervisor would consider it dead and kill it."""
    with Server(dataclasses.replace(config, rpc_threads=4)) as server:
        peer = peers(server.address)
        peer.create(params)
        finish = threading.Event()
        grads = grads_of(params, np.random.default_rng(9))

        def slowly(session):
            header, *rest = session.messages(grads)
            yield header
            finish.wait(800)
            yield from rest

        sessions = [peer.session(worker_id=f"w{number}") for number in range(4)]
        pushes = [peer.stub.Push.future(slowly(session)) for session in sessions]
        while len(server._runtime.pushes.receiving) < 4:  # the test's timeout is its limit
            finish.wait(0.01)
        stub = health_pb2_grpc.HealthStub(peer.channel)
        request = health_pb2.HealthCheckRequest()
        assert stub.Check(request, timeout=800).status == health_pb2.HealthCheckResponse.SERVING
        watch = stub.Watch(request, timeout=800)
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        watch.cancel()
        finish.set()
        assert sorted(push.result(800).ack.version for push in pushes) == [1, 2, 3, 4]
