"""State dicts: a round trip continues with the same bits, PyTorch's dicts load, and an invalid one changes nothing."""

from __future__ import annotations

import copy

import numpy as np
import pytest

import numba_adam as na
from numba_adam.errors import HyperparameterError, StateDictError

SHAPES = [(4, 6), (5,), ()]


def params_of(dtypes=("f4", "f4", "f4")):
    rng = np.random.default_rng(1)
    return [rng.normal(size=shape).astype(dtype) for shape, dtype in zip(SHAPES, dtypes, strict=True)]


def grads_of(params, seed):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=param.shape).astype(param.dtype) for param in params]


def make(params, **hyperparameters):
    groups = [{"params": params[:1], "lr": 0.1}, {"params": params[1:], "weight_decay": 0.2, "eps_mode": "algorithm1"}]
    return na.Adam(groups, **hyperparameters)


def after_steps(optimizer, params, seeds):
    for seed in seeds:
        grads = grads_of(params, seed)
        optimizer.step([None if seed == 2 and index == 1 else grad for index, grad in enumerate(grads)])
    states = optimizer.state_dict()["state"]
    return [param.tobytes() for param in params], [
        (index, key, value.tobytes() if isinstance(value, np.ndarray) else value)
        for index, state in states.items()
        for key, value in state.items()
    ]


@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize("dtypes", [("f4", "f4", "f4"), ("f8", "f4", "f8")])
def test_a_round_trip_continues_with_the_same_bits(dtypes, amsgrad):
    params = params_of(dtypes)
    first = make(params, amsgrad=amsgrad)
    after_steps(first, params, range(4))
    saved, kept = copy.deepcopy(first.state_dict()), [param.copy() for param in params]
    expected = after_steps(first, params, range(4, 9))
    second = na.Adam([{"params": kept[:1]}, {"params": kept[1:]}], lr=7.0, amsgrad=not amsgrad)
    second.load_state_dict(saved)
    assert second.param_groups[0]["lr"] == 0.1
    assert second.param_groups[1]["eps_mode"] == "algorithm1"
    assert [group["amsgrad"] for group in second.param_groups] == [amsgrad] * 2
    assert after_steps(second, kept, range(4, 9)) == expected


def test_loaded_arrays_are_copied():
    params = params_of()
    optimizer = make(params)
    after_steps(optimizer, params, range(2))
    saved = copy.deepcopy(optimizer.state_dict())
    before = copy.deepcopy(saved)
    optimizer.load_state_dict(saved)
    after_steps(optimizer, params, range(3))
    for index, state in before["state"].items():
        for key in ("exp_avg", "exp_avg_sq"):
            assert (saved["state"][index][key] == state[key]).all()


def test_its_own_state_dict_can_be_loaded_back():
    params = params_of()
    optimizer = make(params)
    before = after_steps(optimizer, params, range(2))[1]
    optimizer.load_state_dict(optimizer.state_dict())
    assert after_steps(optimizer, params, [])[1] == before


def test_the_nesting_and_the_keys_match_pytorch():
    params = params_of()
    optimizer = make(params, amsgrad=True)
    after_steps(optimizer, params, range(1))
    saved = optimizer.state_dict()
    assert set(saved) == {"state", "param_groups"}
    assert set(saved["state"]) == {0, 1, 2}
    assert set(saved["state"][0]) == {"step", "exp_avg", "exp_avg_sq", "max_exp_avg_sq"}
    assert [group["params"] for group in saved["param_groups"]] == [[0], [1, 2]]
    wanted = {"lr", "betas", "eps", "weight_decay", "amsgrad", "maximize", "decoupled_weight_decay", "eps_mode"}
    assert wanted <= set(saved["param_groups"][0])
    assert all(type(group) is dict for group in saved["param_groups"])


def test_loading_a_state_without_steps_resets_the_optimizer():
    params = params_of()
    optimizer = make(params)
    fresh = copy.deepcopy(optimizer.state_dict())
    after_steps(optimizer, params, range(2))
    optimizer.load_state_dict(fresh)
    assert optimizer.state == {}


class Scalar:
    """Stands for a tensor of one element: PyTorch stores the step, and sometimes lr, as one."""

    def __init__(self, value):
        self._value = value

    def item(self):
        return self._value


def pytorchs():
    """The result of torch.optim.Adam.state_dict() after seven steps, with arrays in place of tensors."""
    rng = np.random.default_rng(3)
    state = {
        index: {
            "step": Scalar(7.0),
            "exp_avg": rng.normal(size=s).astype("f4"),
            "exp_avg_sq": rng.random(s).astype("f4"),
        }
        for index, s in enumerate([(4, 6), (5,)])
    }
    for entry in state.values():
        entry["exp_avg"], entry["exp_avg_sq"] = np.asarray(entry["exp_avg"]), np.asarray(entry["exp_avg_sq"])
    group = {
        "lr": Scalar(0.25),
        "betas": (0.8, 0.95),
        "eps": 1e-6,
        "weight_decay": 0.5,
        "amsgrad": False,
        "maximize": True,
        "foreach": None,
        "capturable": False,
        "differentiable": False,
        "fused": None,
        "decoupled_weight_decay": True,
        "params": [0, 1, 2],
    }
    return {"state": state, "param_groups": [group]}


def test_a_pytorch_dict_loads():
    optimizer = na.Adam(params_of(), eps_mode="hat")
    given = pytorchs()
    optimizer.load_state_dict(given)
    group = optimizer.param_groups[0]
    expected = {"lr": 0.25, "betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.5, "maximize": True, "amsgrad": False}
    assert {key: group[key] for key in expected} == expected
    assert (group["eps_mode"], group["decoupled_weight_decay"]) == ("algorithm1", True)
    assert "foreach" not in group
    assert list(optimizer.state) == [0, 1]
    assert optimizer.state[0]["step"] == 7
    assert (optimizer.state[1]["exp_avg"] == given["state"][1]["exp_avg"]).all()
    optimizer.step(grads_of(params_of(), 1))
    assert [optimizer.state[index]["step"] for index in range(3)] == [8, 8, 1]


def test_parameters_may_have_any_numbers():
    given = pytorchs()
    given["param_groups"][0]["params"] = [12, 5, 9]
    given["state"] = {12: given["state"][0], 5: given["state"][1]}
    optimizer = na.Adam(params_of())
    optimizer.load_state_dict(given)
    assert (optimizer.state[1]["exp_avg"] == given["state"][5]["exp_avg"]).all()


# --- refused ---


def in_state(**changes):
    return lambda d: d["state"][1].update(changes)


def in_group(**changes):
    return lambda d: d["param_groups"][1].update(changes)


def at_top(**changes):
    return lambda d: d.update(changes)


BAD = {
    "not a dict": (lambda _: [1], "state_dict|'state'"),
    "empty": (lambda d: d.clear(), "'state'"),
    "no groups": (lambda d: d.pop("param_groups") and None, "param_groups"),
    "no state": (lambda d: d.pop("state") and None, "'state'"),
    "groups None": (at_top(param_groups=None), "param_groups"),
    "groups of numbers": (at_top(param_groups=[1, 2]), "param_groups"),
    "groups a dict": (at_top(param_groups={}), "param_groups|groups of"),
    "one group": (lambda d: d["param_groups"].pop() and None, "groups of"),
    "group without params": (lambda d: d["param_groups"][1].pop("params") and None, "params"),
    "params a number": (in_group(params=2), "params"),
    "params too few": (in_group(params=[1]), "groups of"),
    "params twice": (in_group(params=[1, 1]), "twice|1"),
    "params twice over groups": (in_group(params=[0, 2]), "twice|0"),
    "params unhashable": (in_group(params=[[], {}]), "params"),
    "state None": (at_top(state=None), "state"),
    "state a list": (at_top(state=[{}, {}, {}]), "state"),
    "stranger in the state": (lambda d: d["state"].update({9: d["state"][0]}), r"state\[9\]"),
    "entry a list": (lambda d: d["state"].update({1: [1, 2]}), r"state\[1\]"),
    "entry a number": (lambda d: d["state"].update({1: 5}), r"state\[1\]"),
    "no step": (lambda d: d["state"][1].pop("step") and None, "'step'"),
    "no exp_avg": (lambda d: d["state"][1].pop("exp_avg") is None or None, "'exp_avg'"),
    "no exp_avg_sq": (lambda d: d["state"][1].pop("exp_avg_sq") is None or None, "'exp_avg_sq'"),
    **{
        f"step {step!r}": (in_state(step=step), r"state\[1\]\['step'\]")
        for step in (-1, 1.5, "3", None, float("nan"), float("inf"), True, 2**53 + 2, 2**63 - 1, 2**63, 2**70, [3], 1j)
    },
    "step of two": (in_state(step=np.ones(2)), r"state\[1\]\['step'\]"),
    "shape": (in_state(exp_avg=np.ones(6, "f4")), r"state\[1\]\['exp_avg'\].*\(6,\)"),
    "integers": (in_state(exp_avg_sq=np.ones(5, "i4")), r"state\[1\]\['exp_avg_sq'\].*int32"),
    "complex": (in_state(exp_avg=np.ones(5, "c8")), r"state\[1\]\['exp_avg'\].*complex64"),
    "codes without scales": (in_state(exp_avg=np.ones(5, "u1")), r"state\[1\]\['exp_avg'\].*'exp_avg_scale'"),
    "codes with too many scales": (
        in_state(exp_avg=np.ones(5, "u1"), exp_avg_scale=np.ones(2, "f4")),
        r"state\[1\]\['exp_avg'\].*\(2,\)",
    ),
    "codes of another shape": (
        in_state(exp_avg=np.ones(6, "u1"), exp_avg_scale=np.ones(1, "f4")),
        r"state\[1\]\['exp_avg'\].*\(6,\)",
    ),
    "scales of another dtype": (
        in_state(exp_avg=np.ones(5, "u1"), exp_avg_scale=np.ones(1)),
        r"state\[1\]\['exp_avg'\].*float32",
    ),
    "one moment in 8 bits": (
        in_state(exp_avg=np.ones(5, "u1"), exp_avg_scale=np.ones(1, "f4")),
        r"state\[1\].*exp_avg",
    ),
    "the other moment in 8 bits": (
        in_state(exp_avg_sq=np.ones(5, "u1"), exp_avg_sq_scale=np.ones(1, "f4")),
        r"state\[1\].*exp_avg",
    ),
    "an average in 8 bits": (in_state(ema=np.ones(5, "u1"), ema_scale=np.ones(1, "f4")), r"state\[1\]\['ema'\]"),
    "an average of another shape": (in_state(ema=np.ones(6, "f4")), r"state\[1\]\['ema'\].*\(6,\)"),
    "an average of integers": (in_state(ema=np.ones(5, "i4")), r"state\[1\]\['ema'\].*int32"),
    "a master copy of another shape": (
        in_state(master_param=np.ones((), "f4")),
        r"state\[1\]\['master_param'\].*\(\)",
    ),
    "max shape": (in_state(max_exp_avg_sq=np.ones(4, "f4")), r"state\[1\]\['max_exp_avg_sq'\]"),
    "list": (in_state(exp_avg=[1.0] * 5), r"state\[1\]\['exp_avg'\]"),
    "None": (in_state(exp_avg=None), r"state\[1\]\['exp_avg'\]"),
    "objects": (in_state(exp_avg=np.ones(5, object)), r"state\[1\]\['exp_avg'\]"),
    "strided": (in_state(exp_avg=np.ones(10, "f4")[::2]), r"state\[1\]\['exp_avg'\].*contiguous"),
}
BAD_HYPERPARAMETERS = {
    "lr below 0": (in_group(lr=-1.0), "lr"),
    "lr of two": (in_group(lr=np.ones(2)), "lr"),
    "lr a word": (in_group(lr="0.1"), "lr"),
    "betas of 1": (in_group(betas=(0.9, 1.0)), "betas"),
    "betas an array of three": (in_group(betas=np.array([0.9, 0.9, 0.9])), "betas"),
    "eps NaN": (in_group(eps=float("nan")), "eps"),
    "eps_mode": (in_group(eps_mode="keras"), "eps_mode"),
    "amsgrad": (in_group(amsgrad=2), "amsgrad"),
}
ROWS = [pytest.param(*row, StateDictError, id=name) for name, row in BAD.items()]
ROWS += [pytest.param(*row, HyperparameterError, id=name) for name, row in BAD_HYPERPARAMETERS.items()]


@pytest.mark.parametrize(("change", "words", "error"), ROWS)
def test_an_invalid_dict_is_refused_and_changes_nothing(change, words, error):
    params = params_of(("f8", "f4", "f8"))
    optimizer = make(params)
    after_steps(optimizer, params, range(2))
    other = params_of(("f8", "f4", "f8"))
    source = make(other, maximize=True)
    after_steps(source, other, range(3))
    given = copy.deepcopy(source.state_dict())
    given = change(given) or given
    before = after_steps(optimizer, params, []), [dict(group) for group in optimizer.param_groups]
    with pytest.raises(error, match=words):
        optimizer.load_state_dict(given)
    assert (after_steps(optimizer, params, []), [dict(group) for group in optimizer.param_groups]) == before
    twins = params_of(("f8", "f4", "f8"))
    twin = make(twins)
    assert after_steps(optimizer, params, range(2, 5)) == after_steps(twin, twins, range(5))


def test_states_do_not_load_into_parameters_with_other_names():
    first, second = (na.Adam({name: np.ones(3) for name in names}) for names in ("xy", "yx"))
    first.step({"x": np.ones(3), "y": np.full(3, 2.0)})
    with pytest.raises(StateDictError, match=r"'x'.*'y'"):
        second.load_state_dict(first.state_dict())
    assert second.state == {}


def test_names_that_only_one_side_has_are_ignored():
    first, second = na.Adam({"x": np.ones(3)}), na.Adam([np.ones(3)])
    first.step({"x": np.ones(3)})
    second.load_state_dict(first.state_dict())
    assert second.state[0]["step"] == 1
    renamed = na.Adam({"layer.x": np.ones(3)})
    renamed.load_state_dict(first.state_dict())
    assert renamed.state["layer.x"]["step"] == 1


@pytest.mark.parametrize("names", [5, "w", [["w"]], [1]], ids=str)
def test_invalid_param_names_are_refused(names):
    optimizer = na.Adam({"w": np.ones(3)})
    given = optimizer.state_dict()
    given["param_groups"][0]["param_names"] = names
    with pytest.raises(StateDictError, match=r"param_groups\[0\]\['param_names'\]"):
        optimizer.load_state_dict(given)
