"""Late and missing answers: the client never mistakes one for another."""

from __future__ import annotations

import threading
from concurrent import futures

import grpc
import numpy as np
import pytest

from numba_adam.client import ParameterClient
from numba_adam.errors import SessionUnknownError
from numba_adam.ps.v1 import parameter_service_pb2 as pb
from numba_adam.ps.v1.parameter_service_pb2_grpc import ParameterServiceStub
from numba_adam.server.model.answers import Limits

pytestmark = pytest.mark.slow


def same(left, right):
    assert list(left) == list(right)
    for name in left:
        np.testing.assert_array_equal(left[name], right[name], strict=True)


@pytest.fixture
def expected(make_server, arrays, gradients_of):
    """Return a function: the parameters after the gradients of some seeds, as a server without faults makes them."""
    server = make_server("oracle", snapshot_interval_seconds=0, snapshot_every_pushes=0)

    def parameters_after(seeds):
        with ParameterClient(server.address) as client:
            model = client.create_model(f"m{len(client.list_models())}", arrays, lr=0.01)
            for seed in seeds:
                model.push(gradients_of(arrays, seed))
            return model.pull()

    return parameters_after


class Late:
    """A relay that holds the server's next answer to a method until it is released."""

    def __init__(self, target: str) -> None:
        self.held, self.go_on = threading.Event(), threading.Event()
        self._method = ""
        self._channel = grpc.insecure_channel(target, options=[("grpc.max_reconnect_backoff_ms", 500)])
        self._server = grpc.server(futures.ThreadPoolExecutor(8))
        self._server.add_generic_rpc_handlers((self,))
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()

    def hold(self, method: str) -> None:
        self._method = method

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        def relay(requests, context):
            call = self._channel.stream_stream(details.method)(requests)
            try:
                answers = list(call)
            except grpc.RpcError:
                context.set_trailing_metadata(call.trailing_metadata())
                context.abort(call.code(), call.details())
            if details.method.endswith(f"/{self._method}"):
                self._method = ""
                self.held.set()
                self.go_on.wait(800)
            yield from answers

        return grpc.stream_stream_rpc_method_handler(relay)

    def close(self) -> None:
        self.go_on.set()
        self._server.stop(None).wait()
        self._channel.close()


@pytest.fixture
def late(server_process):
    """A relay to the server process."""
    relay = Late(server_process.address)
    yield relay
    relay.close()


def test_late_parameters_of_the_old_state_do_not_undo_a_rewind(
    server_process, late, connect, arrays, gradients_of, expected
):
    """A pull's answer from before the crash arrives after the client knows of the crash."""
    client = connect(late.address)
    model = client.create_model("m", arrays, lr=0.01, durability="memory")
    rewinds: list[int] = []
    model.on_rewind(rewinds.append)
    model.push(gradients_of(arrays, 0))
    client.snapshot()
    model.push(gradients_of(arrays, 1))
    old = model.state_id
    late.hold("Pull")
    with futures.ThreadPoolExecutor(1) as pool:
        pulled = pool.submit(model.pull)
        assert late.held.wait(800)
        server_process.kill()
        server_process.start()
        assert not model.push(gradients_of(arrays, 2)).applied
        new = model.state_id
        assert (rewinds, model.version, new != old) == ([1], 1, True)
        late.go_on.set()
        pulled.result(timeout=800)
    assert (rewinds, model.version, model.state_id) == ([1], 1, new)
    ack = model.push(gradients_of(arrays, 3))
    assert (ack.applied, ack.version, ack.state_id, rewinds) == (True, 2, new, [1])
    same(model.pull(), expected([0, 3]))


@pytest.mark.parametrize("form", ["push", "push_pull", "push_async"])
def test_a_push_with_a_lost_answer_and_a_dropped_session_is_not_sent_again(
    server, connect, make_wire, arrays, gradients_of, expected, form
):
    """The server keeps a limited number of sessions, and has dropped this one before the second try.

    The answer went with the session: another try, in a new session, could apply the gradient a second time.
    """
    wire = make_wire(server.address)
    model = connect(wire.address).create_model("m", arrays, lr=0.01)
    model.push(gradients_of(arrays, 0))
    before = wire.carried["down"]
    model.push(gradients_of(arrays, 1))
    wire.cut_at("down", wire.carried["down"] + (wire.carried["down"] - before) // 2, stay_down=True)
    direct = connect(server.address)
    with futures.ThreadPoolExecutor(1) as pool:
        if form == "push_async":
            push = model.push_async(gradients_of(arrays, 2))
        else:
            push = pool.submit(getattr(model, form), gradients_of(arrays, 2))
        while not wire.cuts:
            assert not futures.wait([push], 0.01).done
        with grpc.insecure_channel(server.address) as channel:
            stub = ParameterServiceStub(channel)
            for number in range(Limits().most_sessions):
                stub.OpenSession(pb.OpenSessionRequest(model="m", worker_id=f"other {number}"))
        wire.is_down = False
        with pytest.raises(SessionUnknownError):
            push.result(timeout=800)
    applied = [0, 1, 2] if direct.open_model("m").version == 3 else [0, 1]
    ack = model.push(gradients_of(arrays, 3))
    assert (ack.version, ack.applied, ack.duplicate) == (len(applied) + 1, True, False)
    same(model.pull(), expected([*applied, 3]))
