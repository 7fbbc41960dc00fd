"""SIGKILL at random moments during updates and snapshots: only complete versions are restored."""

import hashlib
import json
import random
import threading

import grpc
import numpy as np
import pytest
from safetensors import safe_open

import numba_adam as na
from numba_adam.ps.v1 import parameter_service_pb2 as pb

KILLS, WORKERS, SIZE = 4, 3, 60_000


def gradient_of(worker, number):
    return np.random.default_rng([worker, number]).standard_normal(SIZE, dtype=np.float32)


class Replay:
    """The expected model after any version of the current line of history."""

    def __init__(self, start):
        self.history = []  # (worker, number) of each version
        self.start = start

    def sha256(self, version):
        param, exp_avg, exp_avg_sq = self.start.copy(), np.zeros_like(self.start), np.zeros_like(self.start)
        for step, push in enumerate(self.history[:version], 1):
            na.adam_update(param, gradient_of(*push), exp_avg, exp_avg_sq, step, lr=0.01)
        return hashlib.sha256(param.tobytes() + exp_avg.tobytes() + exp_avg_sq.tobytes()).hexdigest()


def newest(folder):
    """Return the hash and the ledger's record of the newest snapshot."""
    path = max((folder / "models" / "model").glob("*.snapshot"))
    with safe_open(path, framework="np") as file:
        arrays = [file.get_tensor(f"{group}/x").tobytes() for group in ("param", "exp_avg", "exp_avg_sq")]
        return hashlib.sha256(b"".join(arrays)).hexdigest(), json.loads(file.metadata()["machine"])


@pytest.mark.campaign
def test_every_restored_state_equals_a_replay(tmp_path, processes, peers, campaign):
    folder, rng = tmp_path / "data", random.Random(campaign.seed(17))
    start = np.random.default_rng(1).standard_normal(SIZE, dtype=np.float32)
    replay, numbers = Replay(start), [0] * WORKERS
    for _ in range(KILLS):
        process = processes(folder, snapshot_every_pushes=3)
        peer = peers(process.address)
        peer.create({"x": start}, lr=0.01, exist_ok=True)
        enough = threading.Semaphore(0)
        sent, acknowledged, ends = {}, {}, []

        def work(worker):
            session = peers(process.address).session(worker_id=f"worker-{worker}")  # noqa: B023
            try:
                while True:
                    numbers[worker] += 1
                    sent[session.worker_id, session.sequence + 1] = push = (worker, numbers[worker])  # noqa: B023
                    acknowledged[session.push({"x": gradient_of(*push)}).version] = push  # noqa: B023
                    enough.release()  # noqa: B023
            except grpc.RpcError as error:
                ends.append(error.code())  # noqa: B023

        threads = [threading.Thread(target=work, args=(worker,)) for worker in range(WORKERS)]
        for thread in threads:
            thread.start()
        for _ in range(rng.randint(10, 40)):
            assert enough.acquire(timeout=800)
        process.kill()
        for thread in threads:
            thread.join(800)
            assert not thread.is_alive()
        assert ends == [grpc.StatusCode.UNAVAILABLE] * WORKERS

        came_back, ledger = newest(folder)
        version, first = ledger["version"], len(replay.history) + 1
        for session in ledger["sessions"]:  # what was applied and saved, but whose answer was lost in the kill
            for sequence, made, *_ in session["answers"]:
                if made >= first:  # an older one is of a session before the last kill
                    push = sent[session["worker_id"], sequence]
                    assert acknowledged.setdefault(made, push) == push
        replay.history += [acknowledged[made] for made in range(first, version + 1)]
        assert len(set(replay.history)) == len(replay.history) == version
        assert came_back == replay.sha256(version)

    peer = peers(processes(folder).address)
    assert peer.state().version == len(replay.history)
    peer.stub.Snapshot(pb.SnapshotRequest())
    assert newest(folder)[0] == replay.sha256(len(replay.history))
    campaign.did(kills=KILLS, pushes=len(replay.history))
