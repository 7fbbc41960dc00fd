"""The Unix socket of the server: what its packets may be, which memory it takes, and who may connect.

A peer of these tests writes packets with struct, as docs/same-host.md describes them.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import socket
import struct
import subprocess
import sys
import threading

import numpy as np
import pytest

from numba_adam.client import ParameterClient
from numba_adam.ps.local import socket_path
from numba_adam.server.config import ServerConfig
from numba_adam.server.embedded import Server

HEAD = struct.Struct("<4sBBHQ")
HELLO, BUFFER, FORGET, PUSH, PUSH_STREAM, PIECE, MAP, PULL, COPY = range(1, 10)
OK, ERROR = 64, 65
INVALID_ARGUMENT, RESOURCE_EXHAUSTED, UNAUTHENTICATED = 3, 8, 16
SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW
LONG_SECONDS = 600


class Peer:
    """One connection, and its packets as numbers and bytes."""

    def __init__(self, address):
        path = socket_path(os.environ, int(address.rpartition(":")[2]))
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket.settimeout(LONG_SECONDS)
        self.socket.connect(str(path))

    def send(self, kind, number=0, regions=(), body=b"", descriptors=()):
        raw = HEAD.pack(b"NBAL", 1, kind, len(regions), number)
        raw += b"".join(struct.pack("<3Q", *region) for region in regions) + body
        socket.send_fds(self.socket, [raw], list(descriptors))

    def answer(self):
        """Return kind, number and body of an answer; None if the connection has ended."""
        try:
            raw = self.socket.recv(1 << 17)
        except ConnectionResetError:
            return None
        if not raw:
            return None
        _, _, kind, count, number = HEAD.unpack_from(raw)
        return kind, number, raw[HEAD.size + 24 * count :]

    def call(self, *args, **settings):
        self.send(*args, **settings)
        return self.answer()


@pytest.fixture
def server(tmp_path):
    config = ServerConfig(listen="127.0.0.1:0", data_dir=tmp_path / "data", stall_seconds=LONG_SECONDS)
    with Server(config) as server:
        yield server


@pytest.fixture
def peer(server):
    peer = Peer(server.address)
    with contextlib.closing(peer.socket):
        yield peer


def serves(server):
    """Return whether a client can train on the server."""
    with ParameterClient(server.address, transport="same-host") as client:
        model = client.create_model("probe", {"w": np.zeros(3, np.float32)}, exist_ok=True)
        return model.push({"w": np.ones(3, np.float32)}).applied and model.pull()["w"].shape == (3,)


def memfd(nbytes, seals=SEALS, flags=0):
    descriptor = os.memfd_create("test", os.MFD_ALLOW_SEALING | flags)
    os.ftruncate(descriptor, nbytes)
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
    return descriptor


@pytest.mark.parametrize("seals", [0, fcntl.F_SEAL_SHRINK, fcntl.F_SEAL_GROW])
def test_memory_that_may_change_its_size_is_refused(server, peer, seals):
    kind, code, body = peer.call(BUFFER, 4096, descriptors=[memfd(4096, seals)])
    assert (kind, code) == (ERROR, INVALID_ARGUMENT)
    assert b"F_SEAL_SHRINK" in body
    assert serves(server)


@pytest.mark.parametrize("what", ["file", "folder", "pipe", "device", "socket", "none", "two"])
def test_what_is_no_memory_is_refused(server, peer, tmp_path, what):
    (tmp_path / "file").write_bytes(bytes(4096))
    made = {
        "file": lambda: [os.open(tmp_path / "file", os.O_RDWR)],
        "folder": lambda: [os.open(tmp_path, os.O_RDONLY)],
        "pipe": lambda: os.pipe()[:1],
        "device": lambda: [os.open("/dev/zero", os.O_RDWR)],
        "socket": lambda: [socket.socket().detach()],
        "none": list,
        "two": lambda: [memfd(4096), memfd(4096)],
    }
    assert peer.call(BUFFER, 4096, descriptors=made[what]())[:2] == (ERROR, INVALID_ARGUMENT)
    assert peer.call(BUFFER, 4096, descriptors=[memfd(4096)])[0] == OK
    assert serves(server)


@pytest.mark.parametrize(("size", "said"), [(4096, 8192), (4096, 4095), (0, 0), (4096, 1 << 63)])
def test_memory_of_another_size_than_said_is_refused(server, peer, size, said):
    assert peer.call(BUFFER, said, descriptors=[memfd(size)])[:2] == (ERROR, INVALID_ARGUMENT)
    assert serves(server)


def test_memory_beyond_the_budget_is_refused(server, peer):
    """The file is sparse: only the budget knows how much the server could have to read."""
    size = server._runtime.pool.budget_bytes + 4096
    assert peer.call(BUFFER, size, descriptors=[memfd(size)])[:2] == (ERROR, RESOURCE_EXHAUSTED)
    assert serves(server)


def test_memory_that_the_server_may_not_map_is_refused(server, peer):
    """A descriptor for reading only, and memory that nobody may write to any more."""
    descriptor = memfd(4096)
    reading = os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY)
    assert peer.call(BUFFER, 4096, descriptors=[reading])[:2] == (ERROR, INVALID_ARGUMENT)
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
    assert peer.call(BUFFER, 4096, descriptors=[descriptor])[:2] == (ERROR, INVALID_ARGUMENT)
    assert serves(server)


@pytest.mark.parametrize("region", [(1, 0, 4097), (1, 4096, 1), (2, 0, 1), (1, 2**64 - 1, 2), (1, 0, 2**64 - 1)])
def test_a_region_beyond_its_memory_is_refused(server, peer, region):
    from numba_adam.ps.v1 import parameter_service_pb2 as pb

    assert peer.call(BUFFER, 4096, descriptors=[memfd(4096)])[:2] == (OK, 1)
    with ParameterClient(server.address) as client:
        client.create_model("m", {"w": np.zeros(1024, np.float32)})
    header = pb.PushRequest(header=pb.PushHeader(model="m", total_bytes=region[2] % 2**63)).SerializeToString()
    assert peer.call(PUSH, 10**6, [region], header)[0] == ERROR
    pull = pb.PullRequest(model="m").SerializeToString()
    assert peer.call(COPY, 10**6, [region], pull)[:2] == (ERROR, INVALID_ARGUMENT)
    assert serves(server)


def test_memory_is_given_back_when_its_worker_goes(server, peer):
    pool = server._runtime.pool
    before, open_files = pool.used_bytes, len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        descriptor = memfd(1 << 20)
        assert peer.call(BUFFER, 1 << 20, descriptors=[descriptor])[0] == OK
        os.close(descriptor)
    assert pool.used_bytes == before + (3 << 20)
    assert peer.call(FORGET, 2)[0] == OK
    assert pool.used_bytes == before + (2 << 20)
    listener = server._local
    threads = [thread for _, thread in listener._all()]
    peer.socket.shutdown(socket.SHUT_RDWR)
    for thread in threads:
        thread.join(LONG_SECONDS)
    assert pool.used_bytes == before
    assert len(os.listdir("/proc/self/fd")) <= open_files


@pytest.mark.parametrize("seed", range(20))
def test_random_packets_end_their_connection_at_most(server, seed):
    """Bytes at random, and valid heads with random fields, kinds and bodies."""
    rng = random.Random(seed)
    for _ in range(20):
        peer = Peer(server.address)
        with contextlib.closing(peer.socket):
            for _ in range(rng.randrange(1, 5)):
                raw = rng.randbytes(rng.choice([0, 1, 15, 16, 17, 100, 65_536, 65_537, 100_000]))
                if rng.random() < 0.8:
                    kind, count = rng.choice([*range(12), OK, ERROR, 66, 255]), rng.choice([0, 0, 1, 2, 65_535])
                    raw = HEAD.pack(b"NBAL", 1, kind, count, rng.getrandbits(64)) + raw[: 60_000 * rng.randrange(2)]
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    peer.socket.send(raw or b"x")
            peer.socket.shutdown(socket.SHUT_WR)
            while peer.answer() is not None:
                pass
    assert serves(server)


def test_without_a_valid_token_nothing_is_answered_where_tokens_are_required(tmp_path):
    from numba_adam.ps.v1 import parameter_service_pb2 as pb

    config = ServerConfig(listen="127.0.0.1:0", data_dir=tmp_path / "data", loopback_token="required")
    with Server(config) as server:
        assert serves(server)  # it finds the token's file
        peer = Peer(server.address)
        pull = pb.PullRequest(model="probe").SerializeToString()
        with contextlib.closing(peer.socket):
            for token in (b"", b"guessed"):
                assert peer.call(HELLO, body=token)[0] == OK
                for kind, body in (
                    (PULL, pull),
                    (MAP, pb.GetModelRequest(model="probe").SerializeToString()),
                    (PUSH, pb.PushRequest(header=pb.PushHeader(model="probe")).SerializeToString()),
                ):
                    assert peer.call(kind, 10**6, body=body)[:2] == (ERROR, UNAUTHENTICATED)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can start a program as another user")
def test_another_user_of_the_machine_cannot_connect(server, tmp_path):
    """Even where the folder lets it through, the system says who it is."""
    path = socket_path(os.environ, int(server.address.rpartition(":")[2]))
    program = f"""
import os, socket
folder = os.open({str(path.parent)!r}, os.O_PATH)
os.setgroups([]); os.setgid(65534); os.setuid(65534)
for place in ({str(path)!r}, f"/proc/self/fd/{{folder}}/{path.name}"):
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        sock.connect(place)
        sock.send(b"NBAL" + bytes([1, 1]) + bytes(10))
        print(len(sock.recv(100)))
    except (PermissionError, ConnectionResetError, BrokenPipeError) as error:
        print(0)
"""
    path.chmod(0o666)
    path.parent.chmod(0o755)
    try:
        run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=LONG_SECONDS)
    finally:
        path.parent.chmod(0o700)
    assert run.stdout.split() == ["0", "0"], run.stderr
    assert serves(server)


def test_a_worker_that_stops_in_mid_push_delays_nobody(server, peer):
    """It has announced a gradient and sends none; another worker's pushes go on, and a stop of the server too."""
    with ParameterClient(server.address, transport="same-host") as client:
        model = client.create_model("m", {"w": np.zeros(3_000_000, np.float32)})
        model.push({"w": np.ones(3_000_000, np.float32)})
        other = Stopped(server.address, model)
        assert model.push({"w": np.ones(3_000_000, np.float32)}).version == 2
        other.close()
        assert model.push({"w": np.ones(3_000_000, np.float32)}).version == 3


class Stopped:
    """A worker whose push has begun; its thread waits for what never comes."""

    def __init__(self, address, model):
        self.client = ParameterClient(address, "stopped", transport="same-host")
        handle, self.reached, self.go_on = self.client.open_model(model.name), threading.Event(), threading.Event()

        def report(done, total):
            if done < total:
                self.reached.set()
                self.go_on.wait(LONG_SECONDS)
                raise InterruptedError

        self.client._connection._progress = report
        self.thread = threading.Thread(target=self.push, args=(handle,))
        self.thread.start()
        self.reached.wait(LONG_SECONDS)

    def push(self, handle):
        with contextlib.suppress(InterruptedError):
            handle.push({"w": np.ones(3_000_000, np.float32)})

    def close(self):
        self.go_on.set()
        self.thread.join()
        self.client.close(wait=False)
