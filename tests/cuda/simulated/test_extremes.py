"""Small grids, unaligned arrays and extreme numbers: the GPU's bits equal the CPU's."""

import math

import ml_dtypes
import numpy as np
import pytest
from lending import Interface, on_gpu

import numba_adam as na
from numba_adam import Hyperparameters
from numba_adam.cuda import batches
from numba_adam.cuda.table import CudaTable
from numba_adam.settings.step_arrays import Extras


def both(params, grads, steps=1, call=None, **options):
    """Train on the simulator's GPU and on the CPU; return both optimizers and the results."""
    ours = na.Adam([Interface(param) for param in params], **options)
    copies = [param.copy() for param in params]
    theirs = na.Adam(copies, **options)
    for _ in range(steps):
        made = ours.step([Interface(grad) for grad in grads], **(call or {}))
        expected = theirs.step(grads, **(call or {}))
        assert (made.applied, repr(made.grad_norm)) == (expected.applied, repr(expected.grad_norm))
    assert [param.tobytes() for param in params] == [copy.tobytes() for copy in copies]
    for own, other in zip(ours.state.values(), theirs.state.values(), strict=True):
        for key in ("exp_avg", "exp_avg_sq"):
            assert np.asarray(own[key]).tobytes() == np.asarray(other[key]).tobytes()
    return made, theirs


def draw(size, seed, dtype=np.float32):
    return np.random.default_rng(seed).normal(size=size).astype(dtype)


@pytest.mark.parametrize("limit", [1, 2])
@pytest.mark.parametrize("state", ["float32", "8bit"])
def test_more_arrays_than_thread_blocks_have_the_cpus_bits(monkeypatch, limit, state):
    monkeypatch.setattr(batches, "_BLOCKS_AT_MOST", limit)
    sizes = (40, 3, 129, 0, 17)
    params, grads = [draw(size, 1) for size in sizes], [draw(size, 2) for size in sizes]
    _, cpu = both(params, grads, 2, state_dtype=state, lr=0.1)
    assert len(cpu.state) == 5


@pytest.mark.parametrize("limit", [1, 2, 3])
@pytest.mark.parametrize("state", ["float32", "8bit"])
def test_an_array_larger_than_the_largest_grid_has_the_cpus_bits(monkeypatch, limit, state):
    monkeypatch.setattr(batches, "CHUNK", 64)  # elements of each thread block; there are too few blocks
    monkeypatch.setattr(batches, "_BLOCKS_AT_MOST", limit)
    param, grad = draw(1_003, 1), draw(1_003, 2)
    _, cpu = both([param], [grad], 2, state_dtype=state, lr=0.1)
    assert cpu.state[0]["step"] == 2


@pytest.mark.parametrize("skip", [1, 3, 5, 7])
def test_an_unaligned_copy_has_the_cpus_bits(skip):
    param, room = draw(75, 1), np.full(96, 7, np.uint16)
    begin = -room.ctypes.data % 64 // 2 + skip
    copy = room[begin : begin + 75] if begin + 75 <= 96 else room[skip : skip + 75]
    table = CudaTable(
        on_gpu(param),
        on_gpu(np.zeros(75, "f4")),
        on_gpu(np.zeros(75, "f4")),
        hyperparameters=[Hyperparameters()],
        extras=Extras(copies=on_gpu(copy)),
    )
    table.step(on_gpu(draw(75, 2)))
    assert copy.tolist() == param.astype(ml_dtypes.bfloat16).view(np.uint16).tolist()
    assert np.count_nonzero(room == 7) >= 96 - 75


@pytest.mark.parametrize("magnitude", [1e160, 1e300, 1e-170, 5e-324, 1.0])
def test_norms_over_float64s_whole_range_have_the_cpus_bits(magnitude):
    params = [draw(size, 1, "f8") for size in (40, 3, 17)]
    grads = [np.random.default_rng(3).uniform(0.5, 1, size) * magnitude for size in (40, 3, 17)]
    made, _ = both(params, grads, call={"max_grad_norm": 2.0})
    assert made.applied
    assert made.grad_norm == pytest.approx(magnitude * math.sqrt(sum((g / magnitude @ (g / magnitude)) for g in grads)))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_non_finite_value_among_huge_gradients_skips_the_step(bad):
    grad = np.full(20, 1e160)
    grad[13] = bad
    made, cpu = both([draw(20, 1, "f8")], [grad], call={"max_grad_norm": 2.0})
    assert not made.applied
    assert cpu.state == {}


@pytest.mark.parametrize(("dtype", "large"), [(np.float32, 1.9e19), (np.float64, 1.4e154)])
@pytest.mark.parametrize("call", [{"loss_scale": 1.0}, {"max_grad_norm": math.inf}], ids=str)
def test_a_gradient_with_an_overflowing_square_skips_the_step(dtype, large, call):
    for size in (1.0, 0.9):
        grad = np.ones(20, dtype)
        grad[7] = -large * size
        made, _ = both([draw(20, 1, dtype)], [grad], call=call)
        assert made.applied == (size < 1)
        clipped, _ = both([draw(20, 1, dtype)], [grad], call={**call, "clip_value": 3.0})
        assert clipped.applied


def test_parts_on_the_cpu_and_a_gpu_share_a_norm_that_overflows():
    grads = [np.full(5, 3e38, np.float32), np.full(4, 1e160), np.full(9, 1e160)]
    params = [np.ones(5, np.float32), np.ones(4), np.ones(9)]
    ours = na.Adam([params[0], params[1], Interface(params[2])])
    result = ours.step([grads[0], grads[1], Interface(grads[2])], max_grad_norm=1.0)
    assert result.applied
    assert result.grad_norm == pytest.approx(math.sqrt(13) * 1e160)
    assert ours.state[2]["exp_avg"] == pytest.approx(0.1 / math.sqrt(13))
    grads[2][3] = np.inf
    assert not ours.step([grads[0], grads[1], Interface(grads[2])], max_grad_norm=1.0).applied


@pytest.mark.parametrize("state", ["float32", "bfloat16", "8bit"])
@pytest.mark.parametrize("eps", [0.0, 1e-25, 1e-19])
def test_tiny_gradients_with_a_tiny_eps_have_the_cpus_bits(eps, state):
    grad = np.repeat([0.0, 1e-30, 1e-21, 1e-19, 3e-18, 1e-16, 1e-12], 20).astype(np.float32)
    param = np.zeros(grad.size, np.float32)
    both([param], [grad], 3, state_dtype=state, eps=eps, lr=1.0)
    assert np.isfinite(param).all()
    assert (np.abs(param) <= 3.1).all()


@pytest.mark.parametrize("kinds", [("f8", "u2"), ("u2", "f8", "u2")], ids=str)
def test_random_numbers_depend_on_the_parameters_index_in_the_optimizer(kinds):
    params = [draw(40, k).astype(ml_dtypes.bfloat16).view("u2") if k_ == "u2" else draw(40, k, "f8")
              for k, k_ in enumerate(kinds)]  # fmt: skip
    grads = [draw(40, 9).astype(ml_dtypes.bfloat16).view("u2") if k_ == "u2" else draw(40, 9, "f8") for k_ in kinds]
    made, _ = both(params, grads, 2, rounding="stochastic", seed=4, lr=0.01)
    assert made.applied
