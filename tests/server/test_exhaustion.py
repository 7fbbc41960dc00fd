"""One client attacks in every way we know: memory stays near the budget, and others are served.

Memory is the peak that the system itself keeps of the server's resident set.
"""

import contextlib
import socket
import threading
from pathlib import Path

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from numba_adam.client import ParameterClient
from numba_adam.ps import framing
from numba_adam.ps.v1 import model_pb2
from numba_adam.ps.v1 import parameter_service_pb2 as pb
from numba_adam.ps.v1.parameter_service_pb2_grpc import ParameterServiceStub

# Beside little budget, the limits that servers have unless told otherwise; the budget is one that can be filled.
LIMITS = {"small": {"memory_budget_bytes": 16 << 20, "rpc_threads": 16}, "default": {"memory_budget_bytes": 1 << 28}}
ALLOWED_ABOVE = 64 << 20
EMPTY_CHECKSUM = 0x2D06800538D394C2  # XXH3 of nothing
UNLIMITED = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
PUSH = "/numba_adam.ps.v1.ParameterService/Push"
PATHS = (
    PUSH,
    "/numba_adam.ps.v1.ParameterService/GetModel",
    "/numba_adam.ps.v1.ParameterService/Pull",
    "/numba_adam.ps.v1.ParameterService/CreateModel",
    "/grpc.health.v1.Health/Check",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
)
ENDED = {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.CANCELLED}


class Attacker:
    """Separate connections to a server, closed at the end."""

    def __init__(self, process, stack):
        self.process, self.address, self._stack = process, process.address, stack
        self.over = threading.Event()
        stack.callback(self.over.set)

    def stub(self, address=""):
        options = [*UNLIMITED, ("grpc.use_local_subchannel_pool", 1)]
        channel = self._stack.enter_context(grpc.insecure_channel(address or self.address, options=options))
        stub = ParameterServiceStub(channel)
        stub.raw = lambda path: channel.stream_stream(path, None, None)
        stub.push_raw = stub.raw(PUSH)
        return stub

    def create(self, name, arrays, stub=None):
        """Create a model of arrays without elements."""
        tensors = [model_pb2.TensorSpec(name=f"a{number}", shape=[0]) for number in range(arrays)]
        spec = model_pb2.ModelSpec(name=name, dtype=model_pb2.DTYPE_FLOAT32, tensors=tensors)
        header = pb.CreateModelHeader(spec=spec, request_id="r", checksum_kind=1)
        messages = [pb.CreateModelRequest(header=header), pb.CreateModelRequest(trailer={"checksum": EMPTY_CHECKSUM})]
        return (stub or self.stub()).CreateModel(iter(messages), timeout=120)

    def held(self, *messages):
        """Yield messages, and then nothing until the end."""
        yield from messages
        self.over.wait(300)

    def stalling(self, *, up=1 << 62, down=1 << 62):
        """Return the address of a proxy that forwards this number of bytes in each direction, and then stalls."""
        listener = self._stack.enter_context(contextlib.closing(socket.create_server(("127.0.0.1", 0))))
        host, port = self.address.rsplit(":", 1)

        def serve():
            with contextlib.suppress(OSError):
                while True:
                    near, _ = listener.accept()
                    far = socket.create_connection((host, int(port)))
                    for one, other, limit in ((near, far, up), (far, near, down)):
                        self._stack.callback(one.close)
                        threading.Thread(target=self._pass_on, args=(one, other, limit), daemon=True).start()

        threading.Thread(target=serve, daemon=True).start()
        return "{}:{}".format(*listener.getsockname())

    def _pass_on(self, source, target, limit):
        with contextlib.suppress(OSError):
            while limit > 0:
                data = source.recv(min(limit, 1 << 16))
                if not data:
                    return
                target.sendall(data)
                limit -= len(data)
            self.over.wait(300)


def refusals(call, times=1):
    """Return the status codes of a call that must fail this number of times."""
    codes = set()
    for _ in range(times):
        with pytest.raises(grpc.RpcError) as caught:
            call()
        codes.add(caught.value.code())
    return codes


# ---- the attacks -----------------------------------------------------------------------------------------------------


def headers_of_many_dimensions(attacker):
    """The server keeps nothing of them, and its answers contain no shape of millions of numbers."""
    stub = attacker.stub()
    opened = stub.OpenSession(pb.OpenSessionRequest(model="victim", worker_id="attacker"))
    fields = {"model": "victim", "worker_id": "attacker", "epoch": opened.epoch, "state_id": opened.state.state_id}
    for dimensions in (100_000, 4_000_000, 15_000_000):
        tensor = model_pb2.TensorSpec(name="w", shape=[1] * dimensions)
        request = pb.PushRequest(header=pb.PushHeader(tensors=[tensor], sequence=1, **fields))
        assert refusals(lambda request=request: stub.Push(iter([request]), timeout=120), 3) <= {
            grpc.StatusCode.INVALID_ARGUMENT,
            grpc.StatusCode.RESOURCE_EXHAUSTED,
        }
    assert stub.Snapshot(pb.SnapshotRequest(model="victim"), timeout=120).snapshots


def headers_of_empty_messages(attacker):
    """Two bytes on the wire become sixty in memory; full messages, many at a time."""
    stub = attacker.stub()
    many = b"\x42\x00" * 1_900_000
    size = bytearray()
    length = len(many)
    while length >= 0x80:
        size.append(length & 0x7F | 0x80)
        length >>= 7
    size.append(length)
    raw = b"\x0a" + bytes(size) + many
    calls = [stub.push_raw(attacker.held(raw)) for _ in range(40)]
    assert {call.code() for call in calls} <= ENDED | {grpc.StatusCode.NOT_FOUND}


def large_headers_on_many_connections(attacker):
    """Each was parsed by another thread, which kept the memory."""
    shapes = [model_pb2.TensorSpec(name="w", shape=[1] * 450_000)]
    stubs = [attacker.stub() for _ in range(30)]
    state_id = stubs[0].GetModel(pb.GetModelRequest(model="victim"), timeout=120).model.state.state_id
    for tensors in (shapes, [model_pb2.TensorSpec()] * 225_000):
        header = pb.PushHeader(model="victim", state_id=state_id, worker_id="w", tensors=tensors)
        raw = pb.PushRequest(header=header).SerializeToString()
        calls = [stub.push_raw(attacker.held(raw)) for stub in stubs for _ in range(5)]
        assert {call.code() for call in calls} <= ENDED


def a_model_of_many_arrays(attacker):
    assert refusals(lambda: attacker.create("many", 300_000), 3) <= {
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
    }


def many_models(attacker):
    stub = attacker.stub()
    made = 0
    with contextlib.suppress(grpc.RpcError):
        while True:
            attacker.create(f"m{made}", 1, stub)
            made += 1
    assert made > 100


def many_sessions_with_many_rejections(attacker):
    stub = attacker.stub()
    for number in range(20):
        opened = stub.OpenSession(pb.OpenSessionRequest(model="victim", worker_id=f"{number}" + "\u6f22" * 100))
        fields = {"model": "victim", "epoch": opened.epoch, "state_id": opened.state.state_id, "dtype": 1}
        for sequence in range(1, 65):
            names = [chr(0x4E00 + place) * 250 for place in range(20)]
            header = pb.PushHeader(
                worker_id=f"{number}" + "\u6f22" * 100, sequence=sequence, absent=names, total_bytes=4, **fields
            )
            assert refusals(lambda header=header: stub.Push(iter([pb.PushRequest(header=header)]), timeout=120)) == {
                grpc.StatusCode.INVALID_ARGUMENT
            }
    with contextlib.suppress(grpc.RpcError):
        for number in range(1100):
            stub.OpenSession(pb.OpenSessionRequest(model="victim", worker_id=f"s{number}"))


def streams_behind_busy_threads(attacker):
    """They send chunks while they wait, without end."""
    for _ in range(4):
        stub = attacker.stub()
        for _ in range(8):
            stub.push_raw(attacker.held())
        for _ in range(40):
            stub.push_raw(attacker.held(*(framing.encode_chunk(place << 20, bytes(1 << 20)) for place in range(8))))


def large_first_messages_that_do_not_end(attacker):
    for _ in range(60):
        stub = attacker.stub(attacker.stalling(up=3 << 20))
        stub.push_raw(attacker.held(framing.encode_chunk(0, bytes(4_000_000))))


def answers_that_nobody_takes(attacker):
    """Requests descriptions of a model with many arrays on a connection that is never read."""
    attacker.create("described", 5000)
    stub = attacker.stub(attacker.stalling(down=1 << 16))
    for _ in range(100):
        stub.GetModel.future(pb.GetModelRequest(model="described"))


def pulls_that_nobody_takes(attacker):
    for _ in range(40):
        stub = attacker.stub(attacker.stalling(down=1 << 20))
        stub.Pull(pb.PullRequest(model="victim", checksum_kind=1))


def names_without_end(attacker):
    stub = attacker.stub()
    name = "\x01" * 3_900_000
    for call in (
        lambda: stub.GetModel(pb.GetModelRequest(model=name), timeout=120),
        lambda: stub.DeleteModel(pb.DeleteModelRequest(model=name), timeout=120),
        lambda: stub.OpenSession(pb.OpenSessionRequest(model="victim", worker_id=name), timeout=120),
        lambda: stub.Push(iter([pb.PushRequest(header=pb.PushHeader(model=name))]), timeout=120),
        lambda: stub.Push(iter([pb.PushRequest(header=pb.PushHeader(model="victim", state_id=name))]), timeout=120),
        lambda: stub.Push(iter([pb.PushRequest(header=pb.PushHeader(model="victim", worker_id=name))]), timeout=120),
        lambda: list(stub.Pull(pb.PullRequest(model="victim", state_id=name), timeout=120)),
    ):
        assert refusals(call, 3) <= {
            grpc.StatusCode.INVALID_ARGUMENT,
            grpc.StatusCode.NOT_FOUND,
            grpc.StatusCode.FAILED_PRECONDITION,
            grpc.StatusCode.RESOURCE_EXHAUSTED,
        }


def hundreds_of_headers_of_millions_of_dimensions(attacker):
    header = pb.PushHeader(model="victim", tensors=[model_pb2.TensorSpec(name="w", shape=[1] * 4_000_000)])
    raw = pb.PushRequest(header=header).SerializeToString()
    stubs = [attacker.stub() for _ in range(30)]
    calls = [stub.push_raw(attacker.held(raw)) for stub in stubs for _ in range(5)]
    assert {call.code() for call in calls} <= ENDED


def headers_that_are_replaced(attacker):
    """Replaced parts do not appear in the message, but stay in memory."""
    raw = b"\x0a\x04\x42\x00\x4a\x00\x1a\x00" * 500_000
    for path in (PUSH, PATHS[3]):
        calls = [stub.raw(path)(attacker.held(raw)) for stub in [attacker.stub() for _ in range(10)] for _ in range(4)]
        assert {call.code() for call in calls} <= ENDED


def small_headers_that_wait_for_their_turn(attacker):
    """All served calls are stalled pulls. The others hold a header each, of forty times its size in memory."""
    slow = [attacker.stub(attacker.stalling(down=1 << 16)) for _ in range(16)]
    for stub in slow * 5:
        stub.Pull(pb.PullRequest(model="victim", checksum_kind=1))
    raw = b"\x0a\x04\x42\x00\x4a\x00\x1a\x00" * 2_000 + pb.PushRequest(header={"model": "m"}).SerializeToString()
    for stub in [attacker.stub() for _ in range(10)]:
        for _ in range(40):
            stub.push_raw(attacker.held(raw))


def answers_about_the_server_that_nobody_takes(attacker):
    attacker.create("described", 5000)
    question = reflection_pb2.ServerReflectionRequest(file_containing_symbol="numba_adam.ps.v1.ParameterService")
    for _ in range(4):
        stub = attacker.stub(attacker.stalling(down=1 << 16))
        for _ in range(40):
            stub.ListModels.future(pb.ListModelsRequest())
            stub.GetServerStatus.future(pb.GetServerStatusRequest())
            stub.raw(PATHS[5])(attacker.held(*[question.SerializeToString()] * 1000))


def large_messages_to_every_service(attacker):
    for path in PATHS:
        for stub in [attacker.stub() for _ in range(5)]:
            calls = [stub.raw(path)(attacker.held(b"\x0a\xfc\xff\xf3\x01" + b"x" * 3_999_996)) for _ in range(8)]
        assert {call.code() for call in calls} <= ENDED | {grpc.StatusCode.NOT_FOUND}


def small_messages_that_unpack_to_large_ones(attacker):
    """Each is as large as a message may be, and a thousandth of that on the wire."""
    for path in PATHS:
        stub = attacker.stub()
        for size in (1 << 22, 1 << 25):
            for _ in range(8):
                stub.raw(path)(attacker.held(bytes(size)), compression=grpc.Compression.Gzip)


def calls_that_are_cancelled_at_once(attacker):
    raw = b"\x0a\x80\x80\x06" + b"\x42\x00" * (3 << 14)
    stubs = [attacker.stub() for _ in range(5)]
    for path in PATHS:
        for stub in stubs * 60:
            stub.raw(path)(attacker.held(raw)).cancel()


def methods_that_do_not_exist(attacker):
    stubs = [attacker.stub() for _ in range(5)]
    calls = [stub.raw(f"/no.such/{number}" + "x" * 7000)(attacker.held()) for number in range(100) for stub in stubs]
    assert {call.code() for call in calls} <= {grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.RESOURCE_EXHAUSTED}


def metadata_without_end(attacker):
    for stub in [attacker.stub() for _ in range(5)]:
        for number in range(100):
            stub.push_raw(attacker.held(), metadata=[(f"x-{number}", "x" * 7000)])


def watchers_without_end(attacker):
    for stub in [attacker.stub(attacker.stalling(down=1 << 12)) for _ in range(4)]:
        for number in range(100):
            request = health_pb2.HealthCheckRequest(service=f"{number}".rjust(1000)).SerializeToString()
            stub.raw("/grpc.health.v1.Health/Watch")(iter([request]))


def messages_that_unpack_to_many_times_their_size(attacker):
    stub = attacker.stub()
    for _ in range(2):
        call = stub.push_raw(iter([bytes(1 << 28)]), compression=grpc.Compression.Gzip, timeout=120)
        assert call.code() in {grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.INVALID_ARGUMENT}


def many_connections(attacker):
    host, port = attacker.address.rsplit(":", 1)
    for _ in range(800):
        connection = socket.create_connection((host, int(port)))
        attacker._stack.callback(connection.close)
        connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0")


ATTACKS = (
    headers_of_many_dimensions,
    headers_of_empty_messages,
    large_headers_on_many_connections,
    a_model_of_many_arrays,
    many_models,
    many_sessions_with_many_rejections,
    streams_behind_busy_threads,
    large_first_messages_that_do_not_end,
    answers_that_nobody_takes,
    pulls_that_nobody_takes,
    names_without_end,
    metadata_without_end,
    messages_that_unpack_to_many_times_their_size,
    many_connections,
    hundreds_of_headers_of_millions_of_dimensions,
    headers_that_are_replaced,
    small_headers_that_wait_for_their_turn,
    answers_about_the_server_that_nobody_takes,
    large_messages_to_every_service,
    small_messages_that_unpack_to_large_ones,
    calls_that_are_cancelled_at_once,
    methods_that_do_not_exist,
    watchers_without_end,
)


def memory_of(process, entry):
    """Return a memory value of a process, in bytes, from the system."""
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(f"{entry}:"))


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
@pytest.mark.parametrize("limits", LIMITS.values(), ids=LIMITS)
@pytest.mark.campaign
def test_an_attacking_client_does_not_block_others_or_exceed_the_memory(processes, tmp_path, attack, limits):
    process = processes(tmp_path / "data", **limits)
    grads = {"w": np.ones(500_000, np.float32)}
    with ParameterClient(process.address, timeout_seconds=60) as client, contextlib.ExitStack() as stack:
        model = client.create_model("victim", grads)
        model.push(grads)
        model.pull()
        client.snapshot()
        before = memory_of(process, "VmRSS")
        attack(Attacker(process, stack))
        for _ in range(2):
            assert model.push(grads).version
            assert model.pull()["w"].shape == (500_000,)
        peak = memory_of(process, "VmHWM")
        assert peak - before <= limits["memory_budget_bytes"] + ALLOWED_ABOVE
