"""Half-open calls, which never send a message: they do not block other calls, and are ended after a time."""

import contextlib
import dataclasses
import threading

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from numba_adam.client import ParameterClient
from numba_adam.ps.errors import DETAIL_KEY
from numba_adam.ps.v1 import parameter_service_pb2 as pb
from numba_adam.ps.v1.error_pb2 import ErrorDetail, Reason
from numba_adam.server.embedded import Server

PARAMETERS = "/numba_adam.ps.v1.ParameterService"
KINDS = {
    "one message, one answer": f"{PARAMETERS}/GetModel",
    "one message, many answers": f"{PARAMETERS}/Pull",
    "many messages, one answer": f"{PARAMETERS}/Push",
    "a creation": f"{PARAMETERS}/CreateModel",
    "many messages, many answers": f"{PARAMETERS}/PushPull",
    "a snapshot": f"{PARAMETERS}/Snapshot",
    "reflection": "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
    "a health check": "/grpc.health.v1.Health/Check",
    "a health watch": "/grpc.health.v1.Health/Watch",
}
THREADS = 8


@pytest.fixture
def config(config):
    return dataclasses.replace(config, rpc_threads=THREADS)


@pytest.fixture
def half_open():
    """Opens silent calls on separate connections; ends them at the end."""
    over = threading.Event()
    with contextlib.ExitStack() as stack:

        def silence():
            over.wait(800)
            yield from ()

        def make(address, path, count):
            channel = grpc.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)])
            stack.enter_context(channel)
            grpc.channel_ready_future(channel).result(800)
            method = channel.stream_stream(path, None, None)
            return [method(silence()) for _ in range(count)]

        yield make
        over.set()


def is_serving(peer):
    answer = health_pb2_grpc.HealthStub(peer.channel).Check(health_pb2.HealthCheckRequest(), timeout=800)
    return answer.status == health_pb2.HealthCheckResponse.SERVING


def services(peer):
    stub = reflection_pb2_grpc.ServerReflectionStub(peer.channel)
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    (answer,) = stub.ServerReflectionInfo(iter([request]), timeout=800)
    return len(answer.list_services_response.service)


def assert_serves(peer, session, grads, version):
    assert is_serving(peer)
    assert services(peer) == 3
    assert session.push(grads).version == version
    assert peer.pull().state.version == version
    assert peer.stub.GetServerStatus(pb.GetServerStatusRequest(), timeout=800).server_version


@pytest.mark.parametrize("kind", KINDS)
def test_half_open_calls_do_not_delay_other_calls(server, peer, params, grads_of, half_open, kind):
    """Five times as many as there are threads. Their own limit of a minute must not matter."""
    peer.create(params)
    session, grads = peer.session(), grads_of(params, np.random.default_rng(1))
    assert_serves(peer, session, grads, 1)
    half_open(server.address, KINDS[kind], 5 * THREADS)
    assert_serves(peer, session, grads, 2)
    assert_serves(peer, session, grads, 3)


def test_half_open_calls_of_all_kinds_do_not_delay_other_calls(server, peer, params, grads_of, half_open):
    peer.create(params)
    session, grads = peer.session(), grads_of(params, np.random.default_rng(1))
    for path in KINDS.values():
        half_open(server.address, path, 2 * THREADS)
    assert_serves(peer, session, grads, 1)


def test_the_health_service_answers_while_all_threads_are_busy(server, peer, params, grads_of, half_open):
    """All serving threads have stalled transfers, and all others have silent calls.

    On a machine so busy that this takes 15 seconds, the server ends a transfer, as docs/wire.md says.
    """
    peer.create(params)
    grads, never = grads_of(params, np.random.default_rng(1)), threading.Event()

    def half(session):
        yield next(session.messages(grads))
        never.wait(800)

    sessions = [peer.session(worker_id=f"w{number}") for number in range(THREADS)]
    stopped = [peer.stub.Push.future(half(session)) for session in sessions]
    for path in KINDS.values():
        half_open(server.address, path, 2 * THREADS)
    for _ in range(3):
        assert is_serving(peer)
        assert services(peer) == 3
    never.set()
    ends = {push.exception(800).code() for push in stopped}
    assert ends <= {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.CANCELLED}


@pytest.mark.parametrize("kind", KINDS)
def test_a_half_open_call_is_ended_after_the_limit(config, half_open, kind):
    with Server(dataclasses.replace(config, stall_seconds=0.3)) as server:
        (call,) = half_open(server.address, KINDS[kind], 1)
        assert call.code() == grpc.StatusCode.CANCELLED


@pytest.mark.parametrize("kind", KINDS)
def test_a_call_without_a_request_gets_a_clear_error(server, peer, kind):
    call = peer.channel.stream_stream(KINDS[kind], None, None)(iter([]), timeout=800)
    assert call.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "request" in call.details()


@pytest.mark.parametrize("path", ["/numba_adam.ps.v1.ParameterService/NoSuchCall", "/no.such.Service/Call"])
def test_half_open_calls_of_unknown_methods_end_at_once(server, peer, half_open, path):
    for call in half_open(server.address, path, 5 * THREADS):
        assert call.code() == grpc.StatusCode.UNIMPLEMENTED
    assert is_serving(peer)


def test_calls_beyond_the_limit_are_told_to_retry(server, half_open):
    """They are refused at once, while silent calls still wait; a retry is admitted."""
    path = KINDS["many messages, one answer"]
    calls = [call for _ in range(4) for call in half_open(server.address, path, THREADS + 64)]
    with ParameterClient(server.address, timeout_seconds=800) as client:
        model = client.create_model("model", {"w": np.ones(3, np.float32)})
        assert model.push({"w": np.ones(3, np.float32)}).version == 1
    refused = [call for call in calls if call.done() and call.code() == grpc.StatusCode.RESOURCE_EXHAUSTED]
    assert refused
    for call in refused:
        (raw,) = [value for key, value in call.trailing_metadata() if key == DETAIL_KEY]
        detail = ErrorDetail.FromString(raw)
        assert detail.reason == Reason.REASON_BUDGET
        assert detail.retry_after_milliseconds > 0
