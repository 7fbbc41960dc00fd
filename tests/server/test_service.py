"""The service over real gRPC, called by generated code: every call and every refusal."""

import hashlib
import re
import threading

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

import numba_adam as na
from numba_adam.ps.v1 import model_pb2, transfer_pb2
from numba_adam.ps.v1 import parameter_service_pb2 as pb
from numba_adam.ps.v1.error_pb2 import Reason
from numba_adam.server.transport.service import METHODS

HYPER = {"lr": 0.05, "weight_decay": 0.01}


@pytest.fixture
def model(peer, params):
    """A model called "model"."""
    peer.create(params, **HYPER)
    return params


@pytest.fixture
def worker(peer, model):
    """A session on it."""
    return peer.session()


@pytest.fixture
def grads(params, grads_of):
    return grads_of(params, np.random.default_rng(1))


@pytest.fixture
def digest(server):
    """Return a function that hashes a model's whole state, including its ledger."""

    def hashed(name="model"):
        model = server._runtime.registry.get(name)
        content = hashlib.sha256(repr({**model.ledger.to_record(), "sessions": None}).encode())
        for array in model.arena.state_arrays().values():
            content.update(array)
        return content.hexdigest()

    return hashed


def reference(params, all_grads, **hyper):
    """Apply gradients in order with the library."""
    state = {name: [array.copy(), np.zeros_like(array), np.zeros_like(array)] for name, array in params.items()}
    steps = dict.fromkeys(params, 0)
    for grads in all_grads:
        for name, grad in grads.items():
            if grad is not None:
                steps[name] += 1
                param, exp_avg, exp_avg_sq = state[name]
                na.adam_update(param, grad, exp_avg, exp_avg_sq, steps[name], **hyper)
    return {name: arrays[0] for name, arrays in state.items()}


def assert_same_bits(found, expected):
    assert list(found) == list(expected)
    for name, array in expected.items():
        assert found[name].shape == array.shape
        assert found[name].tobytes() == array.tobytes(), name


# ---- the calls -----------------------------------------------------------------------------------------------------


def test_a_model_is_created_described_and_listed(peer, params):
    created = peer.create(params, name="b", lr=0.25, amsgrad=True)
    peer.create(params, name="a")
    assert created.created
    assert created.model.parameter_count == 15 + 1 + 0 + 70
    assert created.model.state.version == created.model.state.snapshot_version == 0
    assert created.model.state.durability == model_pb2.DURABILITY_MEMORY
    assert len(created.model.state.state_id) == 32
    assert created.model.spec.hyperparameters.lr == 0.25
    assert created.model.spec.hyperparameters.beta2 == 0.999
    assert created.model.spec.hyperparameters.amsgrad
    assert peer.stub.GetModel(pb.GetModelRequest(model="b")).model == created.model
    listed = peer.stub.ListModels(pb.ListModelsRequest()).models
    assert [model.spec.name for model in listed] == ["a", "b"]
    assert_same_bits(peer.pull("b").arrays, params)


def test_every_push_is_a_step_and_every_answer_has_the_state(peer, worker, params, grads_of):
    rng = np.random.default_rng(2)
    all_grads = [grads_of(params, rng) for _ in range(5)]
    for number, grads in enumerate(all_grads, 1):
        ack = worker.push(grads, base_version=number // 2)
        assert (ack.version, ack.staleness, ack.duplicate) == (number, number - 1 - number // 2, False)
        assert ack.state == model_pb2.StatePoint(
            state_id=worker.state_id, version=number, durability=model_pb2.DURABILITY_MEMORY
        )
    pulled = peer.pull()
    assert pulled.state.version == 5
    assert_same_bits(pulled.arrays, reference(params, all_grads, **HYPER))


def test_one_step_matches_the_formula(peer, grads_of):
    """Compares with float64 arithmetic here, in the order of the paper's section 2."""
    rng = np.random.default_rng(5)
    params = {"x": rng.standard_normal(1000)}
    grads = grads_of(params, rng)
    peer.create(params, lr=0.1, beta1=0.8, beta2=0.99, eps=1e-3)
    peer.session().push(grads)
    g = grads["x"]
    step_size = 0.1 * np.sqrt(1 - 0.99) / (1 - 0.8)
    expected = params["x"] - step_size * (0.2 * g) / (np.sqrt(0.01 * g * g) + 1e-3)
    np.testing.assert_allclose(peer.pull().arrays["x"], expected, rtol=1e-12)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_arrays_without_a_gradient_do_not_change_or_count_a_step(peer, grads_of, params, dtype):
    params = {name: array.astype(dtype) for name, array in params.items()}
    peer.create(params, lr=0.1, amsgrad=False)
    worker = peer.session()
    rng = np.random.default_rng(3)
    absent = ({"weight": None}, {}, {"scalar": None, "bias": None}, {})
    all_grads = [grads_of(params, rng) | missing for missing in absent]
    for grads in all_grads:
        worker.push(grads)
    assert_same_bits(peer.pull().arrays, reference(params, all_grads, lr=0.1))


def test_a_push_without_gradients_makes_a_version_but_no_step(peer, worker, params):
    assert worker.push(dict.fromkeys(params), checksum_kind=0).version == 1
    assert_same_bits(peer.pull().arrays, params)


def test_push_pull_returns_the_updated_parameters(peer, worker, params, grads):
    ack, pulled = peer.push_pull(worker, grads)
    assert (ack.version, ack.duplicate) == (1, False)
    assert pulled.state.version >= 1
    assert_same_bits(pulled.arrays, reference(params, [grads], **HYPER))
    worker.sequence -= 1
    ack, pulled = peer.push_pull(worker, grads)
    assert (ack.version, ack.duplicate) == (1, True)
    assert_same_bits(pulled.arrays, reference(params, [grads], **HYPER))


def test_crc32c_works_in_both_directions(peer, worker, grads, wire):
    import google_crc32c

    checksum = google_crc32c.value(wire.payload_of(grads))
    assert worker.push(grads, checksum_kind=transfer_pb2.CHECKSUM_KIND_CRC32C, checksum=checksum).version == 1
    request = pb.PullRequest(model="model", checksum_kind=transfer_pb2.CHECKSUM_KIND_CRC32C)
    header, *chunks, trailer = list(peer.stub.Pull(request))
    payload = b"".join(answer.chunk.data for answer in chunks)
    assert header.header.checksum_kind == transfer_pb2.CHECKSUM_KIND_CRC32C
    assert trailer.trailer.checksum == google_crc32c.value(payload)


def test_large_arrays_are_sent_in_many_chunks(peer, grads_of):
    rng = np.random.default_rng(4)
    params = {"x": rng.standard_normal((1500, 1000), dtype=np.float32)}
    peer.create(params)
    grads = grads_of(params, rng)
    peer.session().push(grads, chunk_bytes=77_777)
    answers = list(peer.stub.Pull(pb.PullRequest(model="model", checksum_kind=1)))
    assert len(answers) == 2 + 6
    assert_same_bits(peer.pull().arrays, reference(params, [grads]))


def test_a_pull_waits_for_the_requested_version(peer, worker, grads):
    pulled = []
    waiter = threading.Thread(
        target=lambda: pulled.append(peer.pull(min_version=2, state_id=worker.state_id)), name="waiting-puller"
    )
    waiter.start()
    for _ in range(2):
        worker.push(grads)
    waiter.join(800)
    assert pulled[0].state.version == 2


def test_a_pull_of_a_version_that_is_never_reached_ends_at_its_deadline(peer, worker, refused):
    refusal = refused(lambda: peer.pull(min_version=9, state_id=worker.state_id, timeout=0.2))
    assert refusal.code == grpc.StatusCode.DEADLINE_EXCEEDED
    assert peer.pull().state.version == 0


def test_waiting_calls_do_not_block_pushes(server, peer, worker, grads, config, refused):
    request = pb.PullRequest(model="model", min_version=1, state_id=worker.state_id, checksum_kind=1)
    waiting = [peer.stub.Pull(request, timeout=800) for _ in range(config.rpc_threads // 2)]
    while server._runtime.waiters.free:  # the test's timeout is its limit
        peer.state()
    refusal = refused(lambda: list(peer.stub.Pull(request, timeout=800)))  # one more is told to come again
    assert refusal.code == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert worker.push(grads).version == 1
    assert all(next(call).header.state.version == 1 for call in waiting)


def test_a_requested_snapshot_is_on_disk_when_the_call_returns(peer, worker, grads, config, params):
    peer.create(params, name="other")
    worker.push(grads)
    found = peer.stub.Snapshot(pb.SnapshotRequest(model="model")).snapshots
    assert [(info.model, info.state.version, info.state.snapshot_version) for info in found] == [("model", 1, 1)]
    newest = max((config.data_dir / "models" / "model").iterdir())
    assert newest.stat().st_size == found[0].size_bytes
    assert found[0].duration_seconds > 0
    assert peer.state().snapshot_version == 1
    assert [info.model for info in peer.stub.Snapshot(pb.SnapshotRequest()).snapshots] == ["model", "other"]


def test_the_status_counts_pushes(peer, worker, grads, config, refused):
    worker.push(grads)
    worker.push(grads, sequence=1)
    refused(lambda: worker.push(grads, total_bytes=1))
    status = peer.stub.GetServerStatus(pb.GetServerStatusRequest())
    assert status.server_version == na.__version__
    assert status.memory_budget_bytes == config.memory_budget_bytes
    assert 0 < status.memory_used_bytes < status.memory_budget_bytes
    assert status.threads == 2
    assert status.uptime_seconds > 0
    (model,) = status.models
    assert (model.pushes_applied, model.pushes_repeated, model.pushes_rejected, model.workers) == (1, 1, 1, 1)


def test_deleting_a_model_removes_its_files(peer, worker, grads, params, config, refused):
    worker.push(grads)
    assert peer.stub.DeleteModel(pb.DeleteModelRequest(model="model")).state.version == 1
    assert not (config.data_dir / "models" / "model").exists()
    for call in (lambda: worker.push(grads), peer.pull, peer.session):
        assert refused(call).code == grpc.StatusCode.NOT_FOUND
    again = peer.create(params)
    assert again.created
    assert again.model.state.state_id != worker.state_id
    assert refused(lambda: worker.push(grads)).detail.reason == Reason.REASON_REWOUND


def test_deleting_ends_the_wait_for_a_version(peer, worker, refused):
    answers = peer.stub.Pull(pb.PullRequest(model="model", min_version=1, state_id=worker.state_id, checksum_kind=1))
    peer.stub.DeleteModel(pb.DeleteModelRequest(model="model"))
    assert refused(lambda: list(answers)).code == grpc.StatusCode.NOT_FOUND


def test_health_and_reflection_are_served(peer):
    health = health_pb2_grpc.HealthStub(peer.channel)
    for name in ("", "numba_adam.ps.v1.ParameterService"):
        status = health.Check(health_pb2.HealthCheckRequest(service=name)).status
        assert status == health_pb2.HealthCheckResponse.SERVING
    stub = reflection_pb2_grpc.ServerReflectionStub(peer.channel)
    (answer,) = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
    names = {service.name for service in answer.list_services_response.service}
    assert names == {
        "numba_adam.ps.v1.ParameterService",
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
    }


def test_every_call_of_the_protocol_is_served():
    assert set(METHODS) | {"AwaitPush"} == set(pb.DESCRIPTOR.services_by_name["ParameterService"].methods_by_name)


# ---- creating ------------------------------------------------------------------------------------------------------


def test_creating_again_with_the_same_request_is_a_retry(peer, params, worker, grads):
    first = peer.create(params, name="m", request_id="one")
    again = peer.create(params, name="m", request_id="one")
    assert again.created
    assert again.model == first.model


def test_exist_ok_returns_the_existing_model(peer, params, worker, grads):
    worker.push(grads)
    found = peer.create(params, exist_ok=True, **HYPER)
    assert not found.created
    assert found.model.state.version == 1


def test_without_exist_ok_an_existing_model_is_an_error(peer, model, refused):
    refusal = refused(lambda: peer.create(model, **HYPER))
    assert (refusal.code, refusal.detail.reason) == (grpc.StatusCode.ALREADY_EXISTS, Reason.REASON_MODEL_EXISTS)
    assert "exist_ok" in refusal.message


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"lr": 0.5}, ["lr", "0.05", "0.5"]),
        ({"amsgrad": True}, ["amsgrad", "False", "True"]),
    ],
)
def test_with_exist_ok_a_different_model_is_an_error_that_names_the_difference(peer, model, refused, changes, words):
    refusal = refused(lambda: peer.create(model, exist_ok=True, **(HYPER | changes)))
    assert refusal.code == grpc.StatusCode.ALREADY_EXISTS
    assert all(word in refusal.message for word in words)
    assert "weight_decay" not in refusal.message


def test_many_workers_can_create_the_same_model_at_once(peer, params):
    answers, problems = [], []

    def create():
        while True:
            try:
                answers.append(peer.create(params, exist_ok=True))
                return
            except grpc.RpcError as error:  # another one is creating it: come again, as the answer says
                problems.append(error.code())
                if error.code() != grpc.StatusCode.ABORTED:
                    return

    threads = [threading.Thread(target=create) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(800)
    assert set(problems) <= {grpc.StatusCode.ABORTED}
    assert sum(answer.created for answer in answers) == 1
    assert len({answer.model.state.state_id for answer in answers}) == 1


def spec_of(**changes):
    fields = {"name": "m", "dtype": model_pb2.DTYPE_FLOAT32, "tensors": [model_pb2.TensorSpec(name="x", shape=[2])]}
    return model_pb2.ModelSpec(**(fields | changes))


TWICE = [model_pb2.TensorSpec(name="x", shape=[1]), model_pb2.TensorSpec(name="x", shape=[1])]
HUGE = [model_pb2.TensorSpec(name="x", shape=[2**63])]


@pytest.mark.parametrize(
    ("spec", "header", "words"),
    [
        (spec_of(name="../x"), {}, "model name '../x'"),
        (spec_of(name=""), {}, "model name ''"),
        (spec_of(dtype=0), {}, "dtype=0"),
        (spec_of(dtype=7), {}, "dtype=7"),
        (spec_of(tensors=[]), {}, "at least one array"),
        (spec_of(tensors=TWICE), {}, "given twice"),
        (spec_of(tensors=[model_pb2.TensorSpec(name="", shape=[2])]), {}, "array name ''"),
        (spec_of(tensors=[model_pb2.TensorSpec(name="a\n", shape=[2])]), {}, "array name"),
        (spec_of(tensors=HUGE), {}, "2\\*\\*62 bytes"),
        (spec_of(tensors=[model_pb2.TensorSpec(name="x", shape=[2**40, 2**40])]), {}, "2\\*\\*62 bytes"),
        (spec_of(mode=9), {}, "mode=9"),
        (spec_of(durability=9), {}, "durability=9"),
        (spec_of(hyperparameters=model_pb2.Hyperparameters(lr=-1)), {}, "lr=-1"),
        (spec_of(hyperparameters=model_pb2.Hyperparameters(beta1=float("nan"))), {}, "betas"),
        (spec_of(hyperparameters=model_pb2.Hyperparameters(eps_mode=9)), {}, "eps_mode=9"),
        (spec_of(), {"request_id": ""}, "request_id"),
        (spec_of(), {"total_bytes": 4}, "total_bytes=4: these arrays have 8 bytes"),
        (spec_of(), {"checksum_kind": 0}, "checksum_kind=0"),
    ],
)
def test_invalid_models_are_refused(peer, refused, wire, spec, header, words):
    fields = {"spec": spec, "request_id": "r", "total_bytes": 8, "checksum_kind": 1} | header
    messages = wire.transfer(pb.CreateModelRequest, pb.CreateModelHeader(**fields), b"\0" * 8)
    refusal = refused(lambda: peer.stub.CreateModel(messages))
    assert refusal.code == grpc.StatusCode.INVALID_ARGUMENT
    assert re.search(words, refusal.message)
    assert not peer.stub.ListModels(pb.ListModelsRequest()).models


def test_non_finite_initial_values_create_nothing(peer, params, refused, config, server):
    before = server._runtime.pool.used_bytes
    bad = params | {"bias": np.full(70, np.inf, np.float32)}
    refusal = refused(lambda: peer.create(bad))
    assert refusal.detail.reason == Reason.REASON_NON_FINITE
    assert "initial value 'bias' holds inf at element 0" in refusal.message
    assert server._runtime.pool.used_bytes == before
    assert not list((config.data_dir / "models").iterdir())
    assert peer.create(params).created


# ---- pushes that are refused ---------------------------------------------------------------------------------------


def specs(*pairs):
    return [model_pb2.TensorSpec(name=name, shape=shape) for name, shape in pairs]


MODEL = (("weight", [5, 3]), ("scalar", []), ("empty", [0, 4]), ("bias", [70]))

MISMATCHES = {
    "an unknown array": ({"tensors": specs(*MODEL[:3], ("bais", [70]))}, "'bais': model 'model' has only"),
    "one array twice": ({"tensors": specs(*MODEL, MODEL[0])}, "'weight': named more than once"),
    "present and absent": ({"absent": ["bias"]}, "'bias': named more than once"),
    "an array missing": ({"tensors": specs(*MODEL[:3])}, "'bias' is missing"),
    "another shape of the same size": ({"tensors": specs(*MODEL[:3], ("bias", [7, 10]))}, r"shape \(7, 10\)"),
    "a transposed shape": ({"tensors": specs(("weight", [3, 5]), *MODEL[1:])}, r"'weight' has shape \(3, 5\)"),
    "another order": ({"tensors": specs(*reversed(MODEL))}, "order"),
    "another dtype": ({"dtype": model_pb2.DTYPE_FLOAT64}, "dtype=2: model 'model' has float32"),
    "no dtype": ({"dtype": 0}, "dtype=0"),
    "a size too small": ({"total_bytes": 343}, "total_bytes=343: these arrays have 344 bytes"),
    "a size too large": ({"total_bytes": 2**63}, "total_bytes=9223372036854775808: these arrays have 344"),
}


@pytest.mark.parametrize("case", MISMATCHES)
def test_an_unsuitable_push_is_rejected_and_so_is_its_retry(worker, grads, refused, digest, case):
    changes, words = MISMATCHES[case]
    before = digest()
    refusal = refused(lambda: worker.push(grads, **changes))
    assert refusal.code == grpc.StatusCode.INVALID_ARGUMENT
    assert refusal.detail.reason == Reason.REASON_PUSH_MISMATCH
    assert refusal.detail.sequence_recorded
    assert refusal.detail.state.version == 0
    assert re.search(words, refusal.message), refusal.message
    assert digest() == before
    assert refused(lambda: worker.push(grads, **changes)) == refusal
    assert refused(lambda: worker.push(grads)).detail.reason == Reason.REASON_SEQUENCE_REUSED  # it is used up
    assert worker.push(grads, sequence=2).version == 1


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30, -1.85e19])
@pytest.mark.parametrize("element", [0, 63, 64, 84, 85])
def test_a_non_finite_push_is_rejected_and_so_is_its_retry(worker, grads, refused, digest, value, element):
    """First and last element, both sides of a chunk's boundary, another array; 1e30 has an overflowing square."""
    flat = np.concatenate([grad.ravel() for grad in grads.values()])
    flat[element] = value
    bad = grads | {"weight": flat[:15].reshape(5, 3), "scalar": flat[15].reshape(()), "bias": flat[16:]}
    before = digest()
    refusal = refused(lambda: worker.push(bad, chunk_bytes=256))
    assert (refusal.code, refusal.detail.reason) == (grpc.StatusCode.INVALID_ARGUMENT, Reason.REASON_NON_FINITE)
    assert refusal.detail.sequence_recorded
    name, place = ("weight", element) if element < 15 else ("bias", element - 16)
    assert f"gradient '{name}' holds {np.float32(value)} at element {place}" in refusal.message
    assert digest() == before
    assert refused(lambda: worker.push(bad)) == refusal
    assert worker.push(grads, sequence=2).version == 1


UNRECORDED = {
    "a wrong checksum": (
        {"checksum": 1},
        grpc.StatusCode.DATA_LOSS,
        Reason.REASON_CORRUPT_TRANSFER,
    ),
    "no kind of checksum": ({"checksum_kind": 0}, grpc.StatusCode.INVALID_ARGUMENT, Reason.REASON_INVALID_REQUEST),
    "a base version of the future": (
        {"base_version": 1},
        grpc.StatusCode.INVALID_ARGUMENT,
        Reason.REASON_INVALID_REQUEST,
    ),
    "a number too far ahead": ({"sequence": 3}, grpc.StatusCode.OUT_OF_RANGE, Reason.REASON_SEQUENCE),
    "number zero": ({"sequence": 0}, grpc.StatusCode.OUT_OF_RANGE, Reason.REASON_SEQUENCE),
    "no state": ({"state_id": ""}, grpc.StatusCode.FAILED_PRECONDITION, Reason.REASON_REWOUND),
    "another state": ({"state_id": "f" * 32}, grpc.StatusCode.FAILED_PRECONDITION, Reason.REASON_REWOUND),
    "an epoch never given": ({"epoch": 9}, grpc.StatusCode.FAILED_PRECONDITION, Reason.REASON_SESSION_UNKNOWN),
    "a worker never seen": ({"worker_id": "x"}, grpc.StatusCode.FAILED_PRECONDITION, Reason.REASON_SESSION_UNKNOWN),
    "a model that is not there": ({"model": "x"}, grpc.StatusCode.NOT_FOUND, Reason.REASON_MODEL_NOT_FOUND),
}


@pytest.mark.parametrize("case", UNRECORDED)
def test_an_invalid_request_does_not_use_its_number(worker, grads, refused, digest, case):
    changes, code, reason = UNRECORDED[case]
    before = digest()
    refusal = refused(lambda: worker.push(grads, **changes))
    assert (refusal.code, refusal.detail.reason) == (code, reason)
    assert not refusal.detail.sequence_recorded
    assert refusal.message
    if code != grpc.StatusCode.NOT_FOUND:
        assert refusal.detail.state.state_id == worker.state_id
    assert digest() == before
    assert refused(lambda: worker.push(grads, **changes)) == refusal
    assert worker.push(grads, sequence=1).version == 1


def test_an_older_session_of_the_same_worker_is_fenced(peer, worker, grads, refused, digest):
    assert worker.push(grads).version == 1
    newer = peer.session()
    assert newer.epoch > worker.epoch
    before = digest()
    refusal = refused(lambda: worker.push(grads))
    assert (refusal.code, refusal.detail.reason) == (grpc.StatusCode.FAILED_PRECONDITION, Reason.REASON_SESSION_FENCED)
    assert digest() == before
    assert newer.push(grads).version == 2


def chunk(offset, data):
    return pb.PushRequest(chunk=transfer_pb2.TensorChunk(offset=offset, data=data))


STREAMS = {
    "overlapping chunks": lambda h, p, t: [h, chunk(0, p[:200]), chunk(199, p[199:]), t],
    "a gap between chunks": lambda h, p, t: [h, chunk(0, p[:200]), chunk(201, p[201:]), t],
    "chunks in another order": lambda h, p, t: [h, chunk(200, p[200:]), chunk(0, p[:200]), t],
    "more than was declared": lambda h, p, t: [h, chunk(0, p), chunk(344, b"more"), t],
    "less than was declared": lambda h, p, t: [h, chunk(0, p[:340]), t],
    "no payload at all": lambda h, _, t: [h, t],
    "an empty chunk": lambda h, p, t: [h, chunk(0, b""), chunk(0, p), t],
    "no trailer": lambda h, p, _: [h, chunk(0, p)],
    "a second header": lambda h, p, t: [h, h, chunk(0, p), t],
    "no header": lambda _, p, t: [chunk(0, p), t],
    "an empty message first": lambda h, p, t: [pb.PushRequest(), h, chunk(0, p), t],
    "an empty message within": lambda h, p, t: [h, pb.PushRequest(), chunk(0, p), t],
    "nothing": lambda *_: [],
}


@pytest.mark.parametrize("case", STREAMS)
def test_an_invalid_stream_is_refused_and_does_not_use_its_number(peer, worker, grads, refused, digest, wire, case):
    header, *_, trailer = worker.messages(grads)
    before = digest()
    messages = STREAMS[case](header, wire.payload_of(grads), trailer)
    refusal = refused(lambda: peer.stub.Push(iter(messages)))
    assert (refusal.code, refusal.detail.reason) == (grpc.StatusCode.INVALID_ARGUMENT, Reason.REASON_INVALID_REQUEST)
    assert refusal.message
    assert digest() == before
    assert worker.push(grads, sequence=1).version == 1


def test_messages_after_a_trailer_are_ignored(peer, worker, grads, digest):
    messages = list(worker.messages(grads))
    more = [messages[1], messages[0], pb.PushRequest(), messages[-1]]
    assert peer.stub.Push(iter(messages + more)).ack.version == 1
    after = digest()
    again = peer.stub.Push(iter(messages + more)).ack
    assert (again.version, again.duplicate) == (1, True)
    assert digest() == after


@pytest.mark.parametrize("raw", [b"\xff\xff\xff", b"\x0a\x05abc", b"\x12\x80"])
def test_undecodable_bytes_are_an_invalid_request(peer, refused, raw):
    service = "/numba_adam.ps.v1.ParameterService/"
    stream = peer.channel.stream_unary(service + "Push", None, None)
    unary = peer.channel.unary_unary(service + "OpenSession", None, None)
    for call in (lambda: stream(iter([raw])), lambda: unary(raw)):
        refusal = refused(call)
        assert (refusal.code, refusal.detail.reason) == (
            grpc.StatusCode.INVALID_ARGUMENT,
            Reason.REASON_INVALID_REQUEST,
        )


@pytest.mark.parametrize("worker_id", ["", "x" * 129, "a\nb", "a\0b"])
def test_invalid_worker_ids_are_refused(peer, model, refused, worker_id):
    assert refused(lambda: peer.session(worker_id=worker_id)).code == grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize(
    ("changes", "code", "reason"),
    [
        ({"checksum_kind": 0}, grpc.StatusCode.INVALID_ARGUMENT, Reason.REASON_INVALID_REQUEST),
        ({"model": "x"}, grpc.StatusCode.NOT_FOUND, Reason.REASON_MODEL_NOT_FOUND),
        ({"min_version": 1}, grpc.StatusCode.FAILED_PRECONDITION, Reason.REASON_REWOUND),
        ({"min_version": 1, "state_id": "f" * 32}, grpc.StatusCode.FAILED_PRECONDITION, Reason.REASON_REWOUND),
    ],
)
def test_invalid_pulls_are_refused(peer, worker, refused, changes, code, reason):
    fields = {"model": "model", "checksum_kind": 1} | changes
    refusal = refused(lambda: list(peer.stub.Pull(pb.PullRequest(**fields))))
    assert (refusal.code, refusal.detail.reason) == (code, reason)
    if reason == Reason.REASON_REWOUND:
        assert refusal.detail.state.state_id == worker.state_id


def test_a_half_received_push_delays_nobody_and_its_retry_waits_for_it(server, peer, worker, grads, refused):
    """The first try's stream stays open after its header and one chunk."""
    finish = threading.Event()
    begun = threading.Event()

    def slowly():
        header, *rest = worker.messages(grads, chunk_bytes=200)
        yield header
        yield rest[0]
        begun.set()
        finish.wait(800)
        yield from rest[1:]

    slow = peer.stub.Push.future(slowly())
    assert begun.wait(800)
    while not server._runtime.pushes.receiving:  # the test's timeout is its limit
        peer.state()
    other = peer.session(worker_id="other")
    assert other.push(grads).version == 1
    refusal = refused(lambda: worker.push(grads, sequence=1, total_bytes=344, checksum=5))
    assert refusal.code == grpc.StatusCode.ABORTED
    finish.set()
    assert slow.result(800).ack.version == 2
    assert worker.push(grads, sequence=1).duplicate
