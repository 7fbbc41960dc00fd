"""Model.set, groups, schedules, clipping and frozen arrays through the client, beside the library's optimizer."""

import math

import numpy as np
import pytest

import numba_adam as na
from numba_adam.client import Change, ParameterClient, schedules
from numba_adam.errors import (
    HyperparameterError,
    InvalidRequestError,
    ModelExistsError,
    NamesError,
    SettingsChangedError,
)


def arrays(seed):
    rng = np.random.default_rng(seed)
    shapes = {"w": (40, 30), "b": (30,), "embedding": (500,)}
    return {name: rng.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}


def assert_same(model, params):
    assert {name: array.tobytes() for name, array in model.pull().items()} == {
        name: array.tobytes() for name, array in params.items()
    }


def test_groups_a_schedule_clipping_and_a_frozen_array_have_the_librarys_bits(client):
    params = arrays(0)
    rate = schedules.Chain(
        (schedules.Linear(0.0, 0.1, 2), schedules.Cosine(0.1, 0.01, 3), schedules.Piecewise((0.5, 0.25), (1,))), (2, 5)
    )
    model = client.create_model(
        "m",
        params,
        lr=rate,
        weight_decay=0.1,
        groups=[{"params": ["b"], "weight_decay": 0.0}],
        frozen=["embedding"],
        max_grad_norm=1.0,
    )
    rest = {"w": params["w"], "embedding": params["embedding"]}
    opt = na.Adam([{"params": {"b": params["b"]}, "weight_decay": 0.0}, {"params": rest, "weight_decay": 0.1}])
    for version in range(8):
        if version == 6:
            assert model.set(unfreeze=["embedding"], clip_value=0.01) == Change(1, 6)
        grads = arrays(100 + version)
        for group in opt.param_groups:
            group["lr"] = rate.lr_at(version)
        left = grads if version >= 6 else grads | {"embedding": None}
        opt.step(left, max_grad_norm=1.0, clip_value=0.01 if version >= 6 else None)
        model.push(grads)
        assert_same(model, params)
    settings = client.open_model("m").spec.settings
    assert [group.params for group in settings.groups] == [("b",), ("w", "embedding")]
    (now,) = client.list_models()
    assert now.settings.groups[0].schedule == rate
    assert (now.settings.change, now.settings.frozen, now.settings.clip_value) == (1, (), 0.01)


@pytest.mark.parametrize("durability", ["memory", "process", "disk"])
@pytest.mark.parametrize(
    "options",
    [{"state_dtype": "8bit", "seed": 3}, {"state_dtype": "bfloat16", "rounding": "stochastic"}, {"ema_decay": 0.5}],
    ids=["8bit", "bfloat16", "average"],
)
def test_models_with_other_formats_have_the_librarys_bits_too(client, options, durability):
    params = arrays(0)
    groups = [{"params": ["embedding", "b"], "weight_decay": 0.0}]
    given = {"lr": 0.1, "weight_decay": 0.1, "max_grad_norm": 1.0, "frozen": ["b"]}
    model = client.create_model("m", params, groups=groups, durability=durability, **given, **options)
    first = {name: params[name] for name in ("embedding", "b")}
    opt = na.Adam(
        [{"params": first, "weight_decay": 0.0}, {"params": {"w": params["w"]}, "weight_decay": 0.1}], lr=0.1, **options
    )
    for number in range(4):
        if number == 2:
            model.set(group=1, lr=0.01, clip_value=0.02, unfreeze=["b"])
            opt.param_groups[1]["lr"] = 0.01
        grads = arrays(50 + number)
        model.push({name: 8 * grad for name, grad in grads.items()}, loss_scale=8.0)
        scaled = {name: 8 * grad for name, grad in grads.items()} | ({"b": None} if number < 2 else {})
        opt.step(scaled, loss_scale=8.0, max_grad_norm=1.0, clip_value=0.02 if number >= 2 else None)
        assert_same(model, params)
    if "ema_decay" in options:
        assert {name: array.tobytes() for name, array in model.pull(average=True).items()} == {
            name: array.tobytes() for name, array in opt.ema.items()
        }


def test_every_push_may_have_a_loss_scale(client):
    params = arrays(0)
    model, opt = client.create_model("m", params), na.Adam(params)
    for number, push in enumerate(
        [
            lambda grads: model.push(grads, loss_scale=1024.0),
            lambda grads: model.push_async(grads, loss_scale=1024.0).result(800),
            lambda grads: model.push_pull(grads, loss_scale=1024.0),
            lambda grads: model.push_pull(grads, arrays(9), loss_scale=1024.0),
        ]
    ):
        grads = {name: 1024 * grad for name, grad in arrays(1 + number).items()}
        opt.step(grads, loss_scale=1024.0)
        push(grads)
        assert_same(model, params)


def test_workers_that_create_a_model_whose_settings_have_changed_get_it(client):
    params = arrays(0)
    given = {"lr": 0.1, "groups": [{"params": "b", "lr": 0.2}], "max_grad_norm": 1.0, "frozen": ["w"]}
    client.create_model("m", params, **given).set(lr=0.5, unfreeze=["w"], max_grad_norm=math.inf)
    model = client.create_model("m", params, exist_ok=True, **given)
    assert model.version == 0
    (now,) = client.list_models()
    assert now.settings.max_grad_norm is None
    assert [group.hyperparameters.lr for group in now.settings.groups] == [0.5, 0.5]
    for other in ({"frozen": []}, {"max_grad_norm": 2.0}, {"groups": None}, {"groups": [{"params": "b", "lr": 0.3}]}):
        with pytest.raises(ModelExistsError, match="differs"):
            client.create_model("m", params, exist_ok=True, **given | other)


@pytest.mark.parametrize(
    ("values", "error"),
    [
        ({}, HyperparameterError),
        ({"lr": -1}, HyperparameterError),
        ({"lr": "fast"}, HyperparameterError),
        ({"betas": (0.9, 1.0)}, HyperparameterError),
        ({"eps_mode": "none"}, HyperparameterError),
        ({"maximize": 2}, HyperparameterError),
        ({"max_grad_norm": 0.0}, HyperparameterError),
        ({"clip_value": -math.inf}, HyperparameterError),
        ({"group": 0}, HyperparameterError),
        ({"group": -1, "lr": 0.1}, HyperparameterError),
        ({"group": 5, "lr": 0.1}, InvalidRequestError),
        ({"freeze": 3}, NamesError),
        ({"freeze": ["nobody"]}, InvalidRequestError),
    ],
)
def test_a_bad_change_is_refused_and_nothing_changes(client, values, error):
    model = client.create_model("m", arrays(0))
    before = client.list_models()
    with pytest.raises(error):
        model.set(**values)
    assert client.list_models() == before


@pytest.mark.parametrize(
    "values",
    [
        {"groups": {"params": ["b"]}},
        {"groups": [{"weight_decay": 0.0}]},
        {"groups": [{"params": ["b"], "momentum": 0.9}]},
        {"groups": [{"params": ["b"], "lr": -1}]},
        {"groups": [{"params": ["b"], "amsgrad": True}]},
        {"groups": [{"params": ["nobody"]}]},
        {"max_grad_norm": 0},
        {"clip_value": -1},
        {"frozen": ["nobody"]},
    ],
)
def test_a_model_with_bad_settings_is_refused(client, values):
    with pytest.raises((HyperparameterError, NamesError, InvalidRequestError)):
        client.create_model("m", arrays(0), **values)
    assert client.list_models() == []


def test_two_changes_at_the_same_moment_do_not_hide_each_other(server, connect, monkeypatch):
    """The second of two callers, who both had looked at the settings before, hears of the first."""
    first, second = (connect(server.address, name).create_model("m", arrays(0), exist_ok=True) for name in "ab")
    unary = second._connection.unary

    def overtaken(name, request, *rest):
        if name == "UpdateModel":
            first.set(lr=0.25)
        return unary(name, request, *rest)

    monkeypatch.setattr(second._connection, "unary", overtaken)
    with pytest.raises(SettingsChangedError, match="change 1"):
        second.set(lr=0.5)
    with ParameterClient(server.address) as client:
        assert client.list_models()[0].settings.groups[0].hyperparameters.lr == 0.25


def test_the_metrics_and_the_log_know_of_a_change(server, client, caplog):
    caplog.set_level("INFO")
    client.create_model("m", arrays(0)).set(lr=0.5)
    assert server._runtime.registry.get("m").tally.changes == 1
    assert "change 1 of the settings, at version 0" in caplog.text


def test_a_server_that_ignores_settings_is_noticed():
    from numba_adam.client.settings import check_known
    from numba_adam.errors import ConfigurationError
    from numba_adam.ps.v1 import model_pb2

    with pytest.raises(ConfigurationError, match="update the server"):
        check_known(model_pb2.Model(), model_pb2.Settings(clip_value=1.0))
