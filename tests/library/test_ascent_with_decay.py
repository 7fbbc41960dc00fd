"""Maximizing with weight decay changes the sign of the gradient but not of the decay. Tests all entry points."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from reference import adam_step

import numba_adam as na

STEPS = 4
OPTIONS = [
    {"decoupled_weight_decay": decoupled, "eps_mode": mode, "maximize": True, "weight_decay": decay, "lr": 0.05}
    for decoupled, mode, decay in itertools.product([False, True], ["hat", "algorithm1"], [0.5, 3.0])
]


def data(dtype):
    rng = np.random.default_rng(3)
    return rng.normal(size=(7, 3)).astype(dtype), [rng.normal(size=(7, 3)).astype(dtype) for _ in range(STEPS)]


def expected(param, grads, scale, options):
    after = adam_step(param, 0, 0, 0, 1, lr=0.0)
    for step, grad in enumerate(grads, 1):
        after = adam_step(after.param, grad, after.exp_avg, after.exp_avg_sq, step, grad_scale=scale, **options)
    return after


def by_function(param, grads, scale, options):
    moments = np.zeros_like(param), np.zeros_like(param)
    for step, grad in enumerate(grads, 1):
        na.adam_update(param, grad, *moments, step, grad_scale=scale, **options)
    return moments


def by_optimizer(param, grads, scale, options):
    optimizer = na.Adam([param], **options)
    for grad in grads:
        optimizer.step([grad], grad_scale=scale)
    return optimizer.state[0]["exp_avg"], optimizer.state[0]["exp_avg_sq"]


def by_clipping(param, grads, scale, options):
    """With clipping and an average, which use other kernels with the same result."""
    optimizer = na.Adam([param], ema_decay=0.5, **options)
    for grad in grads:
        optimizer.step([grad], loss_scale=1 / scale, max_grad_norm=1e6)
    return optimizer.state[0]["exp_avg"], optimizer.state[0]["exp_avg_sq"]


def by_rows(param, grads, scale, options):
    moments, last_step = (np.zeros_like(param), np.zeros_like(param)), np.zeros(len(param), np.int64)
    for step, grad in enumerate(grads, 1):
        exact = {"mode": "exact", "last_step": last_step} if step % 2 else {}
        na.adam_update_rows(param, np.arange(len(param)), grad, *moments, step, grad_scale=scale, **exact, **options)
        last_step[:] = step
    return moments


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: f"{o['decoupled_weight_decay']}-{o['eps_mode']}")
@pytest.mark.parametrize("way", [by_function, by_optimizer, by_clipping, by_rows])
def test_maximizing_with_decay_follows_the_papers(way, options, dtype):
    param, grads = data(dtype)
    oracle = expected(param.copy(), grads, 0.5, options)
    moments = way(param, [grad.copy() for grad in grads], 0.5, options)
    tolerance = 1e-5 if dtype == np.float32 else 1e-13
    for own, other in zip((param, *moments), (oracle.param, oracle.exp_avg, oracle.exp_avg_sq), strict=True):
        np.testing.assert_allclose(own, other, rtol=tolerance, atol=tolerance)


def test_adamw_climbs_and_decays():
    param, grads = data("float64")
    options = {"maximize": True, "weight_decay": 0.5, "lr": 0.05}
    oracle = expected(param.copy(), grads, 1.0, {**options, "decoupled_weight_decay": True})
    optimizer = na.AdamW([param], **options)
    for grad in grads:
        optimizer.step([grad])
    np.testing.assert_allclose(param, oracle.param, rtol=1e-13)


@pytest.mark.parametrize("decoupled", [False, True])
def test_without_gradients_decay_goes_to_zero_in_both_directions(decoupled):
    up, down = np.full(3, 2.0), np.full(3, 2.0)
    for param, maximize in ((up, True), (down, False)):
        options = {"weight_decay": 0.5, "decoupled_weight_decay": decoupled, "maximize": maximize}
        na.Adam([param], lr=0.1, **options).step([np.zeros(3)])
    assert up.tobytes() == down.tobytes()
    assert ((up > 0) & (up < 2)).all()
