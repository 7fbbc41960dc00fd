"""A server that works for long with workers that fail takes no more memory, descriptors, threads and disk than before.

Each turn does the same work with other random choices: pushes, bad pushes, broken streams, cancelled pulls, garbage on
the port, models made and deleted, sessions of new workers. What the server takes in the last third is compared with
what it took in the middle third.
"""

import contextlib
import os
import random
import socket
import statistics
import uuid
from pathlib import Path
from typing import NamedTuple

import grpc
import numpy as np
import pytest

from numba_adam.ps.v1 import model_pb2
from numba_adam.ps.v1 import parameter_service_pb2 as pb

TURNS = int(os.environ.get("SOAK_TURNS", "360"))
LARGE = 400_000
LEVELS = ("memory", "process", "disk")


class Taken(NamedTuple):
    """What a server takes."""

    memory_mb: float
    descriptors: float
    threads: float
    disk_mb: float


def taken(pid, folder):
    status = Path(f"/proc/{pid}/status").read_text()
    (resident,) = (int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon:"))
    files = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".log"]
    sizes = 0
    for path in files:
        with contextlib.suppress(FileNotFoundError):  # deleted meanwhile
            sizes += path.stat().st_size
    return Taken(
        resident / 1024,
        len(os.listdir(f"/proc/{pid}/fd")),
        len(os.listdir(f"/proc/{pid}/task")),
        sizes / 1e6,
    )


def break_off(peer, session, size, draw):
    """Send a part of a push, and cancel it."""
    parts = list(session.messages({"x": np.ones(size, np.float32)}, chunk_bytes=1 << 14))[:-1]

    def messages():
        yield from parts[: draw.randrange(1, len(parts) + 1)]
        call.cancel()

    call = peer.stub.Push.future(messages())
    with contextlib.suppress(grpc.RpcError, grpc.FutureCancelledError):
        call.result(800)


def send_garbage(address, draw):
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port)), 60) as connection, contextlib.suppress(OSError):
        connection.sendall(draw.randbytes(draw.randrange(1, 5000)))


def turn(peer, peers, sessions, draw, number):
    """Do some of everything. Returns the pushes that were applied."""
    applied = 0
    for level, session in sessions.items():
        size = LARGE if level == "process" else 2000
        gradient = np.full(size, draw.uniform(-1, 1), np.float32)
        for _ in range(draw.randrange(1, 4)):
            session.push({"x": gradient})
            applied += 1
        if draw.random() < 0.5:
            bad = gradient.copy()
            bad[draw.randrange(size)] = np.nan
            with pytest.raises(grpc.RpcError):
                session.push({"x": bad})
            session.sequence += 1
        if draw.random() < 0.5:
            break_off(peer, session, size, draw)
        answers = peer.stub.Pull(pb.PullRequest(model=level, checksum_kind=1), timeout=800)
        if draw.random() < 0.5:
            next(answers)
            answers.cancel()
        else:
            assert sum(1 for _ in answers) >= 3
    send_garbage(peer.address, draw)
    other = peers(peer.address)
    name = f"short-{number}"
    other.create({"x": np.ones(draw.randrange(1, 50_000), np.float32)}, name, durability=draw.randrange(1, 4))
    other.session("memory", f"worker {number}")
    other.stub.Snapshot(pb.SnapshotRequest(model=draw.choice(LEVELS)), timeout=800)
    other.stub.DeleteModel(pb.DeleteModelRequest(model=name))
    other.close()
    return applied


@pytest.mark.campaign
def test_a_server_that_works_for_long_takes_no_more_than_before(tmp_path, processes, peers, campaign):
    draw, found, applied = random.Random(campaign.seed(8)), [], 0
    (tmp_path / "memory").mkdir()
    server = processes(tmp_path / "data", memory_dir=str(tmp_path / "memory"))
    peer = peers(server.address)
    sessions = {}
    for level in LEVELS:
        size = LARGE if level == "process" else 2000
        durability = model_pb2.Durability.Value(f"DURABILITY_{level.upper()}")
        peer.create({"x": np.zeros(size, np.float32)}, level, durability=durability)
        sessions[level] = peer.session(level, uuid.uuid4().hex)
    for number in range(TURNS):
        applied += turn(peer, peers, sessions, draw, number)
        found.append(taken(server.pid, tmp_path))
    campaign.did(turns=TURNS, pushes=applied)
    third = TURNS // 3
    middle, last = (
        Taken(*(statistics.median(column) for column in zip(*part, strict=True)))
        for part in (found[third : 2 * third], found[2 * third :])
    )
    growth = Taken(*(after - before for before, after in zip(middle, last, strict=True)))
    assert growth.memory_mb < max(4, 0.03 * middle.memory_mb), (middle, last)
    assert growth.descriptors < 4, (middle, last)
    assert growth.threads < 4, (middle, last)
    assert growth.disk_mb < max(2, 0.1 * middle.disk_mb), (middle, last)
    assert sum(peer.state(level).version for level in LEVELS) == applied
