"""One step compared with the oracle in wider arithmetic, within derived error bounds, and with formulas by hand.

Write u for half the spacing of numbers at 1 (2**-24 in float32): one rounding changes x by at most half an ulp of x, or
u |x|, and u |x| is less than one ulp of x. A constant c costs r(c) u more where it is not representable (0.1 is not,
0.125 is): r is at most 1 and is computed below. Measured in ulps of a sum's largest operand A:

exp_avg     two products, half an ulp each; a sum of at most 2 A: one ulp. Together 2 + r(beta1) + r(1 - beta1).
exp_avg_sq  half an ulp for the first product; the second is two, the first of them carried on: 1.5; the sum: 1.
            Together 3 + r(beta2) + r(1 - beta2).
grad        comes with an error of k u: 0 as it is given; 1 + r(grad_scale) once scaled; with L2 decay two products and
            a sum. That adds k to the bound of exp_avg, and 2 k to that of exp_avg_sq.
param       from the moments as they were stored: root, sum, product, division and the folded step size are 5 u of the
            update, the decay half an ulp of param, the last difference 1 ulp: 7 ulp at the larger of the two.

2 and 3 are reached with betas that are representable. With (0.9, 0.999) it is 2.7 and 4.0 (seen: 2.0 and 3.3).
The whole step, moments included, stays within 10 ulp of the parameter, or of the update if that is larger, where the
update counts as large as it would be if the operands of exp_avg had not cancelled: what they leave of each other is
as wrong as they are (seen: 5.5).
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from reference import adam_step

import numba_adam as na

# The step size is folded in float64, which for float64 arrays is their own precision: 3 u for each bias correction, of
# which the root halves one, and a root, a product and a division.
FOLDED = 8
WIDER = {"float32": np.float64, "float64": np.longdouble}
SETS = {
    "defaults": {},
    "representable": {"betas": (0.875, 0.9921875), "lr": 0.125},
    "algorithm1": {"eps_mode": "algorithm1"},
    "no memory": {"betas": (0.0, 0.0)},
    "short memory": {"betas": (0.5, 0.97), "lr": 0.3},
    "large eps": {"eps": 1e-2},
    "no eps": {"eps": 0.0},
    "L2": {"weight_decay": 0.1},
    "strong L2": {"weight_decay": 3.0, "grad_scale": 0.3},
    "AdamW": {"weight_decay": 0.05, "decoupled_weight_decay": True, "lr": 0.01},
    "ascent": {"maximize": True, "grad_scale": 1 / 3},
    "ascent with L2": {"maximize": True, "weight_decay": 0.1},
    "ascent with L2, scaled": {"maximize": True, "weight_decay": 3.0, "grad_scale": 0.3, "eps_mode": "algorithm1"},
    "ascent with AdamW": {"maximize": True, "weight_decay": 0.05, "decoupled_weight_decay": True, "lr": 0.01},
    "loss scale": {"grad_scale": 1 / 1024, "lr": 0.3},
    "AMSGrad": {"amsgrad": True},
}


def random_state(rng, dtype):
    """Return param, grad, exp_avg, exp_avg_sq with magnitudes over five powers of ten, the state sometimes new."""

    def draw():
        return rng.normal(size=64) * np.exp(rng.uniform(-9, 3, 64))

    param, grad, exp_avg, exp_avg_sq = draw(), draw(), draw(), draw() ** 2
    if rng.random() < 0.3:
        exp_avg, exp_avg_sq = 0 * exp_avg, 0 * exp_avg_sq
    return [array.astype(dtype) for array in (param, grad, exp_avg, exp_avg_sq)]


def misses(dtype, constant):
    """Return r: the rounding error of a constant in the arrays' dtype, in units u."""
    wide = WIDER[dtype.name](constant)
    return float(abs(dtype.type(wide) - wide) / wide / (np.finfo(dtype).eps / 2)) if constant else 0.0


def ulps(error, at, dtype):
    """Return the largest error in units of the last place of `at`."""
    return float(np.max(np.abs(error) / np.spacing(np.abs(at).astype(dtype))))


@pytest.mark.parametrize("name", SETS)
def test_a_thousand_random_steps_stay_within_the_bounds(name, dtype):
    settings = dict(SETS[name])
    amsgrad, real = settings.pop("amsgrad", False), WIDER[dtype.name]
    h = na.Hyperparameters(**{key: value for key, value in settings.items() if key != "grad_scale"})
    scale, decay = settings.get("grad_scale", 1.0), 0.0 if h.decoupled_weight_decay else h.weight_decay
    k = 0 if scale == 1 else 1 + misses(dtype, scale)
    k = k if not decay else 1 + max(k, 1 + misses(dtype, decay))
    lost = [misses(dtype, beta) + misses(dtype, 1 - beta) for beta in h.betas]
    folded = 0 if dtype == np.float32 else FOLDED
    rng = np.random.default_rng(7)
    for _ in range(1_000 if dtype == np.float32 else 200):
        step = int(np.exp(rng.uniform(0, 12)))
        param, grad, exp_avg, exp_avg_sq = before = random_state(rng, dtype)
        largest = (exp_avg_sq * rng.uniform(0.5, 2, 64)).astype(dtype) if amsgrad else np.zeros(64, dtype)
        expected = adam_step(*before, step, **settings, max_exp_avg_sq=largest, real=real)
        after = [array.copy() for array in (*before, largest)]
        na.adam_update(*after[:4], step, **settings, max_exp_avg_sq=after[4] if amsgrad else None)

        total_grad = abs(scale) * np.abs(grad).astype(real) + decay * np.abs(param).astype(real)
        operand1 = np.maximum(h.betas[0] * np.abs(exp_avg), (1 - h.betas[0]) * total_grad)
        operand2 = np.maximum(h.betas[1] * exp_avg_sq, (1 - h.betas[1]) * total_grad**2)
        assert ulps(after[2] - expected.exp_avg, operand1, dtype) <= 2 + lost[0] + k
        assert ulps(after[3] - expected.exp_avg_sq, operand2, dtype) <= 3 + lost[1] + 2 * k
        if amsgrad:
            assert (after[4] == np.maximum(largest, after[3])).all()

        stored = param_after(h, param, after[2], after[4] if amsgrad else after[3], step, real)
        at = np.maximum(np.abs(param), np.abs(stored.update))
        assert ulps(after[0] - stored.param, at, dtype) <= 7 + folded
        if not decay:
            uncancelled = np.abs(expected.update * operand1 / np.where(expected.exp_avg, expected.exp_avg, 1))
            at = np.maximum(np.maximum(np.abs(param), np.abs(expected.update)), uncancelled)
            assert ulps(after[0] - expected.param, at, dtype) <= 10 + folded


def param_after(h, param, exp_avg, exp_avg_sq, step, real):
    """Return the oracle's parameter for given new moments, with betas that do not change them."""
    beta1, beta2 = map(real, h.betas)
    corrections = 1 - beta1**step, 1 - beta2**step
    lr, eps = real(h.lr) * np.sqrt(corrections[1]) / corrections[0], real(h.eps)
    eps = eps * np.sqrt(corrections[1]) if h.eps_mode == "algorithm1" else eps
    kept = 1 - real(h.lr) * h.weight_decay if h.decoupled_weight_decay else real(1)
    update = lr * exp_avg.astype(real) / (np.sqrt(exp_avg_sq.astype(real)) + eps)
    return adam_step(0, 0, 0, 0, 1)._replace(param=kept * param.astype(real) - update, update=update)


def test_three_steps_match_a_calculation_by_hand(dtype):
    """Betas of 1/2 and 3/4, gradients 1, 1, 3, eps 0, lr 1: simple fractions."""
    param, exp_avg, exp_avg_sq = np.full(1, 10, dtype), np.zeros(1, dtype), np.zeros(1, dtype)
    worked = [  # gradient, exp_avg, exp_avg_sq, corrections, param
        (1, 1 / 2, 1 / 4, (1 / 2, 1 / 4), 9),
        (1, 3 / 4, 7 / 16, (3 / 4, 7 / 16), 8),
        (3, 15 / 8, 165 / 64, (7 / 8, 37 / 64), 8 - (15 / 7) * math.sqrt(37 / 165)),
    ]
    for step, (grad, first, second, (one, two), expected) in enumerate(worked, 1):
        assert (one, two) == (1 - 0.5**step, 1 - 0.75**step)
        na.adam_update(param, np.full(1, grad, dtype), exp_avg, exp_avg_sq, step, lr=1.0, betas=(0.5, 0.75), eps=0.0)
        assert (exp_avg[0], exp_avg_sq[0]) == (first, second)
        assert float(param[0]) == pytest.approx(expected, rel=float(4 * np.finfo(dtype).eps))


def test_hat_mode_is_the_formula_of_keras():
    """keras.optimizers.Adam.update_step: alpha includes both bias corrections."""
    rng = np.random.default_rng(2)
    w = rng.normal(size=50)
    param, m, v = w.copy(), 0.0, 0.0
    optimizer = na.Adam(param, lr=0.02, eps=1e-4)
    for t in range(1, 101):
        g = rng.normal(size=50) * 1e-3
        alpha = 0.02 * math.sqrt(1 - 0.999**t) / (1 - 0.9**t)
        m += (g - m) * (1 - 0.9)
        v += (g**2 - v) * (1 - 0.999)
        w = w - m * alpha / (np.sqrt(v) + 1e-4)
        optimizer.step(g)
    np.testing.assert_allclose(param, w, rtol=1e-12, atol=1e-14)


def test_algorithm1_mode_follows_the_paper():
    """Kingma & Ba 2015, Algorithm 1, line by line."""
    rng = np.random.default_rng(3)
    theta = rng.normal(size=50)
    param, m, v = theta.copy(), 0.0, 0.0
    optimizer = na.Adam(param, lr=0.02, eps=1e-3, eps_mode="algorithm1")
    for t in range(1, 101):
        g = rng.normal(size=50) * 1e-3
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        m_hat, v_hat = m / (1 - 0.9**t), v / (1 - 0.999**t)
        theta = theta - 0.02 * m_hat / (np.sqrt(v_hat) + 1e-3)
        optimizer.step(g)
    np.testing.assert_allclose(param, theta, rtol=1e-12, atol=1e-14)


def test_the_two_eps_modes_differ():
    results = []
    for eps_mode in ("hat", "algorithm1"):
        param = np.ones(1)
        na.Adam(param, eps=1e-2, eps_mode=eps_mode).step(np.full(1, 1e-2))
        results.append(1 - param[0])
    # The first step's root is sqrt(0.001) of the gradient: in hat mode eps is 31.6 times as large beside it.
    assert results == pytest.approx([1e-3 / (1 + 1 / math.sqrt(0.001)), 1e-3 / 2])


def test_early_steps_in_float64_keep_their_digits():
    """1 - 0.999**2 by subtraction would make an error of 86 ulp."""
    for step in (1, 2, 3, 5, 10, 100):
        state = [np.array([value]) for value in (0.0, 1.0, 0.5, 0.25)]
        expected = adam_step(*state, step, real=np.longdouble)
        na.adam_update(*state, step)
        assert ulps(state[0] - expected.param, expected.param, np.dtype(np.float64)) <= 10


@pytest.mark.parametrize("step", [1, 10, 1_000, 10**6, 10**9, 10**15, 2**53])
def test_the_bias_correction_works_for_any_number_of_steps(step, dtype):
    state = [np.array([value], dtype) for value in (1.0, 1.0, 0.5, 0.25)]
    expected = adam_step(*state, step, real=np.longdouble)
    na.adam_update(*state, step)
    assert state[0] == pytest.approx(expected.param, rel=1e-6 if dtype == np.float32 else 1e-12)


@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_propagate(bad, dtype, amsgrad):
    """As in PyTorch: the state keeps them, and the parameter becomes NaN. The floor must not turn them into zero."""
    param, grad = np.ones(40, dtype), np.ones(40, dtype)
    grad[17] = bad
    exp_avg, exp_avg_sq, largest = np.zeros((3, 40), dtype)
    na.adam_update(param, grad, exp_avg, exp_avg_sq, 1, max_exp_avg_sq=largest if amsgrad else None)
    assert np.flatnonzero(np.isnan(param)).tolist() == [17]
    assert repr(float(exp_avg[17])) == repr(bad)
    assert repr(float(exp_avg_sq[17])) == repr(abs(bad))
    if amsgrad:
        assert repr(float(largest[17])) == repr(abs(bad))
    others = np.arange(40) != 17
    assert np.unique(param[others]).size == 1
    assert np.isfinite(param[others]).all()


def test_a_nan_parameter_stays_nan_and_changes_no_other(dtype):
    param = np.array([np.nan, 1.0], dtype)
    na.Adam(param, weight_decay=0.1).step(np.ones(2, dtype))
    assert np.isnan(param[0])
    assert 0.9 < param[1] < 1


def test_zero_eps_and_a_zero_gradient_make_no_step(dtype):
    """0 / 0 is NaN in PyTorch; here a parameter without gradients so far does not change."""
    param = np.ones(2, dtype)
    na.Adam(param, eps=0.0).step(np.array([0, 1], dtype))
    assert param[0] == 1
    assert 0.99 < param[1] < 1


def test_lr_zero_updates_only_the_moments(dtype):
    param = np.ones(3, dtype)
    optimizer = na.Adam(param, lr=0.0)
    optimizer.step(np.ones(3, dtype))
    assert (param == 1).all()
    assert (optimizer.state[0]["exp_avg"] > 0).all()
