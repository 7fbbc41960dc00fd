"""Many connections: descriptors remain for files, and dead peers are disconnected."""

import contextlib
import os
import resource
import socket
from pathlib import Path

import numpy as np
import pytest

from numba_adam.client import ParameterClient
from numba_adam.ps.v1 import parameter_service_pb2 as pb

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0"
SETTINGS_ACK = b"\0\0\0\4\1\0\0\0\0"
PING, FRAME_HEADER_BYTES = 6, 9
GRADS = {"w": np.ones(3, np.float32)}


def connect(address, *, says=PREFACE):
    host, port = address.rsplit(":", 1)
    connection = socket.create_connection((host, int(port)))
    connection.sendall(says)
    return connection


def read_frame(connection):
    """Return type, flags and payload of an HTTP/2 frame; None at the end of the connection."""

    def read(size):
        found = b""
        while len(found) < size:
            try:
                piece = connection.recv(size - len(found))
            except ConnectionResetError:
                return None
            if not piece:
                return None
            found += piece
        return found

    header = read(FRAME_HEADER_BYTES)
    if header is None:
        return None
    payload = read(int.from_bytes(header[:3]))
    return None if payload is None else (header[3], header[4], payload)


def limit_of(process):
    """Return the limit of open files of a process."""
    lines = Path(f"/proc/{process.pid}/limits").read_text().splitlines()
    return int(next(line.split()[3] for line in lines if line.startswith("Max open files")))


@pytest.mark.parametrize("says", [PREFACE, b""], ids=["they speak HTTP/2", "they say nothing"])
def test_idle_connections_leave_descriptors_for_snapshots(processes, tmp_path, says):
    """More of them than the process may open files."""
    process = processes(tmp_path / "data", descriptors=(256, 256))
    with ParameterClient(process.address, timeout_seconds=800) as client, contextlib.ExitStack() as stack:
        model = client.create_model("model", GRADS)
        for _ in range(400):
            stack.enter_context(contextlib.closing(connect(process.address, says=says)))
        for version in (1, 2, 3):
            assert model.push(GRADS).version == version
            (snapshot,) = client.snapshot()
            assert snapshot.version == version
    assert process.stop() == 0


def test_a_new_client_connects_after_dead_peers_are_closed(processes, tmp_path):
    """Silent peers use all connections; they are pinged and disconnected."""
    process = processes(tmp_path / "data", most_connections=20, keepalive_seconds=1)
    with contextlib.ExitStack() as stack:
        for _ in range(40):
            stack.enter_context(contextlib.closing(connect(process.address)))
        client = stack.enter_context(ParameterClient(process.address, timeout_seconds=800))
        assert client.create_model("model", GRADS).push(GRADS).version == 1


@pytest.mark.parametrize("answers", [0, 1, 3])
@pytest.mark.parametrize("says", [PREFACE, PREFACE + SETTINGS_ACK], ids=["settings ignored", "settings acknowledged"])
def test_a_peer_that_answers_no_ping_is_disconnected(processes, tmp_path, says, answers):
    """Even after it answered some, and without any call."""
    process = processes(tmp_path / "data", keepalive_seconds=1)
    with contextlib.closing(connect(process.address, says=says)) as connection:
        answered = 0
        while (frame := read_frame(connection)) is not None:  # the test's timeout is its limit
            kind, _, payload = frame
            if kind == PING and answered < answers:
                connection.sendall(b"\0\0\x08" + bytes((PING, 1)) + bytes(4) + payload)
                answered += 1
    assert answered == answers


def test_the_limit_of_open_files_is_raised_to_the_systems(processes, tmp_path):
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    process = processes(tmp_path / "data", descriptors=(100, hard))
    assert limit_of(process) == (1 << 16 if hard == resource.RLIM_INFINITY else min(hard, 1 << 16))


@pytest.mark.parametrize("level", [1, 2, 3], ids=["memory", "process", "disk"])
def test_a_deleted_model_leaves_no_memory_and_no_descriptor(tmp_path, processes, peers, level):
    (tmp_path / "memory").mkdir()
    process = processes(tmp_path / "data", memory_dir=str(tmp_path / "memory"))
    peer = peers(process.address)

    def taken():
        status = Path(f"/proc/{process.pid}/status").read_text()
        shared = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("RssShmem:"))
        kinds = [os.readlink(entry) for entry in Path(f"/proc/{process.pid}/fd").iterdir()]
        return shared, sum("memfd" in kind or "/memory/" in kind for kind in kinds if not kind.endswith(".owner"))

    def come_and_go():
        peer.create({"x": np.ones(500_000, np.float32)}, durability=level)
        session = peer.session()
        session.push({"x": np.ones(500_000, np.float32)})
        peer.stub.DeleteModel(pb.DeleteModelRequest(model="model"))
        return taken()

    first = come_and_go()
    assert {come_and_go() for _ in range(5)} == {first}
    assert first[1] == 0
