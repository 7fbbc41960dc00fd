"""The mode "sync": each version is the mean of one gradient of each of several workers, in any order of arrival."""

import contextlib
import itertools
from functools import partial

import grpc
import numpy as np
import pytest

from numba_adam.ps.v1 import model_pb2
from numba_adam.ps.v1 import parameter_service_pb2 as pb
from numba_adam.ps.v1.error_pb2 import Reason
from numba_adam.ps.v1.parameter_service_pb2_grpc import ParameterServiceStub
from numba_adam.server.embedded import Server

LEVELS = (model_pb2.DURABILITY_MEMORY, model_pb2.DURABILITY_PROCESS, model_pb2.DURABILITY_DISK)
NEVER = {"timeout_seconds": 86_400.0}
SIZE = 5_000
LR, BETA1, BETA2, EPS = 0.01, 0.9, 0.999, 1e-8


def gradient_of(worker, number, dtype="float32", size=SIZE):
    return np.random.default_rng([worker, number]).standard_normal(size).astype(dtype)


def mean_of(gradients):
    """The sum in order, then one division, all in the gradients' own dtype."""
    total = gradients[0].copy()
    for gradient in gradients[1:]:
        total = total + gradient
    return total / total.dtype.type(len(gradients))


class Adam:
    """The update of numba-adam's documents, in NumPy: "hat", with float64 folded to the dtype's factors."""

    def __init__(self, param):
        self.param, self.exp_avg, self.exp_avg_sq = param.astype("float64"), 0.0, 0.0
        self.steps = 0

    def step(self, grad):
        self.steps += 1
        grad = grad.astype("float64")
        self.exp_avg = BETA1 * self.exp_avg + (1 - BETA1) * grad
        self.exp_avg_sq = BETA2 * self.exp_avg_sq + (1 - BETA2) * grad * grad
        size = LR * np.sqrt(1 - BETA2**self.steps) / (1 - BETA1**self.steps)
        self.param -= size * self.exp_avg / (np.sqrt(self.exp_avg_sq) + EPS)


def held(refused, call):
    """Make a call that is held in its round."""
    status = refused(call)
    assert status.detail.reason == Reason.REASON_HELD, status
    assert status.code is grpc.StatusCode.UNAVAILABLE
    assert not status.detail.sequence_recorded
    assert status.detail.retry_after_milliseconds
    return status.detail.state


def key(session, sequence=1):
    return pb.AwaitPushRequest(
        model=session.model,
        state_id=session.state_id,
        worker_id=session.worker_id,
        epoch=session.epoch,
        sequence=sequence,
    )


def awaited(session, sequence=1):
    (answer,) = session.peer.stub.AwaitPush(key(session, sequence), timeout=800)
    return answer


@pytest.fixture
def start():
    return np.random.default_rng(5).standard_normal(SIZE, dtype=np.float32)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_rounds_have_the_bits_of_one_process_that_steps_with_the_mean(peer, refused, start, level, dtype):
    start = start.astype(dtype)
    peer.create({"x": start}, "team", lr=LR, durability=level, rounds={"workers": 3, **NEVER})
    peer.create({"x": start}, "alone", lr=LR)
    team = [peer.session("team", f"w{number}") for number in range(3)]
    alone, oracle = peer.session("alone"), Adam(start)
    for round_number in range(4):
        gradients = [gradient_of(worker, round_number, dtype) for worker in range(3)]
        last = round_number % 3  # another worker closes each round
        for worker in {0, 1, 2} - {last}:
            push = partial(team[worker].push, {"x": gradients[worker]}, base_version=round_number)
            state = held(refused, push)
            assert state.version == round_number
        closing = team[last].push({"x": gradients[last]}, base_version=round_number)
        answers = [awaited(team[worker], round_number + 1).ack for worker in range(3)]
        assert [answer.version for answer in (closing, *answers)] == [round_number + 1] * 4
        assert {answer.state.durability for answer in answers} == {level}
        for session in team:
            session.sequence = round_number + 1
        alone.push({"x": mean_of(gradients)}, base_version=round_number)
        oracle.step(mean_of(gradients))
    pulled = peer.pull("team").arrays["x"]
    assert pulled.tobytes() == peer.pull("alone").arrays["x"].tobytes()
    np.testing.assert_allclose(pulled, oracle.param, rtol=1e-5, atol=1e-6)


def test_the_bits_do_not_depend_on_the_order_of_arrival(peer, refused, start):
    found = set()
    for order in itertools.permutations(range(3)):
        name = "model" + "".join(map(str, order))
        peer.create({"x": start}, name, rounds={"workers": 3, **NEVER})
        sessions = {worker: peer.session(name, f"w{worker}") for worker in order}
        gradients = {worker: gradient_of(worker, 1) * np.float32(10**worker) for worker in order}
        for worker in order[:2]:
            held(refused, partial(sessions[worker].push, {"x": gradients[worker]}))
        sessions[order[2]].push({"x": gradients[order[2]]})
        found.add(peer.pull(name).arrays["x"].tobytes())
    assert len(found) == 1


def test_large_gradients_have_the_same_bits_on_several_threads(peer, refused):
    size = 1_500_001
    start = np.zeros(size, np.float32)
    peer.create({"x": start}, "team", rounds={"workers": 2, **NEVER})
    peer.create({"x": start}, "alone")
    gradients = [gradient_of(worker, 1, size=size) for worker in range(2)]
    held(refused, lambda: peer.session("team", "a").push({"x": gradients[0]}))
    peer.session("team", "b").push({"x": gradients[1]})
    peer.session("alone").push({"x": mean_of(gradients)})
    assert peer.pull("team").arrays["x"].tobytes() == peer.pull("alone").arrays["x"].tobytes()


def test_an_array_that_a_gradient_lacks_counts_as_zero_and_one_that_all_lack_does_not_change(peer, refused):
    params = {name: np.ones(4, np.float32) for name in ("a", "b", "c")}
    peer.create(params, "team", lr=LR, rounds={"workers": 2, **NEVER})
    peer.create(params, "alone", lr=LR)
    grads = [np.full(4, value, np.float32) for value in (1, 2, 4)]
    held(refused, lambda: peer.session("team", "v").push({"a": grads[0], "b": grads[1], "c": None}))
    peer.session("team", "w").push({"a": grads[2], "b": None, "c": None})
    peer.session("alone").push({"a": np.full(4, 2.5, np.float32), "b": np.full(4, 1, np.float32), "c": None})
    team, alone = peer.pull("team").arrays, peer.pull("alone").arrays
    assert {name: array.tobytes() for name, array in team.items()} == {n: a.tobytes() for n, a in alone.items()}
    assert (team["c"] == 1).all()


@pytest.mark.parametrize("level", LEVELS)
def test_with_backup_workers_the_first_close_the_round_and_the_others_are_late(peer, refused, start, level):
    peer.create({"x": start}, durability=level, rounds={"workers": 4, "backup": 2, **NEVER})
    sessions = [peer.session(worker_id=f"w{number}") for number in range(4)]
    held(refused, lambda: sessions[3].push({"x": gradient_of(3, 1)}))
    assert sessions[1].push({"x": gradient_of(1, 1)}).version == 1
    after = peer.pull().arrays["x"].tobytes()
    for session in (sessions[0], sessions[2]):
        for _ in range(2):  # the second one is a retry
            late = refused(lambda s=session: s.push({"x": gradient_of(0, 1)}, sequence=1))
            assert (late.code, late.detail.reason) == (grpc.StatusCode.FAILED_PRECONDITION, Reason.REASON_LATE)
            assert late.detail.sequence_recorded
            assert late.detail.state.version == 1
        assert refused(lambda s=session: awaited(s)).detail.reason == Reason.REASON_LATE
    assert peer.pull().arrays["x"].tobytes() == after
    held(refused, lambda: sessions[0].push({"x": gradient_of(0, 2)}, sequence=2, base_version=1))


def test_a_round_without_enough_gradients_is_aborted_at_its_timeout_and_everyone_is_told(peer, refused, start):
    peer.create({"x": start}, rounds={"workers": 3, "timeout_seconds": 0.05})
    sessions = [peer.session(worker_id=name) for name in "ab"]
    for session in sessions:
        status = refused(lambda s=session: s.push({"x": gradient_of(1, 1)}))
        assert status.detail.reason in {Reason.REASON_HELD, Reason.REASON_ROUND_ABORTED}
    for session in sessions:
        told = refused(lambda s=session: awaited(s))
        assert (told.code, told.detail.reason) == (grpc.StatusCode.ABORTED, Reason.REASON_ROUND_ABORTED)
        assert told.detail.sequence_recorded
        assert "of the 3 gradients" in told.message
        again = refused(lambda s=session: s.push({"x": gradient_of(1, 1)}, sequence=1))
        assert again.detail.reason == Reason.REASON_ROUND_ABORTED
    assert peer.pull().arrays["x"].tobytes() == start.tobytes()
    assert peer.state().version == 0


def test_a_retry_is_held_once_and_other_content_under_its_number_is_refused(peer, refused, start):
    peer.create({"x": start}, rounds={"workers": 2, **NEVER})
    first, second = (peer.session(worker_id=name) for name in "ab")
    for _ in range(3):
        held(refused, lambda: first.push({"x": gradient_of(1, 1)}, sequence=1))
    other = refused(lambda: first.push({"x": gradient_of(1, 2)}, sequence=1))
    assert other.detail.reason == Reason.REASON_SEQUENCE_REUSED
    after = refused(lambda: first.push({"x": gradient_of(1, 2)}, sequence=2))
    assert after.detail.reason == Reason.REASON_IN_PROGRESS
    assert second.push({"x": gradient_of(2, 1)}).version == 1
    assert first.push({"x": gradient_of(1, 1)}, sequence=1).duplicate


def test_a_worker_that_starts_again_takes_its_old_gradient_out_of_the_round(peer, refused, start):
    peer.create({"x": start}, "team", rounds={"workers": 2, **NEVER})
    peer.create({"x": start}, "alone")
    old = peer.session("team", "a")
    held(refused, lambda: old.push({"x": gradient_of(1, 1)}))
    new = peer.session("team", "a")
    held(refused, lambda: new.push({"x": gradient_of(1, 2)}))
    assert peer.session("team", "b").push({"x": gradient_of(2, 1)}).version == 1
    peer.session("alone").push({"x": mean_of([gradient_of(1, 2), gradient_of(2, 1)])})
    assert peer.pull("team").arrays["x"].tobytes() == peer.pull("alone").arrays["x"].tobytes()
    assert refused(lambda: awaited(old)).detail.reason == Reason.REASON_SESSION_FENCED


def test_a_push_that_the_server_does_not_have_must_be_sent_again(peer, start):
    peer.create({"x": start}, rounds={"workers": 2, **NEVER})
    assert not awaited(peer.session()).HasField("ack")


def test_a_bad_gradient_is_in_no_round(peer, refused, start):
    peer.create({"x": start}, rounds={"workers": 2, **NEVER})
    first, second = (peer.session(worker_id=name) for name in "ab")
    held(refused, lambda: first.push({"x": gradient_of(1, 1)}))
    bad = refused(lambda: second.push({"x": gradient_of(2, 1) * np.nan}))
    assert bad.detail.reason == Reason.REASON_NON_FINITE
    assert peer.state().version == 0
    assert second.push({"x": gradient_of(2, 1)}, sequence=2).version == 1


def test_a_loss_scale_is_refused(peer, refused, start):
    peer.create({"x": start}, rounds={"workers": 2, **NEVER})
    scaled = refused(lambda: peer.session().push({"x": gradient_of(1, 1)}, loss_scale=2.0))
    assert scaled.detail.reason == Reason.REASON_PUSH_MISMATCH
    assert "loss_scale" in scaled.message


def test_more_workers_than_the_model_has_wait_for_memory_and_harm_nobody(peer, refused, start):
    peer.create({"x": start}, rounds={"workers": 3, **NEVER})
    sessions = [peer.session(worker_id=name) for name in "abcdef"]
    for session in sessions[:2]:
        held(refused, lambda s=session: s.push({"x": gradient_of(1, 1)}))
    assert sessions[2].push({"x": gradient_of(1, 1)}).version == 1
    assert refused(lambda: sessions[5].push({"x": gradient_of(1, 1)})).detail.reason == Reason.REASON_LATE


@pytest.mark.parametrize(
    ("rounds", "words"),
    [
        ({}, "workers"),
        ({"workers": 1025}, "workers"),
        ({"workers": 2, "backup": 2}, "backup"),
        ({"workers": 2, "timeout_seconds": 0.0}, "round_timeout_seconds"),
        ({"workers": 2, "timeout_seconds": float("inf")}, "round_timeout_seconds"),
    ],
)
def test_rounds_out_of_range_are_refused(peer, refused, start, rounds, words):
    status = refused(lambda: peer.create({"x": start}, rounds=rounds))
    assert status.code is grpc.StatusCode.INVALID_ARGUMENT
    assert words in status.message


def test_a_model_whose_held_gradients_do_not_fit_the_budget_is_refused(peer, refused, config):
    nbytes = config.memory_budget_bytes // 16
    start = np.zeros(nbytes // 4, np.float32)
    status = refused(lambda: peer.create({"x": start}, rounds={"workers": 12}))
    assert status.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert peer.create({"x": start}, rounds={"workers": 2}).created
    used = peer.stub.GetServerStatus(pb.GetServerStatusRequest()).memory_used_bytes
    assert used >= (4 + 3) * nbytes  # param, two moments, staging; two gradients and their mean


def test_many_calls_wait_for_a_round_without_a_thread_for_each(config, peers, refused, start):
    """There are 16 threads for calls, so 200 calls could not wait if each had one."""
    with Server(config) as server:
        peer = peers(server.address)
        count = 200
        peer.create({"x": start[:8]}, rounds={"workers": count + 1, **NEVER})
        calls = []
        with contextlib.ExitStack() as stack:
            own = [("grpc.use_local_subchannel_pool", 1)]  # a connection of its own
            channels = [stack.enter_context(grpc.insecure_channel(server.address, own)) for _ in range(20)]
            for number in range(count):
                session = peer.session(worker_id=f"w{number:03d}")
                held(refused, lambda s=session: s.push({"x": gradient_of(1, 1, size=8)}))
                calls.append(ParameterServiceStub(channels[number % 20]).AwaitPush(key(session), timeout=800))
            assert peer.stub.GetServerStatus(pb.GetServerStatusRequest(), timeout=800).models
            assert peer.session(worker_id="last").push({"x": gradient_of(1, 1, size=8)}).version == 1
            assert [next(call).ack.version for call in calls] == [1] * count


def test_a_stop_ends_the_calls_that_wait_and_a_deletion_tells_them(config, peers, refused, start):
    with Server(config) as server:
        peer = peers(server.address)
        for name in ("gone", "stopped"):
            peer.create({"x": start}, name, rounds={"workers": 2, **NEVER})
        calls = {}
        for name in ("gone", "stopped"):
            session = peer.session(name)
            held(refused, lambda s=session: s.push({"x": gradient_of(1, 1)}))
            calls[name] = peer.stub.AwaitPush(key(session), timeout=800)
        peer.stub.DeleteModel(pb.DeleteModelRequest(model="gone"))
        assert refused(lambda: next(calls["gone"])).detail.reason == Reason.REASON_MODEL_NOT_FOUND
        server.stop()
        assert refused(lambda: next(calls["stopped"])).code is grpc.StatusCode.UNAVAILABLE
