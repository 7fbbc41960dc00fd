"""Decisions on the GPU: step counts, scaling and clipping of gradients, and skipped steps."""

import math

import numpy as np
import pytest
from lending import Interface, on_gpu

import numba_adam as na
from numba_adam import Hyperparameters
from numba_adam.cuda.table import CudaTable
from numba_adam.optim.scaling import scaling
from numba_adam.settings.scaling import Scaling

SIZES = (9000, 3, 0, 41)


def draw(seed, dtype="float32"):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=size).astype(dtype) for size in SIZES]


def table_of(params, **options):
    moments = [[np.zeros_like(param) for param in params] for _ in range(2)]
    made = CudaTable(
        on_gpu(*params), *(on_gpu(*column) for column in moments), hyperparameters=[Hyperparameters(lr=0.01)], **options
    )
    return made, moments


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_clipped_step_has_the_cpus_bits_and_norm(dtype):
    params, grads = draw(1, dtype), draw(2, dtype)
    copies = [param.copy() for param in params]
    table, _ = table_of(params)
    cpu = na.Adam(copies, lr=0.01)
    for options in ({"max_grad_norm": 2.0}, {"loss_scale": 8.0, "max_grad_norm": 1e6}, {"loss_scale": 2.0}):
        given = (options.get(key) for key in ("loss_scale", "max_grad_norm", "_"))
        assert table.step(on_gpu(*grads), scaling(1.0, *given)) == na.StepResult(
            applied=True, grad_norm=cpu.step(grads, **options).grad_norm
        )
    assert [param.tolist() for param in params] == [copy.tolist() for copy in copies]


def test_the_sum_of_squares_has_the_cpus_bits():
    params, grads = draw(1), draw(2)
    table, _ = table_of(params)
    plan = table.plan(on_gpu(grads[0], None, grads[2], grads[3]))
    result = na.Adam([param.copy() for param in params]).step([grads[0], None, *grads[2:]], max_grad_norm=1e9)
    assert math.sqrt(table.sum_of_squares(plan)) == result.grad_norm


def test_clipping_by_value_has_the_cpus_bits():
    params, grads = draw(1), draw(2)
    copies = [param.copy() for param in params]
    table, _ = table_of(params)
    table.step(on_gpu(*grads), scaling(0.5, None, None, 0.3))
    na.Adam(copies, lr=0.01).step(grads, grad_scale=0.5, clip_value=0.3)
    assert [param.tolist() for param in params] == [copy.tolist() for copy in copies]


@pytest.mark.parametrize("strange", [np.nan, np.inf, -np.inf])
def test_a_non_finite_gradient_skips_the_step(strange):
    params, grads = draw(1), draw(2)
    table, moments = table_of(params)
    table.step(on_gpu(*grads))
    before = [array.tolist() for array in (*params, *moments[0], *moments[1])]
    bad = [grad.copy() for grad in grads]
    bad[3][7] = strange
    result = table.step(on_gpu(*bad), scaling(1.0, 4.0, None, None))
    assert not result.applied
    assert not math.isfinite(result.grad_norm)
    assert [array.tolist() for array in (*params, *moments[0], *moments[1])] == before
    assert table.steps.tolist() == [1, 1, 1, 1]
    assert table.step(on_gpu(*grads), scaling(1.0, 4.0, None, None)).applied
    assert table.steps.tolist() == [2, 2, 2, 2]


def test_the_loss_scale_can_be_on_the_gpu():
    """As torch's GradScaler passes it to a fused optimizer."""
    params, grads = draw(1), draw(2)
    copies = [param.copy() for param in params]
    table, _ = table_of(params)
    cpu = na.Adam(copies, lr=0.01)
    scale = np.array([8.0], "f4")
    for _ in range(2):
        scale *= 2
        assert table.step(on_gpu(*grads), Scaling(loss_scale=Interface(scale))).applied
        cpu.step(grads, grad_scale=1 / scale[0].item())
    assert [param.tolist() for param in params] == [copy.tolist() for copy in copies]
    assert table.steps.tolist() == [2, 2, 2, 2]


def test_a_replayed_step_is_counted():
    """A captured CUDA graph repeats only the launch, without the host."""
    params, grads = draw(1), draw(2)
    copies = [param.copy() for param in params]
    table, _ = table_of(params)
    cpu = na.Adam(copies, lr=0.01)
    plan = table.plan(on_gpu(*grads))
    for _ in range(4):
        table.launch(plan)
        cpu.step(grads)
    assert [param.tolist() for param in params] == [copy.tolist() for copy in copies]
    assert table.steps.tolist() == [4, 4, 4, 4]


def test_step_counts_can_be_given_and_set():
    params, grads = draw(1), draw(2)
    copies = [param.copy() for param in params]
    table, _ = table_of(params, steps=[9, 9, 9, 9])
    assert table.steps.tolist() == [9, 9, 9, 9]
    table.steps = [41, 41, 41, 41]
    table.step(on_gpu(*grads))
    for copy, grad in zip(copies, grads, strict=True):
        na.adam_update(copy, grad, np.zeros_like(copy), np.zeros_like(copy), step=42, lr=0.01)
    assert [param.tolist() for param in params] == [copy.tolist() for copy in copies]


def test_a_skipped_step_keeps_the_gradients():
    params, grads = draw(1), draw(2)
    grads[1][0] = np.nan
    table, _ = table_of(params)
    before = [grad.copy() for grad in grads]
    table.step(on_gpu(*grads), scaling(1.0, 4.0, None, None, zero_grad=True))
    assert all(np.array_equal(grad, old, equal_nan=True) for grad, old in zip(grads, before, strict=True))
    grads[1][0] = 1
    result = table.step(on_gpu(*grads), scaling(1.0, 4.0, None, None, zero_grad=True))
    assert not any(grad.any() for grad in grads)
    assert result.applied
