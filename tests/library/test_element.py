"""The element functions, the constants and the norm in plain Python, without kernels.

What the kernels make of the same functions is compared with other oracles in the other files; this one notices what a
changed sign, order or limit does (`make mutants`).
"""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from constants_reference import FLOORS, as_real, fold
from step_constants import constants_of

from numba_adam.numerics import constants, element, operations
from numba_adam.numerics import norm as norms
from numba_adam.settings import folding
from numba_adam.settings.hyperparameters import Hyperparameters

STEPS = (1, 2, 3, 7, 64, 1000, 123_457)
SETS = [
    {},
    {"lr": 0.3, "betas": (0.5, 0.75), "eps": 1e-3},
    {"lr": 0.2, "weight_decay": 0.1},
    {"lr": 0.2, "weight_decay": 0.1, "decoupled_weight_decay": True},
    {"eps": 1e-4, "eps_mode": "algorithm1", "maximize": True},
    {"eps": 0.0, "eps_mode": "algorithm1"},
    {"betas": (0.0, 0.0), "eps": 0.0},
]
SCALES = [(1.0, 0.0), (0.7, 0.25), (-2.0, 0.5)]  # grad_scale and clip_value


@pytest.fixture(params=[np.float32, np.float64], ids=["float32", "float64"])
def real(request):
    return request.param


def exact_correction(beta: float, step: int) -> Fraction:
    return 1 - Fraction(beta) ** step


@pytest.mark.parametrize("beta", [0.0, 0.1, 0.5, 0.9, 0.999, 1 - 2.0**-20])
def test_the_bias_correction_matches_exact_arithmetic(beta):
    for step in (*range(1, 40), 100, 1000):
        exact = exact_correction(beta, step)
        error = abs(Fraction(constants.bias_correction(beta, step)) - exact) / exact
        assert error < 4 * 2.0**-53, (beta, step)
    assert constants.bias_correction(beta, 0) == 0.0


@pytest.mark.parametrize("hyperparameters", SETS, ids=str)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_constants_match_the_oracle(hyperparameters, dtype):
    for step, (grad_scale, clip_value) in itertools.product(STEPS, SCALES):
        ours = constants_of(Hyperparameters(**hyperparameters), step, dtype, grad_scale, clip_value)
        theirs = fold(hyperparameters, step, dtype, grad_scale, clip_value)
        assert ours._asdict() == {**theirs._asdict(), "ema_decay": 0.0, "one_minus_ema_decay": 1.0, "zero": 0.0}


def test_the_averages_decay_is_in_the_constants():
    s = folding.settings(Hyperparameters(), "float32", 0.75)
    c = constants.correct(s, 1.0, 1.0, 1.0, 0.0)
    assert (c.ema_decay, c.one_minus_ema_decay) == (0.75, 0.25)


def test_constants_without_floors_differ_only_in_eps_and_floors():
    c = constants.Constants(*map(float, range(1, 16)), 0.0)
    bare = constants.without_floors(c, 77.0)
    left_out = {"exp_avg_floor": 0.0, "exp_avg_sq_floor": 0.0, "least_exp_avg_sq": 0.0, "eps": 77.0}
    assert bare._asdict() == {**c._asdict(), **left_out}


def expected(param, grad, exp_avg, exp_avg_sq, c, zero):
    """Return both moments and the parameter; every operation is rounded, in the documented order."""
    grad = c.grad_scale * grad
    if c.clip_value > 0:
        grad = min(max(grad, -c.clip_value), c.clip_value)
    if c.weight_decay > 0:
        grad = grad + c.weight_decay * param
    exp_avg = c.beta1 * exp_avg + c.one_minus_beta1 * grad
    exp_avg_sq = c.beta2 * exp_avg_sq + c.one_minus_beta2 * grad * grad
    if abs(exp_avg) < c.exp_avg_floor:
        exp_avg = zero
        if exp_avg_sq < c.exp_avg_sq_floor:
            exp_avg_sq = zero
    elif exp_avg_sq < c.least_exp_avg_sq:
        exp_avg_sq = c.least_exp_avg_sq
    return exp_avg, exp_avg_sq


def descended(param, exp_avg, terrain, c):
    if c.decoupled_decay > 0:
        param = param - c.decoupled_decay * param
    return param - c.step_size * exp_avg / (np.sqrt(terrain) + c.eps)


def states(real):
    """Return parameters, gradients and moments: normal values, and values near zero, the clip value and the floors."""
    rng = np.random.default_rng(8)
    floors = FLOORS[np.dtype(real).name]
    around = [sign * scale * floor for floor in floors for scale in (0.5, 1.0, 1.5, 5.0, 100.0) for sign in (1, -1)]
    grads = [0.0, 0.25, -0.25, 0.26, -0.26, 1.0, -3.0, 1e-15, 1e-19, -1e-19, *rng.normal(size=20)]
    firsts = [0.0, *around[:10], *rng.normal(size=4)]
    seconds = [0.0, *map(abs, around[10:]), *rng.random(4)]
    cases = [(rng.normal(), *case) for case in itertools.product(grads, firsts, seconds)]
    return [tuple(map(real, case)) for case in cases]


@pytest.mark.parametrize("hyperparameters", SETS, ids=str)
def test_an_elements_update_matches_the_oracle(real, hyperparameters):
    dtype, zero = np.dtype(real), real(0)
    for step, scales in zip((1, 3, 1000), SCALES, strict=True):
        plain = constants_of(Hyperparameters(**hyperparameters), step, dtype.name, *scales)
        ours = constants.Constants(*map(real, plain))
        theirs = as_real(fold(hyperparameters, step, dtype.name, *scales), dtype)
        with np.errstate(under="ignore"):
            for param, grad, exp_avg, exp_avg_sq in states(real):
                moments = element.moments(param, grad, exp_avg, exp_avg_sq, ours)
                assert moments == expected(param, grad, exp_avg, exp_avg_sq, theirs, zero)
                assert element.adapt(param, *moments, ours) == descended(param, *moments, theirs)
                assert all(type(number) is real for number in moments)


def test_a_moment_below_its_floor_becomes_zero(real):
    first, second = map(real, FLOORS[np.dtype(real).name][::-1])
    c = as_real(fold({"betas": (0.5, 0.5)}, 1, np.dtype(real).name), np.dtype(real))
    ours = constants.Constants(*c, real(0), real(1), real(0))
    below = real(0.75)
    with np.errstate(under="ignore"):
        assert element.moments(real(0), real(0), 2 * first, real(1), ours) == (first, real(0.5))
        assert element.moments(real(0), real(0), 2 * first * below, real(1), ours) == (0, real(0.5))
        assert element.moments(real(0), real(0), real(0), 2 * second, ours) == (0, second)
        assert element.moments(real(0), real(0), real(0), 2 * second * below, ours) == (0, 0)
        assert element.moments(real(0), real(0), real(1), 2 * second, ours) == (real(0.5), 4 * second)


def test_by_default_gradients_are_neither_scaled_nor_clipped():
    plain = constants_of(Hyperparameters(), 3, "float32")
    assert plain == constants_of(Hyperparameters(), 3, "float32", 1.0, 0.0)


def test_the_average_of_the_weights_matches_the_formula(real):
    c = constants.Constants(*[real(0)] * 16)._replace(ema_decay=real(0.75), one_minus_ema_decay=real(0.25))
    assert element.average(real(2), real(10), c) == real(4)


def test_the_largest_second_moment_is_kept_and_so_is_a_nan(real):
    assert element.largest(real(2), real(1)) == 2
    assert element.largest(real(1), real(2)) == 2
    assert np.isnan(element.largest(real("nan"), real(1))) or np.isnan(element.largest(real(1), real("nan")))
    assert np.isnan(element.largest(real(1), real("nan")))


def test_the_product_of_plain_python_is_a_multiplication():
    assert operations.product(3.0, 5.0) == 15.0


# --- clipping by the norm ---


def test_the_clip_factor_matches_pytorch():
    """torch.nn.utils.clip_grad_norm_: max_norm / (norm + 1e-6), at most 1."""
    for norm, factor, max_norm in itertools.product((0.5, 1.0, 3.0), (1.0, 0.5, -2.0), (1.0, 0.9, 6.0)):
        measured, clipped = norms.measured(norm**2, factor, max_norm, norms.PLAIN_SQUARES)
        total = norm * abs(factor)
        assert measured == total
        assert clipped == pytest.approx(factor * min(1.0, max_norm / (total + 1e-6)), rel=1e-15)
    assert norms.measured(1.0, 1.0, 1.0, 1.0)[1] == 1.0 / (1.0 + 1e-6)
    assert norms.measured(1.0, 1.0, 1.0 + 1e-6, 1.0)[1] == 1.0
    assert norms.measured(4.0, 3.0, math.inf, 1.0) == (6.0, 3.0)


@pytest.mark.parametrize(("norm", "scale"), [(3e200, norms.OF_LARGE), (3e-200, norms.OF_SMALL)])
def test_scaled_squares_give_the_same_norm_and_factor(norm, scale):
    for factor, max_norm in itertools.product((1.0, -0.5), (1.0, 1e190)):
        measured, clipped = norms.measured((norm * scale) ** 2, factor, max_norm, scale)
        total = norm * abs(factor)
        assert measured == pytest.approx(total, rel=1e-15)
        assert clipped == pytest.approx(factor * min(1.0, max_norm / (total + 1e-6)), rel=1e-15)


def test_sums_of_squares_that_overflow_or_lose_digits_need_a_scale():
    assert norms.scale_of_squares(1.0) == norms.scale_of_squares(2.0**-900) == norms.PLAIN_SQUARES == 1.0
    assert norms.scale_of_squares(math.nextafter(2.0**-900, 0.0)) == norms.scale_of_squares(0.0) == norms.OF_SMALL
    assert norms.scale_of_squares(math.inf) == norms.scale_of_squares(math.nan) == norms.OF_LARGE
    assert norms.scale_of_squares(1.7e308) == 1.0
    # The largest and the smallest number keep their squares, a billion of them too.
    for number, scale in ((1.7e308, norms.OF_LARGE), (2.0**-450, norms.OF_SMALL)):
        assert math.isfinite((number * scale) ** 2 * 1e9)
    for number, scale in ((2.0**500, norms.OF_LARGE), (5e-324, norms.OF_SMALL)):
        assert (number * scale) ** 2 > 2.0**-1022


def test_gradients_with_squares_beyond_the_limit_are_too_large():
    limit = norms.LARGEST_GRADIENT["float32"]
    below = math.nextafter(limit, 0.0)
    assert norms.is_too_large(limit, 1.0, 0.0, limit)
    assert norms.is_too_large(limit / 2, -2.0, 0.0, limit)
    assert not norms.is_too_large(below, 1.0, 0.0, limit)
    assert not norms.is_too_large(limit, 0.5, 0.0, limit)
    assert not norms.is_too_large(limit, 1.0, 1.0, limit)
    assert norms.is_too_large(limit, 1.0, limit, limit)
    assert norms.LARGEST_GRADIENT == {"float32": 2.0**64 - 2.0**44, "float64": 2.0**512 - 2.0**492}
    for name, dtype in (("float32", np.float32), ("float64", np.float64)):
        largest = dtype(norms.LARGEST_GRADIENT[name])
        with np.errstate(over="ignore"):
            assert np.isfinite(largest * largest)
            assert np.isinf(largest * dtype(1.0001) * largest * dtype(1.0001))
