"""A small push in one message: the same as header, chunk and trailer in a stream."""

from __future__ import annotations

import grpc
import numpy as np
import pytest
import xxhash

from numba_adam.ps.v1 import model_pb2, transfer_pb2
from numba_adam.ps.v1 import parameter_service_pb2 as pb
from numba_adam.ps.v1.error_pb2 import Reason

LARGEST = 65_536


def payload_of(grads):
    return b"".join(grad.tobytes() for grad in grads.values() if grad is not None)


def whole(session, grads, *, checksum=None, **changes):
    payload = payload_of(grads)
    found = xxhash.xxh3_64_intdigest(payload) if checksum is None else checksum
    return pb.WholePush(header=session.header(grads, **changes), checksum=found, payload=payload)


def push(session, grads, **changes):
    return session.peer.stub.Push(iter([pb.PushRequest(whole=whole(session, grads, **changes))]), timeout=800).ack


@pytest.fixture
def params():
    rng = np.random.default_rng(3)
    return {"w": rng.normal(size=(3, 5)).astype(np.float32), "b": rng.normal(size=7).astype(np.float32)}


@pytest.fixture
def grads(params):
    rng = np.random.default_rng(4)
    return {name: rng.normal(size=array.shape).astype(np.float32) for name, array in params.items()}


@pytest.fixture
def worker(peer, params):
    peer.create(params)
    return peer.session()


def test_a_push_in_one_message_gives_the_same_bits_as_a_stream(peer, params, grads):
    pulled = []
    for name, send in (("whole", push), ("stream", lambda session, grads: session.push(grads))):
        peer.create(params, name)
        session = peer.session(name)
        for number in range(1, 4):
            ack = send(session, grads | {"b": None} if number == 2 else grads)
            session.sequence = number
            assert (ack.version, ack.duplicate) == (number, False)
        pulled.append(peer.pull(name).arrays)
    for name in params:
        assert pulled[0][name].tobytes() == pulled[1][name].tobytes()


@pytest.mark.parametrize("first", ["whole", "stream"])
def test_a_retry_in_the_other_form_is_a_duplicate(peer, worker, grads, first):
    sends = [lambda: push(worker, grads, sequence=1), lambda: worker.push(grads, sequence=1)]
    answers = [send() for send in (sends if first == "whole" else reversed(sends))]
    assert [(ack.version, ack.duplicate) for ack in answers] == [(1, False), (1, True)]
    assert peer.state().version == 1


def test_other_content_in_one_message_under_a_used_number_is_refused(peer, worker, grads, refused):
    push(worker, grads)
    other = {name: grad * 2 for name, grad in grads.items()}
    refusal = refused(lambda: push(worker, other))
    assert refusal.detail.reason == Reason.REASON_SEQUENCE_REUSED
    assert peer.state().version == 1


@pytest.mark.parametrize("durability", [model_pb2.DURABILITY_MEMORY, model_pb2.DURABILITY_PROCESS])
def test_a_corrupt_push_in_one_message_does_not_use_its_number(peer, params, grads, refused, durability):
    peer.create(params, durability=durability)
    session = peer.session()
    refusal = refused(lambda: push(session, grads, checksum=1))
    assert refusal.detail.reason == Reason.REASON_CORRUPT_TRANSFER
    assert push(session, grads).version == 1


def test_a_push_in_one_message_that_has_a_nan_is_rejected(peer, worker, grads, refused):
    grads["b"][3] = np.nan
    refusal = refused(lambda: push(worker, grads))
    assert refusal.detail.reason == Reason.REASON_NON_FINITE
    assert refusal.detail.sequence_recorded
    assert "'b' holds nan at element 3" in refusal.message
    assert peer.state().version == 0


def test_a_payload_of_another_size_than_declared_is_refused(peer, worker, grads, refused):
    for declared in (0, 87, 89):
        refusal = refused(lambda declared=declared: push(worker, grads, total_bytes=declared))
        assert refusal.code in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.FAILED_PRECONDITION)
    assert peer.state().version == 0


def test_a_push_in_one_message_without_gradients_is_applied(peer, worker, grads):
    assert push(worker, dict.fromkeys(grads)).version == 1


def test_a_push_pull_in_one_message_answers_with_the_new_parameters(peer, worker, grads):
    messages = iter([pb.PushPullRequest(whole=whole(worker, grads))])
    ack, header, *rest = list(peer.stub.PushPull(messages, timeout=800))
    assert (ack.ack.version, header.header.state.version) == (1, 1)
    chunk = next(answer.chunk for answer in rest if answer.WhichOneof("part") == "chunk")
    assert chunk.data == payload_of(peer.pull().arrays)


def test_what_follows_a_whole_push_is_ignored(peer, worker, grads):
    trailer = pb.PushRequest(trailer=transfer_pb2.TransferTrailer(checksum=1))
    messages = iter([pb.PushRequest(whole=whole(worker, grads)), trailer])
    assert peer.stub.Push(messages, timeout=800).ack.version == 1


def test_a_whole_push_after_a_header_is_refused(peer, worker, grads, refused):
    messages = [pb.PushRequest(header=worker.header(grads)), pb.PushRequest(whole=whole(worker, grads))]
    refusal = refused(lambda: peer.stub.Push(iter(messages), timeout=800))
    assert refusal.code is grpc.StatusCode.INVALID_ARGUMENT
    assert peer.state().version == 0


def test_the_server_says_how_large_a_push_in_one_message_may_be_to_those_who_ask(peer, worker):
    request = {"model": "model", "worker_id": "another"}
    assert not peer.stub.OpenSession(pb.OpenSessionRequest(**request)).whole_push_bytes
    opened = peer.stub.OpenSession(pb.OpenSessionRequest(**request, asks_whole_push_bytes=True))
    assert opened.whole_push_bytes == LARGEST


@pytest.mark.parametrize("surplus", [0, 1])
def test_a_push_in_one_message_may_have_the_announced_size_and_no_more(peer, refused, surplus):
    params = {"w": np.ones(LARGEST // 4 - 40, np.float32)}
    peer.create(params)
    session = peer.session()
    size = LARGEST + surplus
    spare = size - pb.PushRequest(whole=whole(session, params)).ByteSize()
    unknown = b"\x7a" + bytes([spare - 2]) + bytes(spare - 2)  # an unknown field, which is legal in any message
    raw = pb.PushRequest(whole=whole(session, params)).SerializeToString() + unknown
    assert len(raw) == size
    method = peer.channel.unary_unary("/numba_adam.ps.v1.ParameterService/Push")
    if surplus:
        refusal = refused(lambda: method(raw, timeout=800))
        assert refusal.detail.reason == Reason.REASON_INVALID_REQUEST
        assert f"{size} bytes" in refusal.message
        assert str(LARGEST) in refusal.message
    else:
        assert pb.PushResponse.FromString(method(raw, timeout=800)).ack.version == 1


def test_a_header_without_its_end_is_an_undecodable_request(peer, worker, refused):
    raw = b"\x22\x04\x0a\x02\x0a\x7f"  # the header's first field is longer than the header
    method = peer.channel.unary_unary("/numba_adam.ps.v1.ParameterService/Push")
    assert refused(lambda: method(raw, timeout=800)).detail.reason == Reason.REASON_INVALID_REQUEST
