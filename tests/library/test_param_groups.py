"""Param groups: names, notes, and refused changes that would have no effect."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest

import numba_adam as na
from numba_adam.errors import HyperparameterError, ImmutableError, NamesError, NumbaAdamError


def three():
    return {"a": np.ones(3), "b": np.full((2, 2), 2.0), "c": np.zeros(1)}


def ones_like(params):
    return {name: np.ones_like(array) for name, array in params.items()}


def after_a_step(form, grads=dict):
    params = three()
    optimizer = na.Adam(form(params), lr=0.5)
    optimizer.step(grads(ones_like(params)))
    return optimizer, [array.tobytes() for array in params.values()]


# --- names ---

PAIRS = {
    "list of pairs": lambda params: list(params.items()),
    "items": lambda params: params.items(),
    "generator": lambda params: ((name, array) for name, array in params.items()),
    "a group of pairs": lambda params: [{"params": list(params.items())}],
    "a group with a generator": lambda params: [{"params": (pair for pair in params.items())}],
    "a generator of groups": lambda params: ({"params": [pair], "lr": 0.5} for pair in params.items()),
    "groups of both": lambda params: [
        {"params": [("a", params["a"])]},
        {"params": {name: params[name] for name in "bc"}},
    ],
    "another optimizer's groups": lambda params: na.Adam(params, lr=0.5).param_groups,
}


@pytest.mark.parametrize("form", PAIRS)
def test_pairs_of_name_and_array_are_named_parameters(form):
    optimizer, bits = after_a_step(PAIRS[form])
    named, expected = after_a_step(dict)
    assert bits == expected
    assert list(optimizer.state) == list(named.state) == ["a", "b", "c"]
    assert [name for group in optimizer.param_groups for name in group["param_names"]] == ["a", "b", "c"]


@pytest.mark.parametrize("grads", [lambda g: list(g.items()), lambda g: iter(g.items()), lambda g: reversed(g.items())])
def test_gradients_may_be_pairs_of_name_and_array(grads):
    assert after_a_step(dict, grads)[1] == after_a_step(dict)[1]


def test_invalid_pairs_are_refused():
    one, other = np.ones(3), np.ones(3)
    with pytest.raises(NamesError, match="pairs"):
        na.Adam([("w", one), other])
    with pytest.raises(NamesError, match="'w'"):
        na.Adam([("w", one), ("w", other)])
    with pytest.raises(NamesError, match="at least one array"):
        na.Adam(pair for pair in ())
    optimizer = na.Adam([("w", one), ("v", other)])
    for grads in ([("w", one), ("w", one)], [("w", one)], [("w", one), one], [("w", one), ("u", one)]):
        with pytest.raises(NamesError, match="grads"):
            optimizer.step(grads)
    assert optimizer.state == {}


# --- notes ---


def test_notes_are_kept_saved_and_restored():
    w, v = np.ones(3), np.ones(3)
    groups = [{"params": [w], "name": "body", "initial_lr": 0.1}, {"params": [v], "lr": 0.5, "swa_lr": [0.1, 0.2]}]
    optimizer = na.Adam(groups)
    assert [optimizer.param_groups[0][key] for key in ("name", "initial_lr")] == ["body", 0.1]
    optimizer.param_groups[1]["frozen"] = None
    optimizer.param_groups[1].update(max_lr=2.0, eps=1e-3)
    optimizer.param_groups[1].setdefault("min_lr", 0.0)
    optimizer.step([np.ones(3)] * 2)
    saved = copy.deepcopy(optimizer.state_dict())
    assert saved["param_groups"][0]["name"] == "body"
    assert {key: saved["param_groups"][1][key] for key in ("swa_lr", "frozen", "max_lr", "min_lr")} == {
        "swa_lr": [0.1, 0.2],
        "frozen": None,
        "max_lr": 2.0,
        "min_lr": 0.0,
    }
    other = na.Adam([{"params": [w.copy()], "name": "?", "kept": 1}, {"params": [v.copy()]}])
    other.load_state_dict(saved)
    assert (other.param_groups[0]["name"], other.param_groups[0]["kept"]) == ("body", 1)
    assert other.param_groups[1]["swa_lr"] == [0.1, 0.2]
    assert other.param_groups[1]["eps"] == 1e-3
    del optimizer.param_groups[1]["frozen"]
    assert optimizer.param_groups[1].pop("max_lr") == 2.0
    assert {"frozen", "max_lr"} & set(optimizer.param_groups[1]) == set()
    with pytest.raises(KeyError):
        del optimizer.param_groups[1]["frozen"]


def test_a_state_dicts_groups_are_copies():
    optimizer = na.Adam([{"params": {"w": np.ones(3)}, "milestones": [1, 2]}])
    saved = optimizer.state_dict()["param_groups"]
    optimizer.param_groups[0]["milestones"].append(3)
    optimizer.param_groups[0]["lr"] = 7.0
    assert (saved[0]["milestones"], saved[0]["lr"]) == ([1, 2], 1e-3)
    saved[0]["param_names"].append("v")
    saved[0]["params"].append(1)
    assert optimizer.param_groups[0]["param_names"] == ["w"]
    assert optimizer.state_dict()["param_groups"][0]["params"] == [0]


def test_the_groups_of_a_state_dict_go_through_json():
    optimizer = na.AdamW([{"params": {"w": np.ones(3)}, "name": "body"}], lr=0.25, betas=(0.5, 0.75))
    saved = optimizer.state_dict()
    saved["param_groups"] = json.loads(json.dumps(saved["param_groups"]))
    other = na.AdamW([{"params": {"w": np.ones(3)}}])
    other.load_state_dict(saved)
    assert dict(other.param_groups[0]).items() >= {"lr": 0.25, "betas": (0.5, 0.75), "name": "body"}.items()


SLIPS = {
    "weight_decy": "weight_decay",
    "weightdecay": "weight_decay",
    "wd": "weight_decay",
    "Lr": "lr",
    "learning_rate": "lr",
    "learning rate": "lr",
    "Learning-Rate": "lr",
    "beta1": "betas",
    "momentum": "betas",
    "epsilon": "eps",
    "eps_mod": "eps_mode",
    "maximise": "maximize",
    "amsgrd": "amsgrad",
    "param": "params",
    "state_dtype": "when you make it",
    "ema_decay": "when you make it",
    "max_grad_norm": "step",
    "grad_scale": "step",
    "fused": "leave it out",
    "momentum_decay": "of other optimizers",
    "nesterov": "of other optimizers",
}


@pytest.mark.parametrize("key", SLIPS)
def test_a_misspelled_key_is_refused_with_a_suggestion(key):
    w = np.ones(3)
    optimizer = na.Adam([w])
    saved = optimizer.state_dict()
    saved["param_groups"][0][key] = 0.5
    calls = [
        lambda: na.Adam([{"params": [w], key: 0.5}]),
        lambda: optimizer.param_groups[0].__setitem__(key, 0.5),
        lambda: optimizer.param_groups[0].update({"lr": 7.0, key: 0.5}),
        lambda: optimizer.param_groups[0].setdefault(key, 0.5),
    ]
    for call in calls if key == "fused" else [*calls, lambda: optimizer.load_state_dict(saved)]:
        with pytest.raises(HyperparameterError, match=f"'{key}'.*{SLIPS[key]}"):
            call()
    assert key not in optimizer.param_groups[0]
    assert optimizer.param_groups[0]["lr"] == 1e-3


# --- what cannot be changed ---

LIST_CHANGES = {
    "append": lambda entries: entries.append(np.ones(2)),
    "extend": lambda entries: entries.extend([np.ones(2)]),
    "insert": lambda entries: entries.insert(0, np.ones(2)),
    "remove": lambda entries: entries.remove(entries[0]),
    "pop": lambda entries: entries.pop(),
    "clear": lambda entries: entries.clear(),
    "reverse": lambda entries: entries.reverse(),
    "sort": lambda entries: entries.sort(key=id),
    "set an item": lambda entries: entries.__setitem__(0, np.ones(3)),
    "set a slice": lambda entries: entries.__setitem__(slice(None), [np.ones(3)]),
    "delete an item": lambda entries: entries.__delitem__(0),
    "add": lambda entries: entries.__iadd__([np.ones(2)]),
    "multiply": lambda entries: entries.__imul__(2),
}


@pytest.mark.parametrize("change", LIST_CHANGES)
@pytest.mark.parametrize("which", ["params", "param_names", "ema", "groups"])
def test_fixed_lists_cannot_be_changed(which, change):
    w = np.ones(3)
    optimizer = na.Adam([{"params": [("w", w)]}], ema_decay=0.5)
    unnamed = na.Adam([np.ones(3)], ema_decay=0.5)
    group = optimizer.param_groups[0]
    entries = {"ema": unnamed.ema, "groups": optimizer.param_groups}.get(which) or group[which]
    if (which, change) in {("groups", "set an item"), ("groups", "set a slice"), ("groups", "multiply")}:
        with pytest.raises((NamesError, TypeError, AttributeError)):
            LIST_CHANGES[change](entries)
        return
    with pytest.raises(ImmutableError, match="optimizer"):
        LIST_CHANGES[change](entries)
    assert (len(optimizer.param_groups), len(group["params"]), group["param_names"]) == (1, 1, ["w"])
    assert group["params"][0] is w


DICT_CHANGES = {
    "set": lambda entries: entries.__setitem__("w", {}),
    "delete": lambda entries: entries.__delitem__("w"),
    "pop": lambda entries: entries.pop("w"),
    "popitem": lambda entries: entries.popitem(),
    "clear": lambda entries: entries.clear(),
    "update": lambda entries: entries.update(w={}),
    "setdefault": lambda entries: entries.setdefault("v", {}),
    "or": lambda entries: entries.__ior__({"w": {}}),
}


@pytest.mark.parametrize("change", DICT_CHANGES)
def test_state_dicts_are_fixed_but_their_arrays_are_writable(change):
    optimizer = na.Adam({"w": np.ones(3)}, ema_decay=0.5)
    optimizer.step({"w": np.ones(3)})
    for entries in (optimizer.state, optimizer.state["w"], optimizer.ema):
        with pytest.raises(ImmutableError, match="write into"):
            DICT_CHANGES[change](entries)
    optimizer.state["w"]["exp_avg"][...] = 0
    assert not optimizer.state["w"]["exp_avg"].any()
    copies = copy.deepcopy((optimizer.state, optimizer.ema, na.Adam([np.ones(3)]).param_groups[0]["params"]))
    assert [type(each) for each in (*copies, copies[0]["w"])] == [dict, dict, list, dict]
    assert optimizer.ema == optimizer.ema | {}


ATTRIBUTES = ["lr", "betas", "eps", "weight_decay", "maximize", "amsgrad", "eps_mode", "decoupled_weight_decay"]
ATTRIBUTES += ["param_groups", "defaults", "params", "state", "ema", "low_precision"]
ATTRIBUTES += ["state_dtype", "rounding", "seed", "master_weights", "ema_decay", "low_precision_copy"]
ATTRIBUTES += ["grad_scale", "max_grad_norm", "zero_grad", "learning_rate", "note", "Lr"]


@pytest.mark.parametrize("name", ATTRIBUTES)
@pytest.mark.parametrize("kind", [na.Adam, na.AdamW])
def test_an_attribute_without_effect_cannot_be_set(kind, name):
    optimizer = kind([np.ones(3)])
    before = repr(optimizer)
    with pytest.raises(ImmutableError, match=name) as caught:
        setattr(optimizer, name, 0.5)
    assert isinstance(caught.value, AttributeError)
    assert isinstance(caught.value, NumbaAdamError)
    assert repr(optimizer) == before
    assert name not in vars(optimizer)


def test_the_advice_in_the_error_works():
    optimizer = na.Adam([np.ones(3)])
    with pytest.raises(ImmutableError, match=r"opt\.param_groups\[0\]\['lr'\] = "):
        optimizer.lr = 0.1
    optimizer.param_groups[0]["lr"] = 0.1
    with pytest.raises(ImmutableError, match=r"group\['lr'\] = "):
        optimizer.param_groups[0].lr = 0.2
    with pytest.raises(ImmutableError, match=r"group\['lr'\] = "):
        optimizer.param_groups[0].data["lr"] = 0.2
    with pytest.raises(ImmutableError, match="hyperparameters"):
        optimizer.param_groups[0].hyperparameters = na.Hyperparameters(lr=0.2)
    assert optimizer.param_groups[0]["lr"] == 0.1
    assert optimizer.param_groups[0].hyperparameters.lr == 0.1
    with pytest.raises(ImmutableError, match="cannot be deleted"):
        del optimizer.param_groups[0].hyperparameters
    with pytest.raises(AttributeError):
        del optimizer.param_groups
    with pytest.raises(ImmutableError, match="make another"):
        del optimizer.param_groups[0]


class Counting(na.Adam):
    """A user's subclass with its own attributes."""

    def __init__(self, params):
        self.count = 0
        super().__init__(params)
        self.last = None

    def step(self, *args, **kwargs):
        self.count += 1
        return super().step(*args, **kwargs)


def test_a_subclass_may_have_attributes_but_no_misleading_ones():
    optimizer = Counting([np.ones(3)])
    optimizer.step([np.ones(3)])
    optimizer.last = 5
    assert (optimizer.count, optimizer.last) == (1, 5)
    with pytest.raises(ImmutableError, match="lr"):
        optimizer.lr = 0.1


def test_a_method_can_be_wrapped():
    optimizer, calls = na.Adam([np.ones(3)]), []
    step = optimizer.step
    optimizer.step = lambda grads: calls.append(1) or step(grads)
    assert optimizer.step([np.ones(3)]).applied
    assert calls == [1]


# --- what a class says itself ---


def test_adamw_refuses_a_coupled_decay():
    w = np.ones(3)
    optimizer = na.AdamW([w])
    group = optimizer.param_groups[0]
    calls = [
        lambda: na.AdamW([{"params": [w], "decoupled_weight_decay": False}]),
        lambda: group.__setitem__("decoupled_weight_decay", False),
        lambda: group.update(lr=7.0, decoupled_weight_decay=False),
    ]
    for call in calls:
        with pytest.raises(HyperparameterError, match=r"decoupled_weight_decay=False.*Adam"):
            call()
    assert (group["decoupled_weight_decay"], group["lr"]) == (True, 1e-3)
    group["decoupled_weight_decay"] = True
    na.AdamW([{"params": [w], "decoupled_weight_decay": True}])


@pytest.mark.parametrize("old", [na.Adam, na.AdamW])
@pytest.mark.parametrize("new", [na.Adam, na.AdamW])
def test_adamw_stays_decoupled_after_loading_and_adam_follows_the_dict(old, new):
    source = old([np.ones(3)], weight_decay=0.25)
    source.step([np.ones(3)])
    w = np.full(3, 2.0)
    loaded = new([w], weight_decay=0.5)
    loaded.load_state_dict(source.state_dict())
    expected = {(na.Adam, na.Adam): False}.get((old, new), True)
    assert loaded.param_groups[0]["decoupled_weight_decay"] is expected
    assert loaded.param_groups[0]["weight_decay"] == 0.25
    twin = np.full(3, 2.0)
    other = na.Adam([twin], weight_decay=0.25, decoupled_weight_decay=expected)
    other.load_state_dict({"state": source.state_dict()["state"], "param_groups": [{"params": [0], "eps_mode": "hat"}]})
    for each in (loaded, other):
        each.step([np.full(3, 0.5)])
    assert w.tobytes() == twin.tobytes()


@pytest.mark.parametrize(("kind", "decoupled"), [(na.Adam, False), (na.AdamW, True)])
def test_a_dict_of_an_older_pytorch_keeps_the_settings_that_it_lacks(kind, decoupled):
    """Early versions had no maximize, foreach or capturable, an int as step, and no kind of decay."""
    state = {0: {"step": 3, "exp_avg": np.ones(3), "exp_avg_sq": np.ones(3)}}
    group = {"lr": 0.25, "betas": (0.5, 0.75), "eps": 1e-6, "weight_decay": 0.125, "amsgrad": False, "params": [0]}
    optimizer = kind([np.ones(3)], maximize=True)
    optimizer.load_state_dict({"state": state, "param_groups": [group]})
    held = optimizer.param_groups[0]
    assert (held["decoupled_weight_decay"], held["maximize"]) == (decoupled, True)
    assert (held["lr"], held["eps_mode"], optimizer.state[0]["step"]) == (0.25, "algorithm1", 3)
    optimizer.step([np.ones(3)])
    assert optimizer.state[0]["step"] == 4
