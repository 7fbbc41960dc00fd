"""A plain client of generated code exchanges the same bytes as ours, in both directions."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
import numpy as np
import pytest
import xxhash

from numba_adam.ps.v1 import model_pb2, transfer_pb2
from numba_adam.ps.v1 import parameter_service_pb2 as pb
from numba_adam.ps.v1.parameter_service_pb2_grpc import ParameterServiceStub

CHUNK = (1 << 21) - (1 << 12)
SIZES = {"scalar": (), "small": (3, 5), "empty": (0, 4), "over a chunk": (700, 800), "exactly a chunk": (CHUNK // 4,)}


class PlainClient:
    """A client written only with the .proto files."""

    def __init__(self, address: str) -> None:
        self.channel = grpc.insecure_channel(address, options=[("grpc.max_receive_message_length", 8 << 20)])
        self.stub = ParameterServiceStub(self.channel)

    @staticmethod
    def parts(request: type, header: object, payload: bytes) -> Iterator[object]:
        yield request(header=header)
        for offset in range(0, len(payload), CHUNK):
            yield request(chunk=transfer_pb2.TensorChunk(offset=offset, data=payload[offset : offset + CHUNK]))
        yield request(trailer=transfer_pb2.TransferTrailer(checksum=xxhash.xxh3_64_intdigest(payload)))

    @staticmethod
    def payload(answers: Iterator[pb.PullResponse]) -> bytes:
        """Read a pull's answer, and check it against the protocol."""
        header, *chunks, trailer = answers
        payload = b"".join(part.chunk.data for part in chunks)
        assert len(payload) == header.header.total_bytes
        assert xxhash.xxh3_64_intdigest(payload) == trailer.trailer.checksum
        return payload


@pytest.fixture
def params():
    rng = np.random.default_rng(8)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in SIZES.items()}


@pytest.fixture
def recorder(server, make_recorder):
    return make_recorder(server.address)


@pytest.fixture
def plain(recorder):
    client = PlainClient(recorder.address)
    yield client
    client.channel.close()


@pytest.fixture
def model(recorder, connect, params):
    return connect(recorder.address, "w0").create_model("m", params, lr=0.1)


def payload_of(arrays: dict[str, np.ndarray | None]) -> bytes:
    return b"".join(array.tobytes() for array in arrays.values() if array is not None)


def tensors_of(arrays: dict[str, np.ndarray | None]) -> list[model_pb2.TensorSpec]:
    return [model_pb2.TensorSpec(name=n, shape=a.shape) for n, a in arrays.items() if a is not None]


def push_header(arrays, sent: pb.PushHeader, sequence: int) -> pb.PushHeader:
    return pb.PushHeader(
        model="m", state_id=sent.state_id, worker_id="w0", epoch=sent.epoch, sequence=sequence,
        base_version=sent.base_version, dtype=model_pb2.DTYPE_FLOAT32, tensors=tensors_of(arrays),
        absent=[name for name, array in arrays.items() if array is None], total_bytes=len(payload_of(arrays)),
        checksum_kind=transfer_pb2.CHECKSUM_KIND_XXH3_64,
    )  # fmt: skip


@pytest.mark.parametrize("absent", [None, "over a chunk", "scalar"])
def test_a_push_has_the_same_bytes(recorder, plain, model, params, absent):
    grads = {name: None if name == absent else array + 1 for name, array in params.items()}
    assert model.push(grads).version == 1
    ours, answered = recorder.of("Push")
    sent = pb.PushRequest.FromString(ours[0]).header
    assert ours[0] == pb.PushRequest(header=push_header(grads, sent, 1)).SerializeToString()
    ack = plain.stub.Push(plain.parts(pb.PushRequest, push_header(grads, sent, 2), payload_of(grads))).ack
    theirs, _ = recorder.of("Push")
    assert (ack.version, ack.duplicate) == (2, False)
    assert ours[1:] == theirs[1:]
    assert [pb.PushResponse.FromString(raw).SerializeToString() for raw in answered] == answered


def test_a_pull_has_the_same_bytes(recorder, plain, model, params):
    model.push({name: array + 1 for name, array in params.items()})
    pulled = model.pull()
    ours, answered = recorder.of("Pull")
    request = pb.PullRequest(model="m", checksum_kind=transfer_pb2.CHECKSUM_KIND_XXH3_64)
    assert plain.payload(plain.stub.Pull(request)) == payload_of(pulled)
    theirs, answered_to_them = recorder.of("Pull")
    assert ours == theirs
    assert answered == answered_to_them
    assert [pb.PullResponse.FromString(raw).SerializeToString() for raw in answered] == answered


def test_a_push_pull_has_the_same_bytes(recorder, plain, model, params):
    grads = {name: array + 1 for name, array in params.items()}
    pulled = model.push_pull(grads)
    ours, answered = recorder.of("PushPull")
    sent = pb.PushPullRequest.FromString(ours[0]).header
    assert ours[0] == pb.PushPullRequest(header=push_header(grads, sent, 1)).SerializeToString()
    assert [pb.PushPullResponse.FromString(raw).SerializeToString() for raw in answered] == answered
    assert plain.payload(map(pb.PushPullResponse.FromString, answered[1:])) == payload_of(pulled)
    header = push_header(grads, sent, 2)
    ack, *rest = plain.stub.PushPull(plain.parts(pb.PushPullRequest, header, payload_of(grads)))
    theirs, _ = recorder.of("PushPull")
    assert ours[1:] == theirs[1:]
    assert ack.ack.version == 2
    assert plain.payload(rest) == payload_of(model.pull())


def test_a_creation_has_the_same_bytes(recorder, plain, model, params):
    ours, answered = recorder.of("CreateModel")
    payload = payload_of(params)
    hyperparameters = model_pb2.Hyperparameters(
        lr=0.1, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0, eps_mode=model_pb2.EPS_MODE_HAT
    )
    spec = model_pb2.ModelSpec(
        name="m", dtype=model_pb2.DTYPE_FLOAT32, tensors=tensors_of(params), hyperparameters=hyperparameters,
        mode=model_pb2.MODE_ASYNC, durability=model_pb2.DURABILITY_PROCESS,
    )  # fmt: skip
    header = pb.CreateModelHeader(
        spec=spec, request_id=pb.CreateModelRequest.FromString(ours[0]).header.request_id,
        total_bytes=len(payload), checksum_kind=transfer_pb2.CHECKSUM_KIND_XXH3_64, after_state_id="",
    )  # fmt: skip
    again = plain.stub.CreateModel(plain.parts(pb.CreateModelRequest, header, payload))
    theirs, answered_to_them = recorder.of("CreateModel")
    assert again.created, "the same request id: a retry is told of success"
    assert ours[0] == theirs[0]
    assert ours == theirs[: len(ours)] or theirs == ours[: len(theirs)]  # the server may answer before the payload
    assert answered == answered_to_them


def test_a_plain_client_can_train(server, plain, connect, params):
    """With CRC-32C and chunks of odd sizes; then our client reads the result."""
    crc32c = pytest.importorskip("google_crc32c")
    payload = payload_of(params)

    def parts(request: type, header: object) -> Iterator[object]:
        yield request(header=header)
        for offset in range(0, len(payload), 99_991):
            yield request(chunk=transfer_pb2.TensorChunk(offset=offset, data=payload[offset : offset + 99_991]))
        yield request(trailer=transfer_pb2.TransferTrailer(checksum=crc32c.value(payload)))

    kind = transfer_pb2.CHECKSUM_KIND_CRC32C
    spec = model_pb2.ModelSpec(name="p", dtype=model_pb2.DTYPE_FLOAT32, tensors=tensors_of(params))
    header = pb.CreateModelHeader(spec=spec, request_id="r", total_bytes=len(payload), checksum_kind=kind)
    plain.stub.CreateModel(parts(pb.CreateModelRequest, header))
    session = plain.stub.OpenSession(pb.OpenSessionRequest(model="p", worker_id="plain", nonce="n"))
    header = pb.PushHeader(
        model="p", state_id=session.state.state_id, worker_id="plain", epoch=session.epoch,
        sequence=session.first_sequence, dtype=model_pb2.DTYPE_FLOAT32, tensors=tensors_of(params),
        total_bytes=len(payload), checksum_kind=kind,
    )  # fmt: skip
    assert plain.stub.Push(parts(pb.PushRequest, header)).ack.version == 1
    model = connect(server.address).open_model("p")
    answers = plain.stub.Pull(pb.PullRequest(model="p", checksum_kind=transfer_pb2.CHECKSUM_KIND_XXH3_64))
    assert plain.payload(answers) == payload_of(model.pull())
    assert model.version == 1
