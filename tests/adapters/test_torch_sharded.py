"""Two processes train parameters that PyTorch shards (FSDP2, tensor parallel layers); sharded.py has the cases."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.parity
CASES = (
    "fsdp2",
    "fsdp2_in_bfloat16",
    "two_dimensions",
    "tensor_parallel_layers",
    "partial",
    "clipping",
    "scaling",
    "saving",
    "other_shards",
    "fsdp1",
    "zero_redundancy",
)
PROGRAM = Path(__file__).with_name("sharded.py")


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    store = tmp_path_factory.mktemp("sharded") / "store"
    processes = [
        subprocess.Popen(
            [sys.executable, str(PROGRAM), str(rank), str(store)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        return [process.communicate(timeout=800) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()


@pytest.mark.parametrize("case", CASES)
def test_sharded_parameters_train_as_with_torch_optim(case, outputs):
    for out, err in outputs:
        assert case in out.split(), err
        assert set(out.split()) <= set(CASES)
