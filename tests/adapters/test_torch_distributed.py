"""Two processes train one model with DistributedDataParallel."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.parity

# A process ends by os._exit: at an ordinary exit gloo's threads may still hold tensors, need the interpreter to free
# them, and abort the process when it is gone (pytorch issue 190489, pull request 179291).
PROGRAM = """
import os
import sys
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from numba_adam.torch import AdamW

rank, store = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)

def train(make):
    torch.manual_seed(0)
    model = DistributedDataParallel(torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1)))
    optimizer = make(model.parameters(), lr=0.01)
    random = torch.Generator().manual_seed(rank)
    for _ in range(10):
        optimizer.zero_grad()
        model(torch.randn(6, 5, generator=random)).square().mean().backward()
        optimizer.step()
    return torch.cat([param.detach().reshape(-1) for param in model.parameters()])

ours, theirs = train(AdamW), train(torch.optim.AdamW)
others = [torch.empty_like(ours) for _ in range(2)]
dist.all_gather(others, ours)
assert torch.equal(others[0], others[1]), "the processes have different parameters"
assert (ours - theirs).abs().max() < 1e-5, "torch.optim.AdamW has other parameters"
dist.destroy_process_group()
print("done", flush=True)
os._exit(0)
"""


def test_two_processes_with_distributed_data_parallel_agree_with_torch_optim(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PROGRAM]
    processes = [
        subprocess.Popen(
            [*command, str(rank), str(tmp_path / "store")], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for rank in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=800) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    for process, (out, err) in zip(processes, outputs, strict=True):
        assert process.returncode == 0, err
        assert out == "done\n"
