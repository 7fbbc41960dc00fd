"""Hyperparameters as PyTorch tensors and JAX scalars count with their value at the time of the call."""

from __future__ import annotations

import numpy as np
import pytest

import numba_adam as na
from numba_adam.errors import HyperparameterError

try:
    import jax
    import jax.numpy as jnp
    import torch
except ImportError:
    torch = None

pytestmark = [
    pytest.mark.parity,
    pytest.mark.skipif(torch is None, reason="PyTorch or JAX is not installed; the parity environment has them"),
]

FORMS = {
    "torch": lambda value: torch.tensor(value),
    "torch, one element": lambda value: torch.tensor([value]),
    "torch, recording": lambda value: torch.tensor(value, requires_grad=True),
    "torch, bfloat16": lambda value: torch.tensor(value, dtype=torch.bfloat16),
    "jax": lambda value: jnp.float32(value),
    "jax, one element": lambda value: jnp.array([value]),
}


def bits_of(wrap):
    w, exp_avg, exp_avg_sq = np.ones((3, 1)), np.zeros((3, 1)), np.zeros((3, 1))
    settings = {"lr": wrap(0.25), "betas": (wrap(0.5), wrap(0.75)), "eps": wrap(0.125), "weight_decay": wrap(0.5)}
    treatment = {"grad_scale": wrap(0.5), "loss_scale": wrap(2.0), "max_grad_norm": wrap(0.5), "clip_value": wrap(0.25)}
    optimizer = na.Adam([{"params": w, **settings}], lr=wrap(1.0), ema_decay=wrap(0.5))
    optimizer.step([np.full((3, 1), 2.0)], **treatment)
    optimizer.param_groups[0]["lr"] = lambda step: wrap(0.25 * step)
    optimizer.step([np.full((3, 1), 2.0)], **treatment)
    na.adam_update(w, np.ones((3, 1)), exp_avg, exp_avg_sq, 1, grad_scale=wrap(0.5), **settings)
    na.adam_update_rows(w, np.array([0]), np.ones((1, 1)), exp_avg, exp_avg_sq, 2, grad_scale=wrap(0.5), **settings)
    return [array.tobytes() for array in (w, exp_avg, exp_avg_sq, optimizer.ema[0])]


@pytest.mark.parametrize("form", FORMS)
def test_a_tensor_of_one_element_counts_as_its_number(form):
    assert bits_of(FORMS[form]) == bits_of(float)


@pytest.mark.parametrize("array", [lambda pair: torch.tensor(pair), lambda pair: jnp.array(pair)], ids=["torch", "jax"])
def test_betas_may_be_one_tensor(array):
    assert na.Adam([np.ones(3)], betas=array([0.5, 0.75])).param_groups[0]["betas"] == (0.5, 0.75)


def test_a_schedule_may_return_jax_scalars():
    """Like optax's schedules: functions of the update's number that return a JAX scalar."""
    schedule = jax.jit(lambda step: 0.5 * (1 + jnp.cos(jnp.pi * step / 10)))
    w, other = np.ones(3), np.ones(3)
    optimizer, by_hand = na.Adam([w], lr=schedule), na.Adam([other])
    for step in range(1, 5):
        by_hand.param_groups[0]["lr"] = float(schedule(step))
        for each in (optimizer, by_hand):
            each.step([np.ones(3)])
    assert w.tobytes() == other.tobytes()
    assert type(optimizer.state_dict()["param_groups"][0]["lr"]) is float


@pytest.mark.parametrize(
    "step", [torch and torch.tensor(3), torch and torch.tensor([3]), torch and jnp.int32(3)], ids=str
)
def test_the_step_may_be_an_integer_tensor(step):
    results = []
    for number in (3, step):
        arrays = np.ones(3), np.ones(3), np.zeros(3), np.zeros(3)
        na.adam_update(*arrays, number)
        results.append(arrays[0].tobytes())
    assert len(set(results)) == 1


def none():
    yield "two elements", torch.ones(2)
    yield "truth value", torch.tensor(True)
    yield "complex", torch.tensor(0.1j)
    yield "NaN", torch.tensor(float("nan"))
    yield "without values", torch.tensor(0.1, device="meta")
    yield "jax, two elements", jnp.ones(2)
    yield "jax, truth value", jnp.array(True)
    yield "jax, complex", jnp.array(0.1j)
    yield "jax, NaN", jnp.array(jnp.nan)


@pytest.mark.parametrize("value", [row[1] for row in none()] if torch else [], ids=lambda value: str(value)[:20])
def test_tensors_without_a_real_number_are_refused_by_name(value):
    w = np.ones(3)
    optimizer = na.Adam([w])
    for name in ("lr", "eps", "weight_decay", "ema_decay"):
        with pytest.raises(HyperparameterError, match=name):
            na.Adam([w], **{name: value})
    for name in ("grad_scale", "loss_scale", "max_grad_norm", "clip_value"):
        with pytest.raises(HyperparameterError, match=name):
            optimizer.step([np.ones(3)], **{name: value})
    with pytest.raises(HyperparameterError, match=r"schedule.*lr"):
        na.Adam([w], lr=lambda _: value)
    assert optimizer.state == {}


def test_a_traced_value_is_refused():
    def train(lr):
        with pytest.raises(HyperparameterError, match=r"lr.*real number"):
            na.Adam([np.ones(3)], lr=lr)
        return lr

    assert jax.jit(train)(0.5) == 0.5


def test_a_later_change_of_a_tensor_has_no_effect():
    rate = torch.tensor(0.25)
    optimizer = na.Adam([np.ones(3)], lr=rate)
    rate.fill_(7.0)
    assert optimizer.param_groups[0]["lr"] == 0.25
