"""Gradients with overflowing squares: the finite check detects them, and the norm is still correct."""

from __future__ import annotations

import math
from fractions import Fraction

import ml_dtypes
import numba
import numpy as np
import pytest

import numba_adam as na

HELD = {"float32": 2.0**64, "float64": 2.0**512}  # below it a square can be held


def root(total):
    """Return the square root of a Fraction as a float, infinity beyond."""
    shift = 2 * max(0, 120 - (total.numerator.bit_length() - total.denominator.bit_length()) // 2)
    digits = math.isqrt(total.numerator * 2**shift // total.denominator)
    try:
        return float(Fraction(digits, 2 ** (shift // 2)))
    except OverflowError:
        return math.inf


def exact_norm(grads):
    return root(sum((Fraction(float(x)) ** 2 for grad in grads for x in grad.ravel()), Fraction(0)))


def stepped(grads, **options):
    params = [np.ones_like(grad) for grad in grads]
    optimizer = na.Adam(params, lr=0.01)
    return params, optimizer, optimizer.step(grads, **options)


# --- norms whose squares float64 cannot hold ---


@pytest.mark.parametrize("size", [1, 15, 16, 17, 31, 8192, 8193, 20_000])
@pytest.mark.parametrize("magnitude", [1e-308, 5e-324, 1e-170, 1e-155, 1e-140, 1e150, 1e155, 1e160, 1e300])
def test_the_norm_of_float64_gradients_has_all_its_digits(size, magnitude):
    rng = np.random.default_rng(size)
    grads = [rng.uniform(0.1, 1, size) * magnitude, rng.uniform(0.1, 1, 40) * magnitude]
    _, _, result = stepped(grads, max_grad_norm=1.0)
    assert result.applied
    assert result.grad_norm == pytest.approx(exact_norm(grads), rel=1e-14, abs=0)


@pytest.mark.parametrize("magnitude", [1e155, 1e160, 1e300, 1.7e308])
def test_huge_finite_float64_gradients_are_clipped_and_not_skipped(magnitude):
    grads = [np.full(3, magnitude), np.full(40_000, -magnitude)]
    params, optimizer, result = stepped(grads, max_grad_norm=2.0)
    assert result.applied
    share = 2.0 / math.sqrt(40_003)
    assert optimizer.state[0]["exp_avg"] == pytest.approx(0.1 * share, rel=1e-5)
    assert optimizer.state[1]["exp_avg"] == pytest.approx(-0.1 * share, rel=1e-5)
    assert np.isfinite(params[1]).all()


def test_a_norm_beyond_float64_is_infinite_and_the_step_is_applied():
    _, optimizer, result = stepped([np.full(400, 1.7e308)], max_grad_norm=1.0)
    assert result == na.StepResult(applied=True, grad_norm=math.inf)
    assert optimizer.state[0]["exp_avg"] == pytest.approx(0.1 / 20)


def test_tiny_float64_gradients_are_clipped_to_a_tinier_norm():
    """PyTorch adds 1e-6 to the norm, which dominates here."""
    _, optimizer, _ = stepped([np.full(4, 1e-170)], max_grad_norm=1e-180)
    assert optimizer.state[0]["exp_avg"] == pytest.approx(0.1 * 1e-170 * 1e-180 / (2e-170 + 1e-6), rel=1e-12)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("others", [1.0, 1e160, 1e-170])
def test_non_finite_gradients_among_huge_and_tiny_ones_skip_the_step(bad, others):
    grad = np.full(9_000, others)
    grad[8_500] = bad
    params, optimizer, result = stepped([grad], max_grad_norm=1.0)
    assert not result.applied
    assert repr(result.grad_norm) == repr(abs(bad))
    assert optimizer.state == {}
    assert (params[0] == 1).all()


def test_the_norm_of_huge_gradients_does_not_depend_on_threads_or_array_sizes():
    rng = np.random.default_rng(6)
    grads = [rng.normal(size=size) * 1e160 for size in (5, 8192, 8193, 0, 100_000, 31)]
    before, norms = numba.get_num_threads(), set()
    try:
        for threads in range(1, before + 1):
            numba.set_num_threads(threads)
            norms.add(stepped(grads, max_grad_norm=1.0)[2].grad_norm)
    finally:
        numba.set_num_threads(before)
    scaled = stepped([grad * 2.0**-532 for grad in grads], max_grad_norm=1.0)[2].grad_norm
    assert norms == {scaled * 2.0**532}


def test_parts_of_different_dtypes_share_a_norm_that_overflows():
    grads = [np.full(5, 3e38, np.float32), np.full(4, 1e160), np.full(3, 2.0, ml_dtypes.bfloat16)]
    params, optimizer, result = stepped(grads, max_grad_norm=1.0)
    assert result.applied
    assert result.grad_norm == pytest.approx(2e160)
    assert optimizer.state[1]["exp_avg"] == pytest.approx(0.05)
    assert not optimizer.state[0]["exp_avg"].any()  # 3e38 / 2e160 is nothing in float32
    assert all(np.isfinite(param.astype(float)).all() for param in params)


def test_parts_of_different_dtypes_share_a_norm_that_underflows():
    grads = [np.zeros(5, np.float32), np.full(4, 1e-170)]
    assert stepped(grads, max_grad_norm=1.0)[2].grad_norm == pytest.approx(2e-170)
    grads[0][1] = 1e-30
    assert stepped(grads, max_grad_norm=1.0)[2].grad_norm == pytest.approx(float(np.float32(1e-30)))


# --- the end of a block, and PyTorch's 1e-6 ---


@pytest.mark.parametrize("dtype", [np.float32, np.float64, ml_dtypes.bfloat16])
@pytest.mark.parametrize("size", [*range(1, 36), 47, 48, 49, 8191, 8207, 8192 + 31])
def test_the_norm_includes_every_element_of_a_blocks_tail(dtype, size):
    """A block is summed in 16 lanes, and the last elements do not fill them. Each element has a different square."""
    grad = np.zeros(size, dtype)
    for place in {0, size // 2, *range(max(0, size - 33), size)}:
        grad[:] = 0
        grad[place] = 2.0 ** (place % 5)
        assert stepped([grad], max_grad_norm=1e9)[2].grad_norm == 2.0 ** (place % 5)
    grad[:] = np.arange(1, size + 1) % 7
    assert stepped([grad], max_grad_norm=1e9)[2].grad_norm == pytest.approx(exact_norm([grad.astype(float)]), rel=1e-15)


@pytest.mark.parametrize(("norm", "max_norm"), [(1e-6, 5e-7), (3e-6, 2e-6), (1.0, 0.5), (1e-7, 1e-6), (2.0, 2.0)])
def test_the_clip_factor_has_pytorchs_1e_6_in_its_denominator(norm, max_norm):
    _, optimizer, result = stepped([np.array([0.6 * norm, 0.8 * norm])], max_grad_norm=max_norm)
    factor = min(1.0, max_norm / (norm + 1e-6))
    assert result.grad_norm == pytest.approx(norm, rel=1e-14)
    assert optimizer.state[0]["exp_avg"] == pytest.approx(0.1 * factor * norm * np.array([0.6, 0.8]), rel=1e-14)


# --- squares that the second moment cannot hold ---

KINDS = {  # dtype of the parameter, options, what its second moments can hold
    "float32": (np.float32, {}, "float32"),
    "float64": (np.float64, {}, "float64"),
    "float64 with float32": (np.float64, {"state_dtype": "float32"}, "float32"),
    "bfloat16": (ml_dtypes.bfloat16, {"state_dtype": "bfloat16"}, "float32"),
    "master weights": (ml_dtypes.bfloat16, {"master_weights": True}, "float32"),
    "8 bits": (np.float32, {"state_dtype": "8bit"}, "float32"),
}


@pytest.mark.parametrize(
    "options", [{"loss_scale": 1.0}, {"max_grad_norm": math.inf}, {"max_grad_norm": 1e300}], ids=str
)
@pytest.mark.parametrize("name", KINDS)
def test_a_finite_check_skips_a_step_with_an_overflowing_square(name, options):
    dtype, state, held = KINDS[name]
    params = [np.ones(3, dtype), np.ones(9_000, dtype)]
    optimizer = na.Adam(params, **state)
    grads = [np.ones(3, dtype), np.ones(9_000, dtype)]
    optimizer.step(grads)
    before = [param.tobytes() for param in params]
    for place, sign in ((0, 1), (8_999, -1)):
        grads[1][place] = sign * HELD[held] * 1.02
        result = optimizer.step(grads, **options)
        assert not result.applied
        assert math.isfinite(result.grad_norm)
        assert [param.tobytes() for param in params] == before
        assert [entry["step"] for entry in optimizer.state.values()] == [1, 1]
        grads[1][place] = sign * HELD[held] * 0.98
    assert optimizer.step(grads, **options).applied
    assert all(np.isfinite(param.astype(float)).all() for param in params)


def test_no_float32_gradient_is_too_large_for_a_float64_state():
    optimizer = na.Adam([np.ones(3, np.float32)], state_dtype="float64")
    assert optimizer.step([np.full(3, 3e38, np.float32)], loss_scale=1.0).applied
    assert np.isfinite(optimizer.state[0]["exp_avg_sq"]).all()


def test_applied_steps_keep_the_second_moment_finite(dtype):
    """The mean of finite squares stays finite over many steps."""
    param = np.ones(3, dtype)
    optimizer = na.Adam([param], betas=(0.9, 0.5))
    grad = np.full(3, HELD[dtype.name] * 0.9999, dtype)
    for _ in range(100):
        assert optimizer.step([grad], loss_scale=1.0).applied
    assert np.isfinite(optimizer.state[0]["exp_avg_sq"]).all()
    optimizer.step([np.ones(3, dtype)])
    assert np.isfinite(param).all()


@pytest.mark.parametrize(
    "options",
    [{"max_grad_norm": 1.0}, {"loss_scale": 1e20}, {"loss_scale": 1.0, "clip_value": 5.0}],
    ids=str,
)
def test_large_gradients_are_accepted_after_scaling_or_clipping(options):
    param = np.ones(3, np.float32)
    optimizer = na.Adam([param], lr=0.5)
    assert optimizer.step([np.array([1e30, -1e30, 0], np.float32)], **options).applied
    assert np.isfinite(optimizer.state[0]["exp_avg_sq"]).all()
    assert param == pytest.approx([0.5, 1.5, 1.0], rel=1e-3)


def test_a_loss_scale_that_makes_a_square_overflow_skips_the_step():
    optimizer = na.Adam([np.ones(3, np.float32)])
    assert not optimizer.step([np.full(3, 1e10, np.float32)], loss_scale=1e-10).applied
    assert optimizer.step([np.full(3, 1e10, np.float32)], loss_scale=1e-9).applied


def test_gradients_are_accepted_when_only_their_norm_exceeds_the_limit():
    grads = [np.full(100_000, 1e18, np.float32)]
    _, optimizer, result = stepped(grads, loss_scale=1.0)
    assert result.applied
    assert result.grad_norm > HELD["float32"]
    assert np.isfinite(optimizer.state[0]["exp_avg_sq"]).all()


def test_an_overflow_in_one_part_skips_the_step_of_all_parts():
    params = [np.ones(3, np.float32), np.ones(3)]
    optimizer = na.Adam(params)
    assert optimizer.step([np.ones(3, np.float32), np.full(3, 1e30)], loss_scale=1.0).applied
    assert not optimizer.step([np.full(3, 1e30, np.float32), np.ones(3)], loss_scale=1.0).applied
    assert [state["step"] for state in optimizer.state.values()] == [1, 1]


def test_without_a_finite_check_an_overflowing_square_stays_in_the_moment():
    param = np.ones(1, np.float32)
    optimizer = na.Adam([param], lr=0.1)
    optimizer.step([np.full(1, 1e30, np.float32)])
    assert np.isinf(optimizer.state[0]["exp_avg_sq"]).all()
    assert param[0] == 1
