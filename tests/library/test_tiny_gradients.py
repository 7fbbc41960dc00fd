"""Gradients with squares near or below the smallest number: no update is larger than in exact arithmetic.

Magnitudes are given in units of the root of the smallest normal number: 1.1e-19 in float32, 1.5e-154 in float64. The
oracle carries its own state, in long double. Parameters are set to zero before each step, so that what a step leaves is
the update itself.
"""

from __future__ import annotations

import itertools
import math

import ml_dtypes
import numpy as np
import pytest
from reference import adam_step

import numba_adam as na

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
MAGNITUDES = [0.0, 1e-6, 1e-3, 0.03, 0.3, 1.0, 3.0, 20.0, 33.0, 300.0, 1e4, 1e6, 1e9]
FELT = 64.0  # from here on the first step's second moment is above what the floors ask for
EPS = [0.0, 1e-12, 1e-6, 1e-3, 1.0, 1e3, 1e11]  # in the same units
SIGNS = {"constant": [1.0], "random": [-1.0, 1.0]}
KINDS = {  # dtype of the parameter, options, how much larger an update may be because its state is rounded
    "float32": (np.float32, {}, 1e-5),
    "float64": (np.float64, {}, 1e-12),
    "float32 with float64": (np.float32, {"state_dtype": "float64"}, 1e-6),
    "float64 with float32": (np.float64, {"state_dtype": "float32"}, 1e-5),
    "float32 with bfloat16": (np.float32, {"state_dtype": "bfloat16"}, 0.03),
    "bfloat16": (BFLOAT16, {"state_dtype": "bfloat16"}, 0.03),
    "master weights": (BFLOAT16, {"master_weights": True}, 0.01),
    "8 bits": (np.float32, {"state_dtype": "8bit"}, 0.2),
}
BLOCK = 128  # each magnitude fills a block of the 8-bit state


def unit_of(dtype, options):
    """Return the root of the smallest normal number in the moments' range."""
    state = options.get("state_dtype", "float64" if dtype == np.float64 else "float32")
    return 2.0**-511 if state == "float64" else 2.0**-63


def set_to_zero(optimizer, param):
    param[...] = 0
    for state in optimizer.state.values():
        if "master_param" in state:
            state["master_param"][...] = 0


def updates(dtype, options, grads, **hyperparameters):
    """Return the update of every step, by the optimizer and by the oracle in long double."""
    param = np.zeros(grads[0].size, dtype)
    amsgrad = hyperparameters.get("amsgrad", False)
    optimizer = na.Adam([param], **hyperparameters, **options)
    said = {key: value for key, value in hyperparameters.items() if key != "amsgrad"}
    exp_avg = exp_avg_sq = largest = np.zeros(grads[0].size, np.longdouble)
    for step, grad in enumerate(grads, 1):
        given = grad.astype(dtype)
        set_to_zero(optimizer, param)
        optimizer.step([given])
        with np.errstate(invalid="ignore", divide="ignore"):
            after = adam_step(
                0.0,
                given.astype(np.longdouble),
                exp_avg,
                exp_avg_sq,
                step,
                **said,
                max_exp_avg_sq=largest if amsgrad else 0.0,
                real=np.longdouble,
            )
        exp_avg, exp_avg_sq, largest = after.exp_avg, after.exp_avg_sq, after.max_exp_avg_sq
        expected = np.where(exp_avg == 0, 0, after.update)
        yield -param.astype(np.longdouble), expected


def assert_bounded(made, expected, slack):
    assert np.isfinite(made).all()
    # What a first moment below its floor takes away can be seen where others cancel: 1e-9 of the learning rate, 1.
    too_large = np.abs(made) > np.abs(expected) * (1 + slack) + 1e-8
    assert not too_large.any(), list(zip(made[too_large], expected[too_large], strict=True))


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("signs", SIGNS)
@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize("eps_mode", ["hat", "algorithm1"])
def test_for_any_eps_no_update_is_larger_than_in_exact_arithmetic(name, signs, amsgrad, eps_mode):
    dtype, options, slack = KINDS[name]
    unit = unit_of(dtype, options)
    magnitudes = np.repeat(np.array(MAGNITUDES) * unit, BLOCK).astype(np.longdouble)
    rng = np.random.default_rng(5)
    for eps in [1e-8, *(each * unit for each in EPS)]:
        grads = [magnitudes * rng.choice(SIGNS[signs], magnitudes.size) for _ in range(5)]
        hyperparameters = {"lr": 1.0, "eps": eps, "eps_mode": eps_mode, "amsgrad": amsgrad}
        for made, expected in updates(dtype, options, grads, **hyperparameters):
            if signs == "constant":
                assert_bounded(made, expected, slack)
            else:  # what is rounded away of a state in 8 or 16 bits is seen where the first moment cancels
                assert_bounded(made, np.maximum(np.abs(expected), slack), slack)


@pytest.mark.parametrize("eps", [0.0, 1e-12, 1e-3, 1.0])
@pytest.mark.parametrize("name", ["float32", "float64", "float32 with float64", "float64 with float32"])
def test_gradients_with_normal_squares_get_the_exact_update_for_any_eps(name, eps):
    dtype, options, slack = KINDS[name]
    unit = unit_of(dtype, options)
    magnitudes = np.array([each * unit for each in MAGNITUDES if each >= FELT], np.longdouble)
    for made, expected in updates(dtype, options, [magnitudes] * 30, lr=1.0, eps=eps * unit):
        np.testing.assert_allclose(made.astype(float), expected.astype(float), rtol=max(slack, 1e-6))


@pytest.mark.parametrize("magnitude", [0.5, 3.0, 20.0, 31.0])
def test_second_moments_of_tiny_gradients_accumulate_over_thousands_of_steps(magnitude):
    """Each increment is below the smallest normal number, but their sum is far above it."""
    grads = [np.full(4, magnitude * 2.0**-63, np.longdouble)] * 2_500
    *_, (made, expected) = updates(np.float32, {}, grads, lr=1.0, eps=0.0)
    assert_bounded(made, expected, 1e-3)
    if magnitude >= 3:
        assert made == pytest.approx(expected.astype(float), rel=3e-2)  # what is held at first decays as beta2 does


@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.0, 0.999), (0.99, 0.9), (0.5, 0.0)], ids=str)
@pytest.mark.parametrize("period", [2, 7, 60, 300])
def test_second_moments_of_rare_gradients_are_kept_between_them(period, betas):
    """A moment that decays below its floor between two gradients is lost; such losses must not add up."""
    sizes = np.array([0.9, 1.0001, 1.2, 2.0, 3.0, 31.5, 31.7, 34.0], np.longdouble) * 2.0**-63
    sizes = np.append(sizes, sizes / 31.6)
    grads = [sizes if step % period == 0 else 0 * sizes for step in range(700)]
    for made, expected in updates(np.float32, {}, grads, lr=1.0, eps=0.0, betas=betas):
        assert_bounded(made, expected, 0.12)


def test_the_numbers_of_the_bug_report_give_the_exact_update():
    for eps in (1e-25, 0.0):
        param = np.zeros(1, np.float32)
        na.Adam([param], lr=1.0, eps=eps).step([np.full(1, 1e-19, np.float32)])
        assert -1 < param[0] < 0


@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize("name", KINDS)
def test_zero_gradients_without_eps_make_no_step(name, amsgrad):
    dtype, options, _ = KINDS[name]
    params = [np.ones(200, dtype), np.ones(129, dtype)]
    optimizer = na.Adam(params, lr=1.0, eps=0.0, amsgrad=amsgrad, **options)
    for _ in range(3):
        optimizer.step([np.zeros_like(param) for param in params])
    for param, state in zip(params, optimizer.state.values(), strict=True):
        assert (param == 1).all()
        assert not state["exp_avg"].any()
        assert not state["exp_avg_sq"].any()


def test_a_loaded_first_moment_without_a_second_one_makes_no_huge_step(dtype):
    param = np.zeros(2, dtype)
    exp_avg, exp_avg_sq = np.full(2, 1e-3, dtype), np.zeros(2, dtype)
    na.adam_update(param, np.zeros(2, dtype), exp_avg, exp_avg_sq, 10, lr=1e-3, eps=1e-8)
    assert np.isfinite(param).all()
    assert (exp_avg_sq > 0).all()


@pytest.mark.parametrize("eps_mode", ["hat", "algorithm1"])
@pytest.mark.parametrize(("eps", "amsgrad"), list(itertools.product([0.0, 1e-30, 1e-19], [False, True])))
def test_exact_rows_with_tiny_gradients_match_the_dense_update_bit_for_bit(eps, amsgrad, eps_mode, dtype):
    unit = math.sqrt(np.finfo(dtype).smallest_normal)
    rng = np.random.default_rng(8)
    shape = (len(MAGNITUDES), 5)
    h = {"lr": 0.1, "eps": eps, "eps_mode": eps_mode, "betas": (0.6, 0.9)}
    dense, table = (np.ones(shape, dtype) for _ in range(2))
    own, theirs = (np.zeros((3, *shape), dtype) for _ in range(2))
    last_step, row_grads = np.zeros(shape[0], np.int64), (np.array(MAGNITUDES) * unit).astype(dtype)
    for step in range(1, 41):
        rows = np.flatnonzero(rng.random(shape[0]) < 0.2)
        grad = np.zeros(shape, dtype)
        grad[rows] = row_grads[rows, None]
        largest = [{"max_exp_avg_sq": moments[2]} if amsgrad else {} for moments in (own, theirs)]
        na.adam_update(dense, grad, own[0], own[1], step, **h, **largest[0])
        na.adam_update_rows(
            table, rows, grad[rows], *theirs[:2], step, mode="exact", last_step=last_step, **h, **largest[1]
        )
    largest = {"max_exp_avg_sq": theirs[2]} if amsgrad else {}
    na.adam_catch_up_rows(table, None, *theirs[:2], 40, last_step=last_step, **h, **largest)
    assert np.isfinite(dense).all()
    assert table.tobytes() == dense.tobytes()
    assert theirs.tobytes() == own.tobytes()
