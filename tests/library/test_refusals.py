"""Unsuitable arguments are refused by name, and no array and no visible state has changed."""

from __future__ import annotations

import copy
from typing import ClassVar

import ml_dtypes
import numpy as np
import pytest

import numba_adam as na
from numba_adam.errors import (
    ArrayError,
    DtypeError,
    HyperparameterError,
    LayoutError,
    NamesError,
    OverlapError,
    ReadOnlyError,
    ShapeError,
    UnsupportedArrayError,
)

NAMES = ("param", "grad", "exp_avg", "exp_avg_sq", "max_exp_avg_sq")


def read_only(array):
    array.flags.writeable = False
    return array


class Strange:
    """An object without memory."""


# What is given in place of an array of shape (4, 6), float32; the error; and words of the message.
WRONG = {
    "shape": (lambda: np.ones((4, 5), "f4"), ShapeError, r"\(4, 5\)"),
    "fewer dimensions": (lambda: np.ones(24, "f4"), ShapeError, r"\(24,\)"),
    "transposed shape": (lambda: np.ones((6, 4), "f4"), ShapeError, r"\(6, 4\)"),
    "scalar": (lambda: np.ones((), "f4"), ShapeError, r"\(\)"),
    "empty": (lambda: np.ones((0, 6), "f4"), ShapeError, r"\(0, 6\)"),
    "int16": (lambda: np.ones((4, 6), "i2"), DtypeError, "int16"),
    "uint8": (lambda: np.ones((4, 6), "u1"), DtypeError, "uint8"),
    "another float of 8 bits": (lambda: np.ones((4, 6), ml_dtypes.float8_e4m3fn), DtypeError, "float8"),
    "longdouble": (lambda: np.ones((4, 6), np.longdouble), DtypeError, "dtype"),
    "int32": (lambda: np.ones((4, 6), "i4"), DtypeError, "int32"),
    "bool": (lambda: np.ones((4, 6), "?"), DtypeError, "bool"),
    "complex": (lambda: np.ones((4, 6), "c8"), DtypeError, "complex64"),
    "records": (lambda: np.ones((4, 6), [("x", "f4")]), DtypeError, "x"),
    "objects": (lambda: np.ones((4, 6), object), DtypeError, "object"),
    "words": (lambda: np.full((4, 6), "abc"), DtypeError, "U3"),
    "foreign byte order": (lambda: np.ones((4, 6), np.dtype("f4").newbyteorder("S")), LayoutError, "byte order"),
    "every other": (lambda: np.ones((4, 12), "f4")[:, ::2], LayoutError, "contiguous"),
    "reversed": (lambda: np.ones((4, 6), "f4")[::-1], LayoutError, "contiguous"),
    "broadcast": (lambda: np.broadcast_to(np.float32(1), (4, 6)), LayoutError, "contiguous"),
    "odd address": (
        lambda: np.frombuffer(bytearray(97), np.uint8)[1:].view("f4").reshape(4, 6),
        LayoutError,
        "address",
    ),
    "masked": (lambda: np.ma.ones((4, 6), "f4"), UnsupportedArrayError, "masked"),
    "list of floats": (lambda: [[1.0] * 6] * 4, UnsupportedArrayError, "list"),
    "a float": (lambda: 1.0, UnsupportedArrayError, "float"),
    "words alone": (lambda: "grad", UnsupportedArrayError, "str"),
    "a stranger": (Strange, UnsupportedArrayError, "Strange"),
}
ROWS = [pytest.param(*row, id=name) for name, row in WRONG.items()]


def good():
    rng = np.random.default_rng(6)
    return [rng.random((4, 6), np.float32) for _ in NAMES]


def check_refused(call, arrays, error, words):
    """Check that `call` raises `error` with all of the words, and that the arrays have not changed."""
    arrays = [array for array in arrays if isinstance(array, np.ndarray) and array.dtype != object]
    before = [array.tobytes() for array in arrays]
    with pytest.raises(error) as caught:
        call()
    assert isinstance(caught.value, na.NumbaAdamError)
    assert [array.tobytes() for array in arrays] == before
    assert [word for word in words if word not in str(caught.value)] == []
    return str(caught.value)


# --- adam_update ---


@pytest.mark.parametrize(("make", "error", "message"), ROWS)
@pytest.mark.parametrize("place", range(1, 5), ids=NAMES[1:])
def test_the_function_refuses_an_unsuitable_array(make, error, message, place):
    arrays = good()
    arrays[place] = make()
    with pytest.raises(error, match=message):
        na.adam_update(*arrays[:4], 1, max_exp_avg_sq=arrays[4])
    check_refused(lambda: na.adam_update(*arrays[:4], 1, max_exp_avg_sq=arrays[4]), arrays, error, [NAMES[place]])


@pytest.mark.parametrize("name", [name for name, row in WRONG.items() if row[1] is not ShapeError])
def test_the_function_refuses_an_unsuitable_parameter(name):
    make, error, _ = WRONG[name]
    arrays = [make(), *good()[1:]]
    check_refused(lambda: na.adam_update(*arrays[:4], 1), arrays, error, ["param"])


@pytest.mark.parametrize("place", [0, 2, 3, 4], ids=lambda place: NAMES[place])
def test_the_function_refuses_read_only_arrays(place):
    arrays = good()
    read_only(arrays[place])
    words = [NAMES[place], "read-only", "copy"]
    check_refused(lambda: na.adam_update(*arrays[:4], 1, max_exp_avg_sq=arrays[4]), arrays, ReadOnlyError, words)


def test_a_read_only_gradient_is_accepted():
    arrays = good()
    read_only(arrays[1])
    na.adam_update(*arrays[:4], 1)
    assert (arrays[0] != good()[0]).all()


PAIRS = [(a, b) for a in range(5) for b in range(a + 1, 5)]


@pytest.mark.parametrize("lap", [24, 1, 23])
@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: f"{NAMES[pair[0]]}-{NAMES[pair[1]]}")
def test_the_function_refuses_arrays_that_share_memory(pair, lap):
    """Sharing all elements, one, or all but one; in either order."""
    for one, other in (pair, pair[::-1]):
        arrays, whole = good(), np.random.default_rng(1).random(48, np.float32)
        arrays[one] = whole[:24].reshape(4, 6)
        arrays[other] = whole[24 - lap :][:24].reshape(4, 6)
        words = [NAMES[pair[0]], NAMES[pair[1]], "share", ".copy()"]
        check_refused(lambda a=arrays: na.adam_update(*a[:4], 1, max_exp_avg_sq=a[4]), arrays, OverlapError, words)


def test_the_function_accepts_adjacent_arrays():
    whole = np.random.default_rng(1).random(120, np.float32)
    param, grad, exp_avg, exp_avg_sq, largest = whole.reshape(5, 4, 6)
    kept = grad.copy()
    na.adam_update(param, grad, exp_avg, exp_avg_sq, 1, max_exp_avg_sq=largest)
    assert (grad == kept).all()


@pytest.mark.parametrize(
    "step", [0, -1, 2**53 + 1, 2**80, 1.0, 1.5, "1", None, True, np.float64(1), float("nan"), [1], np.bool_(True)]
)
def test_the_function_refuses_an_invalid_step(step):
    arrays = good()
    check_refused(lambda: na.adam_update(*arrays[:4], step), arrays, HyperparameterError, ["step", repr(step)])


def test_a_step_may_have_any_integer_type():
    results = []
    for step in (3, np.int32(3), np.uint8(3), np.array(3)):
        arrays = good()
        na.adam_update(*arrays[:4], step)
        results.append(arrays[0].tobytes())
    assert len(set(results)) == 1


BAD_NUMBERS = [-1.0, -1e-300, float("nan"), float("inf"), -float("inf"), "0.1", None, True, 1j, [0.1], 10**400]
BAD_NUMBERS += [np.array([0.1, 0.2]), np.float32("nan")]
BAD_BETAS = [(0.9, 1.0), (1.0, 0.9), (-0.1, 0.9), (0.9, float("nan")), (0.9, 2), (0.9,), (0.9,) * 3, 0.9, None, "ab"]
BAD_BETAS += [(True, 0.9), ("0.9", 0.9), (None, 0.5), {0.9, 0.99}]
BAD = [(name, value) for name in ("lr", "eps", "weight_decay") for value in BAD_NUMBERS]
BAD += [("betas", value) for value in BAD_BETAS]
BAD += [("eps_mode", value) for value in ("keras", "HAT", None, 1, ["hat"], np.ones(2), "")]
BAD += [(name, value) for name in ("maximize", "decoupled_weight_decay") for value in (1, 0, None, "yes", 1.0, [])]
BAD_ROWS = [pytest.param(name, value, id=f"{name}={str(value)[:12]}") for name, value in BAD]


@pytest.mark.parametrize(("name", "value"), BAD_ROWS)
def test_invalid_hyperparameters_are_refused_everywhere(name, value):
    arrays = good()
    for call in (
        lambda: na.adam_update(*arrays[:4], 1, **{name: value}),
        lambda: na.Adam([arrays[0]], **{name: value}),
        lambda: na.Adam([{"params": [arrays[0]], name: value}]),
        lambda: na.Hyperparameters(**{name: value}),
    ):
        check_refused(call, arrays, HyperparameterError, [name])


@pytest.mark.parametrize(
    "value", [float("nan"), float("inf"), "1", None, True, 1j, [1.0], 10**400, np.ones(2)], ids=str
)
def test_an_invalid_grad_scale_is_refused(value):
    arrays = good()
    optimizer = na.Adam([arrays[0]])
    check_refused(lambda: na.adam_update(*arrays[:4], 1, grad_scale=value), arrays, HyperparameterError, ["grad_scale"])
    check_refused(lambda: optimizer.step([arrays[1]], grad_scale=value), arrays, HyperparameterError, ["grad_scale"])
    assert optimizer.state == {}


@pytest.mark.parametrize("value", [1, None, "yes"])
def test_amsgrad_must_be_a_bool(value):
    with pytest.raises(HyperparameterError, match="amsgrad"):
        na.Adam([np.ones(2)], amsgrad=value)


@pytest.mark.parametrize("key", ["momentum", "LR", "param_names", "", 3])
def test_groups_with_unknown_keys_are_refused(key):
    with pytest.raises(HyperparameterError, match=repr(key)):
        na.Adam([{"params": [np.ones(2)], key: 1}])


# --- making an optimizer ---


@pytest.mark.parametrize("name", [name for name, row in WRONG.items() if row[1] is not ShapeError])
def test_an_unsuitable_parameter_is_refused(name):
    make, error, message = WRONG[name]
    with pytest.raises(error, match=message) as caught:
        na.Adam({"v": np.ones(3, "f4"), "w": make()})
    assert "params['w']" in str(caught.value)
    with pytest.raises(error, match=r"params\[1\]"):
        na.Adam([np.ones(3, "f4"), make()])


def test_a_read_only_parameter_is_refused():
    with pytest.raises(ReadOnlyError, match=r"params\[0\].*read-only"):
        na.Adam([read_only(np.ones(3))])


@pytest.mark.parametrize(
    "params", [[], {}, (), iter([]), [{"params": []}]], ids=["list", "dict", "tuple", "iterator", "group"]
)
def test_an_optimizer_without_parameters_is_refused(params):
    with pytest.raises(NamesError, match="at least one array"):
        na.Adam(params)


@pytest.mark.parametrize("params", [None, 3, "weights", [None], [1.0], [[np.ones(2)]], b"12345678"], ids=str)
def test_none_is_refused_as_a_parameter(params):
    with pytest.raises(ArrayError, match="params"):
        na.Adam(params)


def test_parameters_that_share_memory_are_refused():
    whole = np.ones(10)
    for params in ([whole, whole], [whole[:6], whole[5:]], [whole, whole[3:4]], [whole, whole.view("f4")]):
        with pytest.raises(OverlapError, match=r"params\[0\] and params\[1\] share memory"):
            na.Adam(params)
    with pytest.raises(OverlapError, match=r"'a'.*'c'"):
        na.Adam([{"params": {"a": whole, "b": np.ones(3)}}, {"params": {"c": whole}, "lr": 1.0}])


def test_duplicate_names_are_refused():
    with pytest.raises(NamesError, match="'w'"):
        na.Adam([{"params": {"w": np.ones(3)}}, {"params": {"w": np.ones(3)}}])


def test_a_mixture_of_named_and_unnamed_groups_is_refused():
    with pytest.raises(NamesError, match="some param groups have names"):
        na.Adam([{"params": {"w": np.ones(3)}}, {"params": [np.ones(3)]}])


def test_a_group_without_parameters_is_refused():
    with pytest.raises(NamesError, match="must have 'params'"):
        na.Adam([{"lr": 1.0}])


# --- steps ---


def used(amsgrad=False):
    """Return an optimizer over three arrays after one step, and its visible state."""
    params = {"a": np.ones((4, 6), "f4"), "b": np.ones(5, "f4"), "c": np.ones(3, "f8")}
    optimizer = na.Adam(params, amsgrad=amsgrad)
    optimizer.step({name: np.full_like(array, 0.5) for name, array in params.items()})
    return optimizer, params, grads_of(params)


def grads_of(params):
    return {name: np.full_like(array, 0.25) for name, array in params.items()}


def seen(optimizer, params):
    state = {
        name: {key: value.tobytes() if isinstance(value, np.ndarray) else value for key, value in entry.items()}
        for name, entry in optimizer.state.items()
    }
    groups = [
        {key: copy.copy(value) for key, value in group.items() if key != "params"} for group in optimizer.param_groups
    ]
    return state, groups, {name: array.tobytes() for name, array in params.items()}


def check_step_refused(optimizer, params, grads, error, words):
    before = seen(optimizer, params)
    check_refused(lambda: optimizer.step(grads), [], error, words)
    assert seen(optimizer, params) == before
    good = grads_of(params)
    optimizer.step(good)  # and it goes on as if nothing had been
    twin, twin_params, _ = used(amsgrad=optimizer.param_groups[0]["amsgrad"])
    twin.step(good)
    assert seen(optimizer, params) == seen(twin, twin_params)


@pytest.mark.parametrize(("make", "error", "message"), ROWS)
def test_an_unsuitable_gradient_is_refused(make, error, message):
    optimizer, params, grads = used()
    with pytest.raises(error, match=message):
        optimizer.step({**grads, "a": make()})
    check_step_refused(optimizer, params, {**grads, "a": make()}, error, ["grads['a']"])


def test_all_gradients_are_validated_before_anything_changes():
    optimizer, params, grads = used()
    check_step_refused(optimizer, params, {**grads, "c": np.ones(3, "i8")}, DtypeError, ["grads['c']", "int64"])


def test_gradients_with_wrong_names_are_refused():
    optimizer, params, grads = used()
    check_step_refused(optimizer, params, {"a": grads["a"], "b": grads["b"]}, NamesError, ["'c'", "None"])
    check_step_refused(*used()[:2], {**grads, "d": grads["b"]}, NamesError, ["'d'"])
    check_step_refused(*used()[:2], {"a": grads["a"], "b": grads["b"], "C": grads["c"]}, NamesError, ["'c'"])
    check_step_refused(*used()[:2], {}, NamesError, ["'a'"])


@pytest.mark.parametrize("grads", [[None, None, None], np.ones(3), (x for x in "abc"), 3])
def test_named_parameters_require_named_gradients(grads):
    optimizer, params, _ = used()
    check_step_refused(optimizer, params, grads, NamesError, ["grads", "names"])


@pytest.mark.parametrize("form", ["single", "list", "dict"])
def test_a_step_without_gradients_is_refused(form):
    w = np.ones(3)
    optimizer = na.Adam({"single": w, "list": [w], "dict": {"w": w}}[form])
    check_refused(optimizer.step, [w], NamesError, ["no gradients were given", "accumulate"])
    if form != "single":  # where None is the one gradient, which is missing
        check_refused(lambda: optimizer.step(None), [w], NamesError, ["grads is a NoneType"])
    assert optimizer.state == {}


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_wrong_number_of_gradients_is_refused(count):
    w = [np.ones(3), np.ones(3)]
    optimizer = na.Adam(w)
    check_refused(lambda: optimizer.step([np.ones(3)] * count), w, NamesError, [f"{count} gradients for 2 parameters"])
    assert optimizer.state == {}


@pytest.mark.parametrize("grads", [np.ones((2, 3)), {0: np.ones(3), 1: np.ones(3)}, iter([]), 3.0], ids=type)
def test_a_list_of_parameters_requires_a_list_of_gradients(grads):
    w = [np.ones(3), np.ones(3)]
    optimizer = na.Adam(w)
    check_refused(lambda: optimizer.step(grads), w, NamesError, ["grads", "list"])


@pytest.mark.parametrize("grads", [[np.ones(3)], {"w": np.ones(3)}, (np.ones(3),), [1.0, 1.0, 1.0]], ids=str)
def test_one_parameter_requires_one_gradient(grads):
    w = np.ones(3)
    optimizer = na.Adam(w)
    check_refused(lambda: optimizer.step(grads), [w], NamesError, ["grads", "one array"])


@pytest.mark.parametrize("key", ["exp_avg", "exp_avg_sq", "max_exp_avg_sq"])
@pytest.mark.parametrize("lap", ["whole", "partly"])
def test_a_gradient_in_the_states_memory_is_refused(key, lap):
    optimizer, params, grads = used(amsgrad=True)
    grads["a"] = optimizer.state["a"][key]
    if lap == "partly":
        grads["a"] = np.ones((4, 6), "f4")
        grads["b"] = optimizer.state["a"][key].reshape(-1)[3:8]
    check_step_refused(optimizer, params, grads, OverlapError, ["grads", f"{key}['a']", "share"])


@pytest.mark.parametrize("other", ["a", "b", "c"])
def test_a_gradient_in_a_parameters_memory_is_refused(other):
    optimizer, params, grads = used()
    grads["b"] = params[other].reshape(-1).view("f4")[:5]
    check_step_refused(optimizer, params, grads, OverlapError, ["grads['b']", f"params['{other}']", "share"])


def test_a_gradient_in_the_memory_of_the_other_dtypes_state_is_refused():
    optimizer, params, grads = used()
    grads["c"] = optimizer.state["a"]["exp_avg"].reshape(-1).view("f8")[:3]
    check_step_refused(optimizer, params, grads, OverlapError, ["grads['c']", "exp_avg['a']"])


def test_one_gradient_can_be_used_for_several_parameters():
    w, v = np.ones(3), np.ones(3)
    grad = np.full(3, 0.5)
    na.Adam([w, v]).step([grad, grad])
    assert w.tobytes() == v.tobytes()
    assert (w < 1).all()


def test_a_refused_first_step_creates_no_state():
    w = np.ones(3)
    optimizer = na.Adam({"w": w}, amsgrad=True)
    check_refused(lambda: optimizer.step({"w": np.ones(4)}), [w], ShapeError, ["grads['w']"])
    assert optimizer.state == {}
    assert optimizer.state_dict()["state"] == {}


def test_a_refused_step_after_switching_amsgrad_on_creates_no_state():
    optimizer, params, grads = used()
    optimizer.param_groups[0]["amsgrad"] = True
    before = seen(optimizer, params)
    check_refused(lambda: optimizer.step({**grads, "a": np.ones(3, "f4")}), [], ShapeError, ["grads['a']"])
    assert seen(optimizer, params) == before


def test_warnings_as_errors_do_not_interrupt_a_step():
    """A learning rate beyond float32 would overflow in a step, so it is refused when it is set."""
    w = np.ones(3, "f4")
    optimizer = na.Adam([w])
    with pytest.raises(HyperparameterError, match=r"lr=1e\+300"):
        optimizer.param_groups[0]["lr"] = 1e300
    assert optimizer.step([np.ones(3, "f4")]).applied
    assert np.isfinite(w).all()


FORMS = {
    "one": lambda w: (w, np.ones_like(w)),
    "several": lambda w: ([w, np.ones(2)], [np.ones_like(w), np.ones(2)]),
    "with a gradient that is no plain array": lambda w: ([w], [memoryview(np.ones_like(w))]),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_parameter_made_read_only_after_a_step_is_not_written(form):
    w = np.ones(3)
    params, grads = FORMS[form](w)
    optimizer = na.Adam(params)
    optimizer.step(grads)
    w.setflags(write=False)
    before = seen(optimizer, {"w": w})
    with pytest.raises(ReadOnlyError, match="params"):
        optimizer.step(grads)
    assert seen(optimizer, {"w": w}) == before
    w.setflags(write=True)
    optimizer.step(grads)
    assert optimizer.state[0]["step"] == 2


@pytest.mark.parametrize("name", ["param", "exp_avg"])
def test_an_array_resized_between_steps_does_not_crash_the_process(name):
    """NumPy refuses to resize an array that an optimizer uses."""
    w = np.ones(10_000)
    optimizer = na.Adam([w])
    optimizer.step([np.ones(10_000)])
    array = w if name == "param" else optimizer.state[0][name]
    with pytest.raises(ValueError, match="resize"):
        array.resize(1_000_000, refcheck=False)
    optimizer.step([np.ones(10_000)])
    assert optimizer.state[0]["step"] == 2


def test_the_functions_errors_name_its_arguments():
    param, exp_avg, exp_avg_sq = np.ones((3, 4))
    with pytest.raises(ShapeError, match=r"^grad has shape \(5,\): it must have the shape of param, "):
        na.adam_update(param, np.ones(5), exp_avg, exp_avg_sq, 1)
    with pytest.raises(OverlapError, match=r"^grad and param share memory"):
        na.adam_update(param, param, exp_avg, exp_avg_sq, 1)
    with pytest.raises(DtypeError, match=r"^exp_avg \(NumPy array\) has dtype int32, expected float32, "):
        na.adam_update(param, np.ones(4), np.ones(4, "i4"), exp_avg_sq, 1)


def test_an_object_with_a_foreign_dtype_is_refused():
    class Odd:
        dtype: ClassVar = ["f4"]

    with pytest.raises(UnsupportedArrayError, match="param"):
        na.adam_update(Odd(), Odd(), Odd(), Odd(), 1)
