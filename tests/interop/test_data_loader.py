"""PyTorch's DataLoader, whose workers are forks of the program that trains: `make parity`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.parity

PROGRAM = """
import sys, threading, time
import numpy as np
import torch
from numba_adam.client import ParameterClient
from numba_adam.errors import ServiceError

class Batches(torch.utils.data.Dataset):
    "Batches that are made with the parameters as they now stand."
    def __init__(self, mine):
        self.mine = mine
    def __len__(self):
        return 8
    def __getitem__(self, index):
        if self.mine:
            with ParameterClient(address, timeout_seconds=100_000) as own:
                return own.open_model("m").push(grads).version
        return model.push(grads).version

if __name__ == "__main__":
    address = sys.argv[1]
    grads = {"w": np.ones(4, np.float32)}
    with ParameterClient(address, "w0", timeout_seconds=100_000) as client:
        model = client.create_model("m", {"w": np.zeros(4, np.float32)})
        loader = torch.utils.data.DataLoader(Batches(mine=False), num_workers=2, multiprocessing_context="fork")
        for version in range(1, 4):
            try:
                list(loader)
            except ServiceError as error:
                assert "make a ParameterClient in the child" in str(error), error
            else:
                raise AssertionError("the parent's client worked in a worker")
            assert model.push(grads).version == version
        pending = [model.push_async(grads) for _ in range(3)]
        loader = torch.utils.data.DataLoader(Batches(mine=True), num_workers=2, multiprocessing_context="fork")
        versions = [int(batch) for batch in loader] + [push.result().version for push in pending]
        versions.append(model.push(grads).version)
        assert sorted(versions) == list(range(4, 16)), versions
        net = torch.nn.Linear(4, 1)
        model = client.create_model("net", net.named_parameters())
        loader = torch.utils.data.DataLoader(
            list(torch.randn(20, 4)), batch_size=5, num_workers=2, multiprocessing_context="fork"
        )
        loop = model.worker(loader, net.named_parameters())  # the loader forks within it, once for each epoch
        for epoch in range(3):
            for batch, step in loop:
                net(batch).square().mean().backward()
        model.pull()
        assert model.version == 12, model.version
"""


def test_loader_workers_need_their_own_client(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    program = tmp_path / "train.py"
    program.write_text(PROGRAM)
    command = [sys.executable, "-m", "numba_adam", "serve", "--listen", "127.0.0.1:0"]
    command += ["--data-dir", str(tmp_path / "data")]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert server.stdout is not None
        address = server.stdout.readline().split()[3]
        environment = {**os.environ, "GRPC_VERBOSITY": "ERROR"}
        result = subprocess.run(
            [sys.executable, str(program), address], capture_output=True, text=True, timeout=800, check=False,
            env=environment,
        )  # fmt: skip
    finally:
        server.kill()
        server.communicate()
    assert result.returncode == 0, result.stderr
