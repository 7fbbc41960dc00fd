"""Adam and AdamW through their public API: forms of arguments, state, groups, and changes between steps."""

from __future__ import annotations

import array
import copy
import operator

import numpy as np
import pytest
from reference import adam_step

import numba_adam as na
from numba_adam.errors import HyperparameterError, NamesError


def arrays(*shapes, dtype=np.float32, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=shape).astype(dtype) for shape in shapes]


def expected_after(param, grads, **hyperparameters):
    """Return the oracle's parameter after several gradients; None means no step."""
    after, step = adam_step(param, 0, 0, 0, 1, lr=0.0), 0
    for grad in grads:
        if grad is None:
            continue
        step += 1
        if hyperparameters.get("amsgrad"):
            own = {**hyperparameters, "max_exp_avg_sq": after.max_exp_avg_sq}
            del own["amsgrad"]
        else:
            own = hyperparameters
        after = adam_step(after.param, grad, after.exp_avg, after.exp_avg_sq, step, **own)
    return after


# --- forms ---


def test_one_bare_array_is_updated():
    (w,), (g,) = arrays((2, 3)), arrays((2, 3), seed=1)
    before = w.copy()
    optimizer = na.Adam(w, lr=0.1)
    result = optimizer.step(g)
    assert (result.applied, result.grad_norm) == (True, None)
    np.testing.assert_allclose(w, expected_after(before, [g], lr=0.1).param, rtol=1e-6)
    assert list(optimizer.state) == [0]
    assert optimizer.param_groups[0]["params"][0] is w


@pytest.mark.parametrize("form", [list, tuple, iter])
def test_a_collection_of_arrays_is_updated(form):
    params, grads = arrays(3, (2, 2)), arrays(3, (2, 2), seed=1)
    before = [w.copy() for w in params]
    optimizer = na.Adam(form(params))
    optimizer.step(tuple(grads))
    for w, old, g in zip(params, before, grads, strict=True):
        np.testing.assert_allclose(w, expected_after(old, [g]).param, rtol=1e-6)
    assert list(optimizer.state) == [0, 1]


def test_a_generator_of_arrays_is_updated():
    params = arrays(3, 4)
    na.Adam(w for w in params).step([np.ones(3, "f4"), np.ones(4, "f4")])
    assert (params[0] != arrays(3, 4)[0]).all()


def test_gradients_in_a_dict_may_have_any_order():
    (w, b), (gw, gb) = arrays((2, 3), 3), arrays((2, 3), 3, seed=1)
    before = w.copy(), b.copy()
    optimizer = na.Adam({"w": w, "b": b})
    optimizer.step({"b": gb, "w": gw})
    np.testing.assert_allclose(w, expected_after(before[0], [gw]).param, rtol=1e-6)
    np.testing.assert_allclose(b, expected_after(before[1], [gb]).param, rtol=1e-6)
    assert set(optimizer.state) == {"w", "b"}
    assert optimizer.param_groups[0]["param_names"] == ["w", "b"]


@pytest.mark.parametrize("shape", [(), (1,), (0,), (3, 0, 2), (1, 1, 1)])
def test_scalars_and_empty_arrays_are_updated(shape, dtype):
    w, g = np.ones(shape, dtype), np.full(shape, 2, dtype)
    optimizer = na.Adam([w, np.ones(3, dtype)])
    for _ in range(2):
        optimizer.step([g, None])
    assert w.shape == optimizer.state[0]["exp_avg"].shape == shape
    assert optimizer.state[0]["step"] == 2
    np.testing.assert_allclose(w, expected_after(np.ones(shape), [g, g]).param, rtol=1e-6)


def test_an_optimizer_with_only_empty_arrays_works():
    optimizer = na.Adam([np.ones((0, 2)), np.ones(0)])
    assert optimizer.step([np.ones((0, 2)), np.ones(0)]).applied
    assert [optimizer.state[index]["step"] for index in (0, 1)] == [1, 1]


def test_float32_and_float64_parameters_can_be_mixed():
    params = [arrays(4)[0], arrays(5, dtype=np.float64)[0], arrays(6)[0]]
    grads = [np.ones_like(w) for w in params]
    before = [w.copy() for w in params]
    optimizer = na.Adam(params)
    optimizer.step(grads)
    optimizer.step([None, grads[1], None])
    for index, steps in enumerate((1, 2, 1)):
        expected = expected_after(before[index], [grads[index]] * steps)
        np.testing.assert_allclose(params[index], expected.param, rtol=1e-6 if index != 1 else 1e-14)
        assert optimizer.state[index]["step"] == steps
        assert optimizer.state[index]["exp_avg"].dtype == params[index].dtype


def test_objects_with_the_buffer_protocol_are_accepted():
    w, g = array.array("f", [1, 2]), array.array("f", [1, -1])
    na.Adam([w], lr=0.5).step([g])
    assert w.tolist() == pytest.approx([0.5, 2.5])
    w = bytearray(np.ones(2).tobytes())
    na.Adam([memoryview(w).cast("d")], lr=0.5).step([np.ones(2)])
    assert np.frombuffer(w).tolist() == pytest.approx([0.5, 0.5])


class Copier:
    """An array with an exporter that copies: its memory lives only as long as the view of it."""

    def __init__(self, array):
        self._array = array

    def __dlpack__(self, **keywords):
        return self._array.copy().__dlpack__(**keywords)

    def __dlpack_device__(self):
        return self._array.__dlpack_device__()


@pytest.mark.parametrize("size", [10, 3_000])
def test_gradients_of_exporters_that_copy_stay_alive_during_the_step(size):
    grads = [np.full(size, k + 1, np.float32) for k in range(20)]
    optimizer = na.Adam([np.zeros(size, np.float32) for _ in grads], betas=(0.0, 0.0))
    optimizer.step([Copier(grad) for grad in grads])
    assert [(optimizer.state[k]["exp_avg"] == grads[k]).all() for k in range(20)] == [True] * 20


# --- state ---


def test_state_is_created_on_first_use():
    optimizer = na.Adam(arrays(3, 2))
    assert optimizer.state == {}
    assert optimizer.state_dict()["state"] == {}
    grad = np.full(3, 2, np.float32)
    optimizer.step([grad, None])
    assert list(optimizer.state) == [0]
    state = optimizer.state[0]
    assert set(state) == {"step", "exp_avg", "exp_avg_sq"}
    assert (state["step"], state["step"].dtype, state["step"].shape) == (1, np.int64, ())
    np.testing.assert_allclose(state["exp_avg"], 0.1 * grad, rtol=1e-6)  # from zeros
    np.testing.assert_allclose(state["exp_avg_sq"], 0.001 * grad**2, rtol=1e-6)


def test_none_changes_nothing_and_each_parameter_has_its_own_bias_correction():
    params = arrays(4, 5, 3)
    before = [w.copy() for w in params]
    rng = np.random.default_rng(8)
    schedule = [(True, False, False), (True, True, False), (False, True, False), (True, True, False), (False,) * 3]
    given = [[], [], []]
    optimizer = na.Adam(params, lr=0.1)
    for row in schedule:
        grads = [rng.normal(size=w.size).astype("f4") if on else None for w, on in zip(params, row, strict=True)]
        kept = [w.copy() for w in params]
        optimizer.step(grads)
        for index, grad in enumerate(grads):
            given[index].append(grad)
            assert grad is not None or params[index].tobytes() == kept[index].tobytes()
    for index in range(3):
        expected = expected_after(before[index], given[index], lr=0.1)
        np.testing.assert_allclose(params[index], expected.param, rtol=1e-5)
    assert [optimizer.state[index]["step"] for index in (0, 1)] == [3, 3]
    assert 2 not in optimizer.state


def test_none_for_a_single_array_changes_nothing():
    w = np.ones(3)
    optimizer = na.Adam(w)
    optimizer.step(None)
    assert (w == 1).all()
    assert optimizer.state == {}


def test_state_arrays_belong_to_the_optimizer():
    optimizer = na.Adam([np.ones(3)])
    optimizer.step([np.ones(3)])
    first = optimizer.state[0]["exp_avg"]
    optimizer.step([np.ones(3)])
    assert optimizer.state[0]["exp_avg"] is first
    assert optimizer.state_dict()["state"][0]["exp_avg"] is first


# --- hyperparameters and groups ---


def test_adamw_is_adam_with_a_decoupled_decay_of_0_01():
    results = []
    for make in (
        lambda w: na.AdamW([w]),
        lambda w: na.Adam([w], weight_decay=0.01, decoupled_weight_decay=True),
    ):
        (w,) = arrays(20)
        make(w).step(arrays(20, seed=1))
        results.append(w)
    assert results[0].tobytes() == results[1].tobytes()
    np.testing.assert_allclose(
        results[0],
        expected_after(arrays(20)[0], arrays(20, seed=1), weight_decay=0.01, decoupled_weight_decay=True).param,
        rtol=1e-6,
    )


def test_the_arguments_have_the_order_of_pytorch():
    group = na.Adam([np.ones(2)], 0.1, (0.8, 0.9), 1e-3, 0.2, True).param_groups[0]
    assert (group["lr"], group["betas"], group["eps"]) == (0.1, (0.8, 0.9), 1e-3)
    assert (group["weight_decay"], group["amsgrad"]) == (0.2, True)
    assert na.AdamW([np.ones(2)], 0.1, (0.8, 0.9), 1e-3, 0.2, True).param_groups[0]["amsgrad"] is True


def test_groups_have_their_own_hyperparameters():
    params, grads = arrays(3, 4, 5), arrays(3, 4, 5, seed=1)
    before = [w.copy() for w in params]
    own = [{"lr": 0.1}, {"weight_decay": 0.3, "eps_mode": "algorithm1"}]
    groups = [{"params": params[:2], **own[0]}, {"params": params[2], **own[1]}]
    optimizer = na.Adam(groups, lr=0.02, betas=(0.5, 0.9))
    for _ in range(3):
        optimizer.step(grads)
    for index, w in enumerate(params):
        settings = {"lr": 0.02, "betas": (0.5, 0.9), **own[index // 2]}
        np.testing.assert_allclose(w, expected_after(before[index], [grads[index]] * 3, **settings).param, rtol=1e-5)
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.02]


def test_groups_may_mix_dtypes_and_kinds_of_arrays():
    params = [*arrays(3, 4), *arrays(3, 4, dtype=np.float64)]
    grads = [np.ones_like(w) for w in params]
    before = [w.copy() for w in params]
    groups = [
        {"params": [params[0], params[2]], "amsgrad": True},
        {"params": [params[3]], "maximize": True},
        {"params": [params[1]], "weight_decay": 0.5, "decoupled_weight_decay": True},
    ]
    optimizer = na.Adam(groups)
    order, which = [0, 2, 3, 1], [0, 0, 1, 2]
    for step in range(4):
        optimizer.step([None if index == step else grads[index] for index in order])
    for index, group in zip(order, which, strict=True):
        own = {key: value for key, value in groups[group].items() if key != "params"}
        expected = expected_after(before[index], [grads[index]] * 3, **own)
        np.testing.assert_allclose(params[index], expected.param, rtol=1e-5)


def test_groups_may_have_named_parameters():
    (w, b), (gw, gb) = arrays(3, 4), arrays(3, 4, seed=1)
    optimizer = na.Adam([{"params": {"w": w}, "lr": 0.1}, {"params": {"b": b}}])
    optimizer.step({"b": gb, "w": gw})
    np.testing.assert_allclose(w, expected_after(arrays(3, 4)[0], [gw], lr=0.1).param, rtol=1e-6)
    assert set(optimizer.state) == {"w", "b"}


def test_a_changed_hyperparameter_takes_effect_on_the_next_step():
    (w,), (g,) = arrays(6), arrays(6, seed=1)
    optimizer = na.Adam([w])
    expected = adam_step(w, g, 0, 0, 1)
    optimizer.step([g])
    optimizer.param_groups[0]["lr"] = 0.5
    optimizer.param_groups[0]["betas"] = (0.3, 0.6)
    optimizer.param_groups[0].update(weight_decay=0.25, eps=0.01)
    optimizer.step([g])
    settings = {"lr": 0.5, "betas": (0.3, 0.6), "weight_decay": 0.25, "eps": 0.01}
    expected = adam_step(expected.param, g, expected.exp_avg, expected.exp_avg_sq, 2, **settings)
    np.testing.assert_allclose(w, expected.param, rtol=1e-5)


CHANGES = [
    ("lr", -1.0),
    ("lr", float("nan")),
    ("lr", "fast"),
    ("lr", True),
    ("betas", (0.9, 1.0)),
    ("betas", 0.9),
    ("eps", -1e-8),
    ("weight_decay", float("inf")),
    ("eps_mode", "keras"),
    ("amsgrad", 1),
    ("maximize", None),
    ("momentum", 0.9),
    ("params", []),
]


@pytest.mark.parametrize(("key", "value"), CHANGES, ids=str)
@pytest.mark.parametrize("how", ["item", "update", "or", "setdefault"])
def test_a_changed_hyperparameter_is_validated_at_once(key, value, how):
    group = na.Adam([np.ones(3)]).param_groups[0]
    before = dict(group)
    if how == "setdefault" and key in before:
        assert group.setdefault(key, value) is before[key]
        return
    change = {
        "item": lambda: group.__setitem__(key, value),
        "update": lambda: group.update({"eps": 0.5, key: value}),
        "or": lambda: operator.ior(group, {"eps": 0.5, key: value}),
        "setdefault": lambda: group.setdefault(key, value),
    }[how]
    with pytest.raises(HyperparameterError, match=key):
        change()
    assert dict(group) == before


def test_several_hyperparameters_can_change_at_once():
    (w,) = arrays(3)
    optimizer = na.Adam([w])
    optimizer.param_groups[0] |= {"lr": 0.5, "eps": 0.0}
    optimizer.step([np.ones(3, "f4")])
    np.testing.assert_allclose(w, arrays(3)[0] - 0.5, rtol=1e-6)


@pytest.mark.parametrize("remove", [lambda g: g.pop("lr"), lambda g: g.clear(), lambda g: g.popitem()])
def test_keys_of_a_group_cannot_be_removed(remove):
    group = na.Adam([np.ones(3)]).param_groups[0]
    before = dict(group)
    with pytest.raises(HyperparameterError, match="cannot be removed"):
        remove(group)
    assert dict(group) == before


def test_a_copy_of_a_group_is_a_plain_dict():
    group = na.Adam([np.ones(3)]).param_groups[0]
    assert group.copy() == dict(group)
    assert (group | {"lr": 7})["lr"] == 7
    assert group["lr"] == 1e-3


def test_numpy_numbers_are_accepted_as_hyperparameters():
    group = na.Adam([np.ones(2)], lr=np.float32(0.5), betas=[np.float64(0.5), 0], amsgrad=np.bool_(True)).param_groups[
        0
    ]
    assert (group["lr"], group["betas"], group["amsgrad"]) == (0.5, (0.5, 0.0), True)
    assert (type(group["lr"]), type(group["amsgrad"])) == (float, bool)


# --- AMSGrad ---


def test_amsgrad_divides_by_the_largest_second_moment():
    (w,) = arrays(6)
    grads = [np.full(6, size, np.float32) for size in (5, 1, 0.1)]
    optimizer = na.Adam([w], amsgrad=True, betas=(0.5, 0.5))
    for grad in grads:
        optimizer.step([grad])
    expected = expected_after(arrays(6)[0], grads, amsgrad=True, betas=(0.5, 0.5))
    np.testing.assert_allclose(w, expected.param, rtol=1e-6)
    np.testing.assert_allclose(optimizer.state[0]["max_exp_avg_sq"], expected.max_exp_avg_sq, rtol=1e-6)
    assert (optimizer.state[0]["max_exp_avg_sq"] > optimizer.state[0]["exp_avg_sq"]).all()


def test_amsgrad_switched_on_later_starts_from_the_current_moment():
    (w,) = arrays(6)
    optimizer = na.Adam([w], betas=(0.5, 0.5))
    grads = [np.full(6, size, np.float32) for size in (5, 1, 0.1)]
    optimizer.step([grads[0]])
    optimizer.param_groups[0]["amsgrad"] = True
    optimizer.step([grads[1]])
    assert (optimizer.state[0]["max_exp_avg_sq"] == optimizer.state[0]["exp_avg_sq"]).all()
    largest = optimizer.state[0]["max_exp_avg_sq"].copy()
    optimizer.step([grads[2]])
    assert (optimizer.state[0]["max_exp_avg_sq"] == largest).all()
    optimizer.param_groups[0]["amsgrad"] = False
    optimizer.step([grads[0]])
    assert (optimizer.state[0]["max_exp_avg_sq"] == largest).all()


def test_amsgrad_can_be_on_in_one_group_only():
    params = arrays(6, 6)
    optimizer = na.Adam([{"params": [params[0]], "amsgrad": True}, {"params": [params[1]]}])
    optimizer.step([np.ones(6, "f4")] * 2)
    assert ["max_exp_avg_sq" in optimizer.state[index] for index in (0, 1)] == [True, False]


# --- the rest ---


def test_grad_scale_multiplies_the_gradient():
    results = []
    for grad, scale in ((np.ones(5), 0.25), (np.full(5, 0.25), 1)):
        w = np.ones(5)
        na.Adam([w]).step([grad], grad_scale=scale)
        results.append(w.tobytes())
    assert results[0] == results[1]


def test_maximize_increases_the_objective():
    up, down = np.zeros(5), np.zeros(5)
    na.Adam([up], maximize=True).step([np.ones(5)])
    na.Adam([down]).step([np.ones(5)])
    assert up.tobytes() == (-down).tobytes()
    assert (up > 0).all()


def test_repr_describes_the_optimizer_without_its_arrays():
    text = repr(na.AdamW({"w": np.full((100, 200), 3.25), "b": np.zeros(200)}, lr=0.25))
    assert text.startswith("AdamW(")
    for part in ("20,200", "lr", "0.25", "2 arrays"):
        assert part in text
    assert "array(" not in text


def test_an_array_can_be_updated_through_a_view():
    whole = np.zeros((4, 3))
    na.Adam([whole[1:3], whole[0]]).step([np.ones((2, 3)), np.ones(3)])
    assert (whole[:3] < 0).all()
    assert (whole[3] == 0).all()


def test_parameter_names_must_be_strings():
    with pytest.raises(NamesError, match="1"):
        na.Adam({1: np.ones(2)})


def test_the_number_of_groups_is_fixed():
    opt = na.Adam(np.ones(3))
    with pytest.raises(AttributeError):
        opt.param_groups.append({})
    with pytest.raises(AttributeError):
        opt.param_groups = []
    with pytest.raises(na.errors.NamesError, match="cannot be replaced"):
        opt.param_groups[0] = {"lr": 1.0}


def test_a_shallow_copy_is_refused_with_advice():
    with pytest.raises(TypeError, match=r"deepcopy.*load_state_dict\(opt.state_dict\(\)\)"):
        copy.copy(na.Adam(np.ones(3)))
