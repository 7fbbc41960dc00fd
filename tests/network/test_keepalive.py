"""Pings of a call that waits: the server admits our client's interval, and tells a hasty client to calm down.

Between the two is a proxy that reads the frames of HTTP/2, so the tests wait for pings and not for time.
"""

from __future__ import annotations

import contextlib
import queue
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest

from numba_adam.client import ParameterClient
from numba_adam.ps.v1 import parameter_service_pb2 as pb
from numba_adam.ps.v1.parameter_service_pb2_grpc import ParameterServiceStub
from numba_adam.server.config import ServerConfig
from numba_adam.server.embedded import Server

pytestmark = [pytest.mark.campaign]

W = {"w": np.ones(3, np.float32)}
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
PING, GOAWAY, ACK = 6, 7, 1
TOO_MANY_PINGS = b"too_many_pings"
LONG = 800.0


class Frames:
    """Forwards connections to a server, and notes the client's pings and the server's goodbyes."""

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self._target = host, int(port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = [self._listener]
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.pings: queue.SimpleQueue[None] = queue.SimpleQueue()
        self.goodbyes: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(self._target)
                self._open += [client, server]
                for source, target, start in ((client, server, len(PREFACE)), (server, client, 0)):
                    thread = threading.Thread(target=self._forward, args=(source, target, start))
                    self._threads.append(thread)
                    thread.start()

    def _forward(self, source: socket.socket, target: socket.socket, start: int) -> None:
        with contextlib.suppress(OSError), source.makefile("rb") as file:
            target.sendall(file.read(start))
            while len(head := file.read(9)) == 9:
                body = file.read(int.from_bytes(head[:3], "big"))
                self._note(head[3], head[4], body, is_clients=bool(start))
                target.sendall(head + body)
        for each in (source, target):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def _note(self, kind: int, flags: int, body: bytes, *, is_clients: bool) -> None:
        if kind == PING and is_clients and not flags & ACK:
            self.pings.put(None)
        if kind == GOAWAY and not is_clients:
            self.goodbyes.put(struct.pack(">I", len(body)) + body)

    def close(self) -> None:
        for each in self._open:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
        for thread in self._threads:
            thread.join()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    config = ServerConfig(listen="127.0.0.1:0", data_dir=tmp_path / "data", stall_seconds=LONG)
    with Server(config) as found, ParameterClient(found.address, timeout_seconds=LONG) as client:
        client.create_model("m", W, durability="memory")
        yield found


@pytest.fixture
def frames(server: Server) -> Iterator[Frames]:
    found = Frames(server.address)
    yield found
    found.close()


def push(server: Server) -> None:
    with ParameterClient(server.address, timeout_seconds=LONG) as client:
        client.open_model("m").push(W)


def test_a_pull_of_our_client_waits_through_many_pings(server, frames) -> None:
    """One ping in 20 seconds; the server admits one in 5."""
    with ParameterClient(frames.address, timeout_seconds=LONG) as client:
        model, found = client.open_model("m"), queue.SimpleQueue()
        waiting = threading.Thread(target=lambda: found.put(model.pull(min_version=1)["w"].tolist()))
        waiting.start()
        for _ in range(4):
            frames.pings.get(timeout=LONG)
        push(server)
        assert found.get(timeout=LONG) != [1.0] * 3
        waiting.join()
    assert frames.goodbyes.empty()


def test_a_client_that_pings_every_second_is_told_to_calm_down(server, frames) -> None:
    """It is a limit against floods. gRPC ends the connection, so the wait fails and has to be tried again."""
    with ParameterClient(server.address, timeout_seconds=LONG) as client:
        state_id = client.open_model("m").state_id
    request = pb.PullRequest(model="m", state_id=state_id, min_version=1, checksum_kind=1)
    hasty = [("grpc.keepalive_time_ms", 1000), ("grpc.http2.max_pings_without_data", 0)]
    with grpc.insecure_channel(frames.address, hasty) as channel:
        with pytest.raises(grpc.RpcError) as caught:
            list(ParameterServiceStub(channel).Pull(request, timeout=LONG))
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert TOO_MANY_PINGS in frames.goodbyes.get(timeout=LONG)
