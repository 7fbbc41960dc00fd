"""A small push travels as one message to a server that takes it, and as a stream to every other server."""

from __future__ import annotations

from concurrent import futures

import grpc
import numpy as np
import pytest

from numba_adam.ps.v1 import parameter_service_pb2 as pb

LARGEST = 65_536


class OlderServer(grpc.GenericRpcHandler):
    """A relay to a server that does not know pushes in one message: the question does not reach it."""

    def __init__(self, relay):
        self.relay = relay

    def service(self, details):
        handler = self.relay.service(details)
        if not details.method.endswith("/OpenSession"):
            return handler

        def without_the_question(requests, context):
            def changed():
                for raw in requests:
                    request = pb.OpenSessionRequest.FromString(raw)
                    request.ClearField("asks_whole_push_bytes")
                    yield request.SerializeToString()

            return handler.stream_stream(changed(), context)

        return grpc.stream_stream_rpc_method_handler(without_the_question)


def parts_of(recorder, method="Push", request_type=pb.PushRequest):
    return [request_type.FromString(raw).WhichOneof("part") for raw in recorder.of(method)[0]]


def test_a_small_push_is_one_message(server, make_recorder, connect, arrays, gradients_of):
    recorder = make_recorder(server.address)
    model = connect(recorder.address).create_model("m", arrays)
    for number in range(1, 4):
        ack = model.push(gradients_of(arrays, number))
        assert (ack.version, ack.duplicate) == (number, False)
        assert parts_of(recorder) == ["whole"]


def test_a_small_push_pull_is_one_message_and_gives_the_new_parameters(
    server, make_recorder, connect, arrays, gradients_of
):
    recorder = make_recorder(server.address)
    model = connect(recorder.address).create_model("m", arrays)
    parameters = model.push_pull(gradients_of(arrays, 1))
    assert parts_of(recorder, "PushPull", pb.PushPullRequest) == ["whole"]
    assert model.version == 1
    for name, array in model.pull().items():
        assert parameters[name].tobytes() == array.tobytes()


def test_an_older_server_gets_a_stream(server, make_recorder, connect, arrays, gradients_of):
    recorder = make_recorder(server.address)
    older = grpc.server(futures.ThreadPoolExecutor(4), [OlderServer(recorder)])
    port = older.add_insecure_port("127.0.0.1:0")
    older.start()
    try:
        model = connect(f"127.0.0.1:{port}").create_model("m", arrays)
        assert model.push(gradients_of(arrays, 1)).version == 1
        assert parts_of(recorder) == ["header", "chunk", "trailer"]
    finally:
        older.stop(None).wait()


@pytest.mark.parametrize(("elements", "parts"), [(15_000, ["whole"]), (16_500, ["header", "chunk", "trailer"])])
def test_a_push_of_more_than_the_server_takes_is_a_stream(server, make_recorder, connect, elements, parts):
    recorder = make_recorder(server.address)
    array = {"w": np.ones(elements, np.float32)}
    assert connect(recorder.address).create_model("m", array).push(array).version == 1
    assert parts_of(recorder) == parts
    assert max(map(len, recorder.of("Push")[0])) <= LARGEST + 2000


def test_a_small_push_reports_its_progress_once(server, connect, arrays, gradients_of):
    seen = []
    model = connect(server.address, progress=lambda done, total: seen.append((done, total))).create_model("m", arrays)
    seen.clear()
    model.push(gradients_of(arrays, 1))
    assert seen == [(92, 92)]


def test_a_small_push_whose_progress_callable_fails_is_not_sent(server, connect, arrays, gradients_of):
    class CallableError(Exception):
        pass

    def fail(done, total):
        if fail.is_on:
            raise CallableError

    fail.is_on = False
    model = connect(server.address, progress=fail).create_model("m", arrays)
    fail.is_on = True
    with pytest.raises(CallableError):
        model.push(gradients_of(arrays, 1))
    fail.is_on = False
    assert model.push(gradients_of(arrays, 1)).version == 1
