"""Copied and pickled optimizers: the copy continues with the same bits on its own arrays."""

from __future__ import annotations

import copy
import functools
import importlib
import math
import threading

import numpy as np
import pytest

import numba_adam as na
from numba_adam.errors import HyperparameterError, StateDictError
from numba_adam.numerics.formats import BFLOAT16, dtype_of

# The house imports it nowhere; what others do with it to an optimizer is what is tested here.
pickle = importlib.import_module("pickle")

WAYS = {
    "deepcopy": copy.deepcopy,
    **{f"pickle {k}": lambda x, k=k: pickle.loads(pickle.dumps(x, protocol=k)) for k in range(6)},
}
KINDS = {
    "plain": ("float32", {}),
    "float64, AMSGrad": ("float64", {"amsgrad": True}),
    "bfloat16": ("bfloat16", {"state_dtype": "bfloat16", "rounding": "stochastic", "seed": 3}),
    "8 bits": ("float32", {"state_dtype": "8bit", "amsgrad": True, "ema_decay": 0.5}),
    "masters": ("float16", {"master_weights": True, "ema_decay": 0.5}),
    "copy": ("float32", {"low_precision_copy": "bfloat16"}),
}


def halves(step):
    return 0.5 / step


class Cosine:
    """A schedule that is an object."""

    def __call__(self, step):
        return 0.1 * (1 + math.cos(step))


def made(kind, sizes=(300, 5, 0, 1)):
    name, options = KINDS[kind]
    dtype = dtype_of(BFLOAT16) if name == "bfloat16" else np.dtype(name)
    rng = np.random.default_rng(1)
    params = {f"w{k}": rng.normal(size=size).astype(np.float32).astype(dtype) for k, size in enumerate(sizes)}
    groups = [
        {"params": {"w0": params["w0"]}, "lr": 0.25, "name": "first"},
        {"params": {name: array for name, array in params.items() if name != "w0"}, "weight_decay": 0.5},
    ]
    return na.AdamW(groups, lr=halves, **options), params


def grads_of(params, seed):
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=array.shape).astype(np.float32) for name, array in params.items()}


def seen(optimizer):
    state = [(name, k, np.asarray(v).tobytes()) for name, e in optimizer.state.items() for k, v in e.items()]
    params = [param.tobytes() for group in optimizer.param_groups for param in group["params"]]
    kept = []
    for name in ("ema", "low_precision"):
        try:
            kept.append([array.tobytes() for array in getattr(optimizer, name).values()])
        except HyperparameterError:
            kept.append(None)
    return state, params, kept, optimizer.state_dict()["param_groups"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", WAYS)
def test_a_copy_continues_with_the_same_bits_on_its_own_arrays(way, kind):
    optimizer, params = made(kind)
    for k in range(3):
        optimizer.step({**grads_of(params, k), "w1": None})
    other = WAYS[way](optimizer)
    assert type(other) is na.AdamW
    assert seen(other) == seen(optimizer)
    before = seen(optimizer)
    for k in range(3, 6):
        other.step(grads_of(params, k))
    assert seen(optimizer) == before
    for k in range(3, 6):
        optimizer.step(grads_of(params, k))
    assert seen(other) == seen(optimizer)
    assert (other.param_groups[0]["name"], other.param_groups[1]["lr"]) == ("first", halves)


@pytest.mark.parametrize("way", WAYS)
def test_a_model_copied_with_its_optimizer_still_shares_its_arrays(way):
    params = {"w": np.ones(300, np.float32), "v": np.ones(3, np.float32)}
    optimizer = na.Adam(params, ema_decay=0.5, low_precision_copy="float16", lr=0.5)
    grads = {name: np.ones_like(array) for name, array in params.items()}
    optimizer.step(grads)
    model = {"params": params, "average": optimizer.ema["w"], "half": optimizer.low_precision["w"]}
    models, other, again = WAYS[way]((model, optimizer, optimizer))
    assert other is again
    before = params["w"].tobytes()
    other.step(grads)
    assert other.param_groups[0]["params"][0] is models["params"]["w"]
    assert (models["average"] is other.ema["w"], models["half"] is other.low_precision["w"]) == (True, True)
    assert models["half"].tobytes() == models["params"]["w"].astype(np.float16).tobytes()
    assert params["w"].tobytes() == before != models["params"]["w"].tobytes()


@pytest.mark.parametrize("options", [{}, {"state_dtype": "8bit"}], ids=str)
@pytest.mark.parametrize("way", WAYS)
def test_a_state_follows_an_array_that_pickle_reorders(way, options):
    """Below pickle protocol 5, NumPy keeps only C and Fortran order."""
    rng = np.random.default_rng(2)
    w = rng.normal(size=(5, 6, 7)).astype(np.float32).transpose(1, 2, 0)
    optimizer, grads = na.Adam(w, lr=0.01, **options), rng.normal(size=(4, *w.shape)).astype(np.float32)
    for grad in grads[:2]:
        optimizer.step(grad)
    other = WAYS[way](optimizer)
    copied = other.param_groups[0]["params"][0]
    for grad in grads[2:]:
        for each in (optimizer, other):
            each.step(grad)
    if not options or copied.strides == w.strides:
        assert copied.tobytes() == w.tobytes()
    np.testing.assert_allclose(copied, w, atol=0.002, rtol=0)
    assert other.state[0]["step"] == 4


@pytest.mark.parametrize("way", ["deepcopy", "pickle 5"])
def test_accumulated_gradients_are_copied(way):
    optimizer, params = made("plain")
    optimizer.step(grads_of(params, 0))
    optimizer.accumulate({**grads_of(params, 1), "w1": None})
    optimizer.accumulate({**grads_of(params, 2), "w1": None})
    other = WAYS[way](optimizer)
    for each in (optimizer, other):
        each.step()
    assert seen(other) == seen(optimizer)
    assert other.state["w1"]["step"] == 1
    with pytest.raises(na.errors.NamesError, match="no gradients were given or accumulated"):
        other.step()


@pytest.mark.parametrize("way", ["deepcopy", "pickle 5"])
@pytest.mark.parametrize("dtypes", [("float32", "float64"), ("float32", "float32")])
def test_accumulated_none_for_all_parameters_of_one_dtype_is_copied(dtypes, way):
    v, w = (np.ones(3, dtype) for dtype in dtypes)
    optimizer = na.Adam([v, w], lr=0.5)
    optimizer.accumulate([np.ones(3, np.float32), None])
    other = WAYS[way](optimizer)
    assert other.step().applied
    assert [array.round(6).tolist() for array in other.param_groups[0]["params"]] == [[0.5] * 3, [1.0] * 3]
    assert list(other.state) == [0]


@pytest.mark.parametrize("way", ["deepcopy", "pickle 5"])
def test_accumulated_none_for_all_parameters_is_copied(way):
    optimizer = na.Adam([np.ones(3)], lr=0.5)
    optimizer.accumulate([None])
    other = WAYS[way](optimizer)
    assert other.step().applied
    assert not other.state


@pytest.mark.parametrize("form", [lambda w: w, lambda w: [w], lambda w: {"w": w}], ids=["one", "list", "dict"])
def test_an_optimizer_in_every_form_can_be_copied_before_its_first_step(form):
    w = np.ones(3)
    optimizer = na.Adam(form(w), lr=0.5)
    other = copy.deepcopy(optimizer)
    assert other.state == {}
    other.step(form(np.ones(3)))
    assert (w == 1).all()
    assert (other.param_groups[0]["params"][0] != 1).all()


@pytest.mark.parametrize("schedule", [halves, Cosine(), functools.partial(pow, 0.5), lambda step: 0.5 / step])
def test_schedules_are_copied(schedule):
    optimizer = na.Adam([np.ones(3)], lr=schedule)
    optimizer.step([np.ones(3)])
    other = copy.deepcopy(optimizer)
    for each in (optimizer, other):
        each.step([np.ones(3)])
    assert seen_list(other) == seen_list(optimizer)


def seen_list(optimizer):
    return [param.tobytes() for param in optimizer.param_groups[0]["params"]], optimizer.state[0]["exp_avg"].tobytes()


def nested():
    def inner(step):
        return 0.5 / step

    return inner


@pytest.mark.parametrize("schedule", [lambda step: 0.5 / step, nested(), functools.partial(nested())])
def test_a_schedule_that_cannot_be_pickled_is_named_with_advice(schedule):
    optimizer = na.Adam([np.ones(3)], lr=schedule)
    with pytest.raises(HyperparameterError, match=r"(<lambda>|inner).*cannot be pickled.*top level of a module"):
        pickle.dumps(optimizer)
    for good in (halves, Cosine()):
        optimizer.param_groups[0]["lr"] = good
        assert pickle.loads(pickle.dumps(optimizer)).param_groups[0]["lr"] is not None


class Counting(na.Adam):
    """A user's subclass."""

    def __init__(self, params):
        self.count = 0
        super().__init__(params)
        self.note = ["kept"]


def test_a_subclass_keeps_its_attributes_but_not_wrapped_methods():
    optimizer = Counting([np.ones(3)])
    optimizer.count, wrapped = 5, []
    step = optimizer.step
    optimizer.step = lambda grads: wrapped.append(1) or step(grads)
    for other in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        assert (type(other), other.count, other.note) == (Counting, 5, ["kept"])
        assert other.note is not optimizer.note
        other.step([np.ones(3)])
        assert (optimizer.state, wrapped) == ({}, [])


def test_an_unpickled_optimizer_has_its_own_locks_and_pickles_again():
    optimizer, params = made("plain")
    other = pickle.loads(pickle.dumps(copy.deepcopy(optimizer)))
    threads = [threading.Thread(target=each.step, args=[grads_of(params, 0)]) for each in (optimizer, other)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen(other) == seen(optimizer)


def test_read_only_pickle_buffers_are_copied_for_the_optimizers_arrays():
    params = [np.ones(300, np.float32)]
    optimizer = na.Adam(params, ema_decay=0.5)
    optimizer.step([np.ones(300, np.float32)])
    buffers = []
    data = pickle.dumps(optimizer, protocol=5, buffer_callback=buffers.append)
    raw = [bytes(buffer.raw()) for buffer in buffers]
    with pytest.raises(na.errors.ReadOnlyError, match=r"params\[0\]"):
        pickle.loads(data, buffers=raw)
    other = pickle.loads(data, buffers=[bytearray(each) for each in raw])
    for each in (optimizer, other):
        each.step([np.ones(300, np.float32)])
    assert seen_list(other) == seen_list(optimizer)


def test_parameters_in_other_memory_than_numpys_are_copied_or_refused():
    import array

    other = copy.deepcopy(na.Adam([array.array("f", [1, 2])], lr=0.5))
    other.step([np.ones(2, np.float32)])
    assert other.param_groups[0]["params"][0].tolist() == pytest.approx([0.5, 1.5])
    for duplicate in (copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match=r"params\[0\] is a memoryview.*np\.asarray"):
            duplicate(na.Adam([memoryview(np.ones(3))]))


def test_a_pickle_with_another_format_is_refused():
    said = na.Adam([np.ones(3)]).__getstate__()
    other = na.Adam.__new__(na.Adam)
    for format_ in (0, 2, None):
        with pytest.raises(StateDictError, match=r"format.*expected 1"):
            other.__setstate__({**said, "format": format_})
