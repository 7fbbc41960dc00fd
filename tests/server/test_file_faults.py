"""The file operations of a real server process fail, by libfiu: nothing that was acknowledged is lost."""

import os
import random
import shutil
from pathlib import Path

import grpc
import numpy as np
import pytest

import numba_adam as na
from numba_adam.ps.v1 import model_pb2
from numba_adam.ps.v1 import parameter_service_pb2 as pb

LIBRARIES = Path("/usr/lib/fiu")
pytestmark = [
    pytest.mark.campaign,
    pytest.mark.skipif(
        not (LIBRARIES / "fiu_posix_preload.so").exists() or not shutil.which("fiu-run"),
        reason="libfiu is not installed: tools/install_campaigns.sh does it as root",
    ),
    # Its malloc takes a lock that its own thread may hold while the loader waits for it: one start of five hung.
    pytest.mark.skipif("FILE_FAULTS" not in os.environ, reason="libfiu may hang a start: make torture runs this"),
]
LEVELS = {"process": model_pb2.DURABILITY_PROCESS, "disk": model_pb2.DURABILITY_DISK}
OPERATIONS = (
    "posix/io/sync/fsync",
    "posix/io/sync/fdatasync",
    "posix/io/oc/open",
    "posix/io/oc/close",
    "posix/io/rw/write",
    "posix/io/rw/pwrite",
    "posix/io/rw/writev",
    "posix/io/rw/pwritev",
    "posix/io/rw/ftruncate",
    "posix/io/dir/rename",
    "posix/io/dir/unlink",
    "posix/mm/mmap",
)
TURNS = int(os.environ.get("FILE_FAULTS", "3"))
SECONDS = 10.0  # a server whose every read or write fails may never answer
SIZE = 3000


def gradient_of(number):
    return np.random.default_rng(number).standard_normal(SIZE, dtype=np.float32)


def replay(start, pushes):
    param, exp_avg, exp_avg_sq = start.copy(), np.zeros_like(start), np.zeros_like(start)
    for step in range(1, pushes + 1):
        na.adam_update(param, gradient_of(step), exp_avg, exp_avg_sq, step, lr=0.01)
    return param.tobytes()


class Faults:
    """libfiu in a process, and the pipe that tells it what is to fail."""

    def __init__(self, folder: Path) -> None:
        self.prefix = folder / "fiu"
        libraries = [str(LIBRARIES / name) for name in ("fiu_run_preload.so", "fiu_posix_preload.so")]
        self.environment = {"LD_PRELOAD": " ".join(libraries), "FIU_CTRL_FIFO": str(self.prefix), "FIU_ENABLE": ""}

    def tell(self, pid: int, command: str) -> None:
        """Send a command, and wait for its answer unless the process has died."""
        to, answers = (Path(f"{self.prefix}-{pid}.{end}") for end in ("in", "out"))
        reader = os.open(answers, os.O_RDONLY | os.O_NONBLOCK)
        try:
            writer = os.open(to, os.O_WRONLY | os.O_NONBLOCK)
            os.write(writer, f"{command}\n".encode())
            os.close(writer)
        finally:
            os.close(reader)


@pytest.mark.parametrize("level", LEVELS)
def test_what_was_acknowledged_is_there_after_operations_have_failed(tmp_path, processes, peers, campaign, level):
    rng = random.Random(f"{campaign.seed(1)} {level}")
    start = np.random.default_rng(99).standard_normal(SIZE, dtype=np.float32)
    for name in ("memory", "pipes"):
        (tmp_path / name).mkdir()
    faults, acknowledged, session = Faults(tmp_path / "pipes"), 0, None
    for operation in rng.sample(OPERATIONS, TURNS):
        process = processes(tmp_path / "data", environment=faults.environment, memory_dir=str(tmp_path / "memory"))
        peer = peers(process.address)
        if session is None:
            peer.create({"x": start}, lr=0.01, durability=LEVELS[level])
            session = peer.session()
        session.peer = peer
        moment, probability = rng.randint(0, 5), rng.choice([1.0, 0.3, 0.05])
        for number in range(12):
            if number == moment:
                faults.tell(process.pid, f"enable_random name={operation},probability={probability}")
            try:
                if number in (7, 11):
                    peer.stub.Snapshot(pb.SnapshotRequest(), timeout=SECONDS)
                messages = session.messages({"x": gradient_of(acknowledged + 1)}, sequence=acknowledged + 1)
                ack = peer.stub.Push(messages, timeout=SECONDS).ack
            except grpc.RpcError as error:
                if error.code() == grpc.StatusCode.DEADLINE_EXCEEDED or not process.is_running:
                    break
                continue
            acknowledged += 1
            assert ack.version == acknowledged
        process.kill()
        clean = processes(tmp_path / "data", memory_dir=str(tmp_path / "memory"))
        peer = peers(clean.address)
        state = peer.state()
        assert state.state_id == session.state_id, operation
        assert state.version in (acknowledged, acknowledged + 1), operation
        assert peer.pull().arrays["x"].tobytes() == replay(start, state.version), operation
        acknowledged = state.version
        clean.kill()
    campaign.did(faults=TURNS, pushes=acknowledged)
