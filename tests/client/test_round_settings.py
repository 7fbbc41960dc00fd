"""Rounds with frozen arrays, groups, clipping, state formats and averages have the library's bits."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import numba_adam as na

SHAPES = {"a": (300,), "b": (7, 41), "c": (5000,)}
ROUNDS = range(3)
OPTIONS = {
    "plain": {},
    "groups": {"groups": [{"params": ["b"], "weight_decay": 0.1, "lr": 0.03}]},
    "clipped": {"max_grad_norm": 1.5},
    "clipped by value": {"clip_value": 0.4},
    "8bit": {"state_dtype": "8bit"},
    "bfloat16": {"state_dtype": "bfloat16"},
    "average": {"ema_decay": 0.9},
}


def gradients_of(worker, number):
    rng = np.random.default_rng([worker, number])
    return {name: rng.standard_normal(shape, dtype=np.float32) for name, shape in SHAPES.items()}


def mean_of(number, without):
    one, two = gradients_of(0, number), gradients_of(1, number)
    return {name: None if name in without else (one[name] + two[name]) / np.float32(2) for name in SHAPES}


def steps_of(optimizer, numbers, options, frozen=()):
    for number in numbers:
        grads = mean_of(number, frozen)
        if limit := options.get("clip_value"):
            grads = {name: None if each is None else np.clip(each, -limit, limit) for name, each in grads.items()}
        optimizer.step(grads, **({"max_grad_norm": 1.5} if "max_grad_norm" in options else {}))


def library(start, options):
    """Return an optimizer of the library with the settings of the model."""
    params = {name: array.copy() for name, array in start.items()}
    kept = {key: value for key, value in options.items() if key in ("state_dtype", "ema_decay")}
    if "groups" not in options:
        return params, na.Adam(params, lr=0.01, **kept)
    groups = [{"params": {"a": params["a"], "c": params["c"]}}]
    groups += [{"params": {"b": params["b"]}, "weight_decay": 0.1, "lr": 0.03}]
    return params, na.Adam(groups, lr=0.01, **kept)


@pytest.mark.parametrize("durability", ["memory", "process", "disk"])
@pytest.mark.parametrize("name", OPTIONS)
def test_rounds_with_settings_have_the_librarys_bits(make_server, connect, durability, name):
    options = OPTIONS[name]
    start = {each: np.random.default_rng(5).standard_normal(shape, np.float32) for each, shape in SHAPES.items()}
    server = make_server(snapshot_interval_seconds=0)
    clients = [connect(server.address, worker_id=f"w{number}") for number in range(2)]
    model = clients[0].create_model(
        "m", start, lr=0.01, mode="sync", workers=2, round_timeout_seconds=800, durability=durability, **options
    )
    models = [model, clients[1].open_model("m")]

    def rounds(numbers):
        def work(worker):
            for number in numbers:
                models[worker].pull()
                assert models[worker].push(gradients_of(worker, number)).outcome == "applied"

        with ThreadPoolExecutor(2) as pool:
            list(pool.map(work, range(2)))

    rounds([0, 1, 2])
    model.set(freeze=["b"])
    rounds([3, 4])
    model.set(unfreeze=["b"])
    rounds([5, 6, 7])
    params, optimizer = library(start, options)
    steps_of(optimizer, [0, 1, 2], options)
    steps_of(optimizer, [3, 4], options, frozen=["b"])
    steps_of(optimizer, [5, 6, 7], options)
    found = model.pull()
    assert {each: array.tobytes() for each, array in found.items()} == {
        each: array.tobytes() for each, array in params.items()
    }
