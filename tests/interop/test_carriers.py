"""A state dict that torch.save writes and torch.load reads, with weights_only=True."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import numba_adam as na
from numba_adam.errors import StateDictError
from numba_adam.interop import to_tensors
from numba_adam.numerics.formats import BFLOAT16, dtype_of

try:
    import torch
except ImportError:
    torch = None

pytestmark = [
    pytest.mark.parity,
    pytest.mark.skipif(torch is None, reason="PyTorch is not installed; the parity environment has it"),
]

KINDS = {
    "float32": {},
    "hat, AMSGrad, notes": {"amsgrad": True},
    "bfloat16": {"state_dtype": "bfloat16"},
    "8 bits": {"state_dtype": "8bit", "amsgrad": True},
    "average": {"ema_decay": 0.5},
}


def bits(optimizer):
    return [(key, np.asarray(v).tobytes()) for entry in optimizer.state.values() for key, v in entry.items()]


@pytest.mark.parametrize("kind", KINDS)
def test_a_state_dict_loads_with_weights_only(kind):
    w = np.ones(300, np.float32)
    optimizer = na.Adam({"w": w}, **KINDS[kind])
    optimizer.param_groups[0].update(name="body", initial_lr=0.1)
    for k in range(3):
        optimizer.step({"w": np.linspace(-1, k, 300, dtype=np.float32)})
    file = io.BytesIO()
    torch.save(to_tensors(optimizer.state_dict()), file)
    optimizer.step({"w": np.zeros(300, np.float32)})  # what was saved is a copy
    file.seek(0)
    read = torch.load(file, weights_only=True)
    assert int(read["state"][0]["step"]) == 3
    twin, other = na.Adam({"w": w.copy()}, **KINDS[kind]), na.Adam({"w": w.copy()}, **KINDS[kind])
    twin.load_state_dict(read)
    assert twin.param_groups[0]["name"] == "body"
    assert twin.param_groups[0]["eps_mode"] == "hat"
    other.load_state_dict(optimizer.state_dict())
    assert (twin.state["w"]["step"], other.state["w"]["step"]) == (3, 4)
    twin.step({"w": np.zeros(300, np.float32)})
    names = {key for key, _ in bits(twin)}
    assert [pair for pair in bits(twin) if pair[0] != "ema"] == [pair for pair in bits(other) if pair[0] != "ema"]
    assert ("ema" in names) is ("ema_decay" in KINDS[kind])


def test_the_documents_program_runs(tmp_path):
    text = (Path(__file__).resolve().parents[2] / "docs" / "saving.md").read_text()
    program, *_ = re.findall(r"\n```py\n(.*?)```", text, re.DOTALL)
    run = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout) == (0, "1 0.5\n"), run.stderr


def test_bfloat16_and_codes_keep_their_types():
    half = na.Adam([np.ones(3, dtype_of(BFLOAT16))], state_dtype="bfloat16")
    codes = na.Adam([np.ones(3, np.float32)], state_dtype="8bit")
    for optimizer in (half, codes):
        optimizer.step([np.ones(3, np.float32)])
    dtypes = {key: value.dtype for key, value in to_tensors(half.state_dict())["state"][0].items()}
    assert dtypes == {"step": torch.int64, "exp_avg": torch.bfloat16, "exp_avg_sq": torch.bfloat16}
    entry = to_tensors(codes.state_dict())["state"][0]
    assert (entry["exp_avg"].dtype, entry["exp_avg_scale"].dtype) == (torch.uint8, torch.float32)


def test_unreadable_codes_are_refused():
    optimizer = na.Adam([np.ones(3, np.float32)], state_dtype="8bit")
    optimizer.step([np.ones(3, np.float32)])
    given = to_tensors(optimizer.state_dict())
    given["state"][0]["exp_avg"] = given["state"][0]["exp_avg"].to("meta")
    with pytest.raises(StateDictError, match=r"state\[0\]\['exp_avg'\]"):
        optimizer.load_state_dict(given)
