"""Low-precision copies, averages and master copies after a tensor's storage was replaced, before and after a load."""

from __future__ import annotations

import copy

import numpy as np
import pytest

import numba_adam as na

try:
    import torch
except ImportError:
    torch = None

pytestmark = [
    pytest.mark.parity,
    pytest.mark.skipif(torch is None, reason="PyTorch is not installed; the parity environment has it"),
]


def ones(seed):
    return torch.randn(64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("values", ["the same", "new ones"])
def test_copies_and_averages_stay_the_same_arrays_after_a_parameter_moved(values):
    moved, same = (torch.nn.Parameter(ones(1)) for _ in range(2))
    options = {"low_precision_copy": "float16", "ema_decay": 0.5, "lr": 0.1}
    optimizers = [na.Adam([param], **options) for param in (moved, same)]
    held = optimizers[0].low_precision[0], optimizers[0].ema[0]
    for step in range(4):
        if step == 2:
            fresh = moved.data.clone() if values == "the same" else ones(7)
            moved.data = fresh
            same.data.copy_(fresh)
        for optimizer in optimizers:
            optimizer.step([ones(step)])
        expected = moved.detach().numpy().astype(np.float16)
        assert optimizers[0].low_precision[0].tobytes() == expected.tobytes()
    assert optimizers[0].low_precision[0] is held[0]
    assert optimizers[0].ema[0] is held[1]
    assert torch.equal(moved, same)
    assert held[1].tobytes() == optimizers[1].ema[0].tobytes()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_state_dict_shares_the_master_copy_after_memory_was_replaced(dtype):
    param = torch.nn.Parameter(ones(1).to(getattr(torch, dtype)))
    optimizer = na.Adam([param], lr=0.1, master_weights=True, ema_decay=0.5, amsgrad=True)
    optimizer.step([ones(2)])
    taken = optimizer.state_dict()["state"][0]
    param.data = ones(3).to(getattr(torch, dtype))
    optimizer.step([ones(4)])
    now = optimizer.state_dict()["state"][0]
    assert {key: value.tobytes() for key, value in taken.items()} == {k: v.tobytes() for k, v in now.items()}
    assert torch.equal(torch.from_numpy(now["master_param"]).to(param.dtype), param.detach())
    assert (param.detach().float() - ones(3)).abs().max() < 0.2  # it went on from the new values


def test_a_state_dict_keeps_its_state_after_axes_were_transposed():
    param = torch.nn.Parameter(ones(1).reshape(4, 16))
    optimizer = na.Adam([param], lr=0.1, ema_decay=0.5, amsgrad=True)
    optimizer.step([ones(2).reshape(4, 16)])
    taken = optimizer.state_dict()["state"][0]
    before = {key: value.tobytes() for key, value in taken.items()}
    param.data = param.data.t().contiguous().t()
    optimizer.step([ones(3).reshape(4, 16)])
    assert {key: value.tobytes() for key, value in taken.items()} == before
    assert (taken["step"], optimizer.state[0]["step"]) == (1, 2)


@pytest.mark.parametrize("order", ["load, then move", "move, then load"])
def test_loading_and_moving_work_in_either_order(order):
    """With values beyond the parameter's precision: those of the master copy are not lost."""
    source = torch.nn.Parameter(ones(1).bfloat16())
    first = na.Adam([source], lr=0.01, master_weights=True)
    for k in range(3):
        first.step([ones(k)])
    saved = copy.deepcopy(first.state_dict())
    param = torch.nn.Parameter(ones(5).bfloat16())
    second = na.Adam([param], lr=0.01, master_weights=True)
    second.step([ones(6)])
    if order == "load, then move":
        param.data.copy_(source.data)
        second.load_state_dict(saved)
        param.data = param.data.clone()
    else:
        param.data = source.data.clone()
        second.load_state_dict(saved)
    for optimizer in (first, second):
        optimizer.step([ones(9)])
    assert torch.equal(param, source)
    assert second.state[0]["master_param"].tobytes() == first.state[0]["master_param"].tobytes()
