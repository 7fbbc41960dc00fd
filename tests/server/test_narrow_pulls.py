"""Pulls in 16-bit formats: rounded to the nearest, from one version, and refused where the format is unknown."""

from __future__ import annotations

import grpc
import ml_dtypes
import numpy as np
import pytest
import xxhash

from numba_adam.ps.v1 import model_pb2
from numba_adam.ps.v1 import parameter_service_pb2 as pb

XXH3 = 1
NARROW = {
    model_pb2.DTYPE_BFLOAT16: np.dtype(ml_dtypes.bfloat16),
    model_pb2.DTYPE_FLOAT16: np.dtype(np.float16),
}


def payload_in(answers):
    """Check a transfer; return its header and its payload."""
    first, *chunks, last = answers
    payload = b""
    for answer in chunks:
        assert answer.chunk.offset == len(payload)
        payload += answer.chunk.data
    assert first.header.total_bytes == len(payload)
    assert last.trailer.checksum == xxhash.xxh3_64_intdigest(payload)
    return first.header, payload


def special(dtype):
    """Return numbers at and beside ties, subnormal and extreme ones of both formats."""
    ties = np.array(
        [1 + 2.0**-8, 1 + 3 * 2.0**-8, 1 + 2.0**-11, 1 + 3 * 2.0**-11, 2.0**-134, 2.0**-25, 65520, 65519.99]
    )
    beside = np.concatenate([np.nextafter(ties, 0), ties, np.nextafter(ties, 1e6), ties * (1 + 2.0**-23)])
    return np.concatenate([beside, -beside, [0.0, -0.0, 3.3e38, -1e-40]]).astype(dtype)


@pytest.mark.parametrize("model_dtype", ["float32", "float64"])
@pytest.mark.parametrize("dtype", NARROW)
def test_a_narrow_pull_has_the_nearest_numbers(peer, dtype, model_dtype):
    rng = np.random.default_rng(5)
    params = {"w": special(model_dtype), "large": rng.standard_normal((1 << 20) + 13).astype(model_dtype)}
    peer.create(params)
    header, payload = payload_in(list(peer.stub.Pull(pb.PullRequest(model="model", checksum_kind=XXH3, dtype=dtype))))
    assert (header.dtype, header.state.version) == (dtype, 0)
    with np.errstate(over="ignore"):
        expected = np.concatenate([array.astype(NARROW[dtype]) for array in params.values()])
    if model_dtype == "float64" and dtype == model_pb2.DTYPE_BFLOAT16:  # ml_dtypes rounds twice
        differing = np.flatnonzero(np.frombuffer(payload, np.uint16) != expected.view(np.uint16))
        exact = np.concatenate(list(params.values()))[differing]
        got = np.frombuffer(payload, NARROW[dtype])[differing].astype(np.float64)
        assert (np.abs(got - exact) <= np.abs(expected[differing].astype(np.float64) - exact)).all()
    else:
        np.testing.assert_array_equal(np.frombuffer(payload, np.uint16), expected.view(np.uint16))


@pytest.mark.parametrize("dtype", NARROW)
def test_a_narrow_push_pull_has_the_parameters_after_the_push(peer, params, grads_of, dtype):
    peer.create(params)
    session, grads = peer.session(), grads_of(params, np.random.default_rng(1))
    payload = b"".join(grad.tobytes() for grad in grads.values())
    header = session.header(grads, pull_dtype=dtype)
    messages = [
        pb.PushPullRequest(header=header),
        pb.PushPullRequest(chunk={"offset": 0, "data": payload}),
        pb.PushPullRequest(trailer={"checksum": xxhash.xxh3_64_intdigest(payload)}),
    ]
    ack, *rest = peer.stub.PushPull(iter(messages))
    assert ack.ack.version == 1
    header, payload = payload_in(rest)
    assert (header.dtype, header.state.version) == (dtype, 1)
    expected = np.concatenate([array.reshape(-1).astype(NARROW[dtype]) for array in peer.pull().arrays.values()])
    assert payload == expected.tobytes()


def test_a_retry_may_ask_for_another_dtype(peer, params, grads_of):
    """The dtype of the answer is no part of the push."""
    peer.create(params)
    session, grads = peer.session(), grads_of(params, np.random.default_rng(1))
    payload = b"".join(grad.tobytes() for grad in grads.values())
    acks = []
    for dtype in (0, *NARROW):
        messages = [
            pb.PushPullRequest(header=session.header(grads, pull_dtype=dtype)),
            pb.PushPullRequest(chunk={"offset": 0, "data": payload}),
            pb.PushPullRequest(trailer={"checksum": xxhash.xxh3_64_intdigest(payload)}),
        ]
        first, *rest = peer.stub.PushPull(iter(messages))
        acks.append((first.ack.version, first.ack.duplicate))
        assert payload_in(rest)[0].dtype == dtype
    assert acks == [(1, False), (1, True), (1, True)]


def test_the_models_own_dtype_may_be_named(peer, params):
    peer.create(params)
    request = pb.PullRequest(model="model", checksum_kind=XXH3, dtype=model_pb2.DTYPE_FLOAT32)
    _, payload = payload_in(list(peer.stub.Pull(request)))
    assert payload == b"".join(array.tobytes() for array in peer.pull().arrays.values())


@pytest.mark.parametrize("dtype", [model_pb2.DTYPE_FLOAT64, 17])
def test_another_dtype_is_refused_and_a_push_with_it_changes_nothing(peer, params, grads_of, dtype):
    peer.create(params)
    with pytest.raises(
        grpc.RpcError, match=rf"dtype={dtype}: parameters of model 'model' are sent as float32 \(1\)"
    ) as no:
        list(peer.stub.Pull(pb.PullRequest(model="model", checksum_kind=XXH3, dtype=dtype)))
    assert no.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    session, grads = peer.session(), grads_of(params, np.random.default_rng(1))
    header = session.header(grads, pull_dtype=dtype)
    with pytest.raises(grpc.RpcError, match=f"dtype={dtype}"):
        list(peer.stub.PushPull(iter([pb.PushPullRequest(header=header)])))
    assert peer.state().version == 0
    assert session.push(grads).version == 1


def test_pulls_in_several_formats_share_one_copy_of_the_version(peer, server, params, grads_of):
    """A narrow pull that has begun keeps its version while pushes go on."""
    rng = np.random.default_rng(2)
    params = {"w": rng.standard_normal(1 << 23).astype(np.float32)}
    peer.create(params)
    session = peer.session()
    requests = [pb.PullRequest(model="model", checksum_kind=XXH3, dtype=dtype) for dtype in (0, *NARROW)]
    answers = [peer.stub.Pull(request) for request in requests]
    firsts = [next(answer) for answer in answers]
    session.push({"w": np.ones(1 << 23, np.float32)})
    for first, rest, dtype in zip(firsts, answers, (np.dtype(np.float32), *NARROW.values()), strict=True):
        header, payload = payload_in([first, *rest])
        assert header.state.version == 0
        assert payload == params["w"].astype(dtype).tobytes()
