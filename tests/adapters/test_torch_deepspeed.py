"""DeepSpeed's ZeRO-Offload with our optimizers as its client optimizers: on the CPU, in one process."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.parity,
    pytest.mark.skipif(
        importlib.util.find_spec("deepspeed") is None,
        reason="DeepSpeed is not installed; the parity environment has it",
    ),
]

PROGRAM = """
import os
import sys
import torch
import torch.distributed as dist
import deepspeed
from numba_adam.torch import AdamW, CPUOffloadAdam

dist.init_process_group("gloo", init_method=f"file://{sys.argv[1]}", rank=0, world_size=1)
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # minutes of C++, for processes that share memory
deepspeed.init_distributed("gloo", dist_init_required=False)

def groups(model):
    return [
        {"params": [param for param in model.parameters() if param.dim() > 1]},
        {"params": [param for param in model.parameters() if param.dim() == 1], "weight_decay": 0.0},
    ]

def offload(params, lr, weight_decay):
    return CPUOffloadAdam(params, lr, weight_decay=weight_decay, decoupled_weight_decay=True)

def train(make, stage, dtype):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 16), torch.nn.Tanh(), torch.nn.Linear(16, 3))
    config = {
        "train_micro_batch_size_per_gpu": 4,
        "gradient_accumulation_steps": 2,
        "gradient_clipping": 0.1,
        "bf16": {"enabled": dtype == torch.bfloat16},
        "zero_optimization": {"stage": stage, "offload_optimizer": {"device": "cpu"}},
        "zero_force_ds_cpu_optimizer": False,
        "zero_allow_untested_optimizer": True,
    }
    optimizer = make(groups(model), lr=0.01, weight_decay=0.1)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    random = torch.Generator().manual_seed(1)
    for _ in range(8):
        engine.backward(engine(torch.randn(4, 6, generator=random).to(dtype)).float().square().mean())
        engine.step()
    return torch.cat([param.detach().float().reshape(-1) for param in engine.module.parameters()])

for stage in (1, 2, 3):
    for dtype in (torch.bfloat16, torch.float32):
        expected = train(torch.optim.AdamW, stage, dtype)
        for make in (AdamW, offload):
            difference = (train(make, stage, dtype) - expected).abs().max().item()
            assert difference < 1e-3 * expected.abs().max(), (make, stage, dtype, difference)
print("done", flush=True)
os._exit(0)  # what DeepSpeed leaves behind is not ours to end
"""


def test_zero_offload_trains_with_our_optimizers_as_with_torch_optim(tmp_path: Path) -> None:
    single = {"DS_ACCELERATOR": "cpu", "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "store")],
        env={**os.environ, **single},
        capture_output=True,
        text=True,
        timeout=800,
    )
    assert run.stdout.splitlines()[-1:] == ["done"], run.stderr[-4000:]
