"""Dense arrays with any order of axes in memory are updated in place; other arrays are refused.

The oracle is `reference`; and because an element does not care where it lies, the bits are those of a twin in C order.
"""

from __future__ import annotations

import itertools

import ml_dtypes
import numpy as np
import pytest
from reference import adam_step

import numba_adam as na
from numba_adam.errors import LayoutError, ShapeError, StateDictError

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
OPTIONS = {
    "plain": {},
    "amsgrad": {"amsgrad": True, "weight_decay": 0.1},
    "average": {"ema_decay": 0.5, "low_precision_copy": "bfloat16"},
    "narrow state": {"state_dtype": "bfloat16"},
}
STEP = {"lr": 0.1, "betas": (0.8, 0.97), "eps": 1e-3}


def laid_out(values, order):
    """Return a copy of an array with this order of axes in memory, outermost first."""
    values = np.asarray(values)
    places = tuple(int(place) for place in np.argsort(order))
    return np.array(values.transpose(order), order="C", copy=True).transpose(places)


def draw(seed, count=6):
    """Return shapes of 0 to 4 axes, with extents of 0 and 1 among them, each with a random order of its axes."""
    rng = np.random.default_rng(seed)
    extents, odds = [0, 1, 2, 3, 5, 8], [0.05, 0.2, 0.2, 0.2, 0.2, 0.15]
    shapes = [tuple(map(int, rng.choice(extents, rng.integers(0, 5), p=odds))) for _ in range(count)]
    return rng, [(shape, tuple(int(axis) for axis in rng.permutation(len(shape)))) for shape in shapes]


def arrays(rng, cases, dtype=np.float32, mix=False):
    """Return random arrays of these shapes and orders; with `mix`, of other orders."""
    made = []
    for shape, order in cases:
        values = rng.normal(size=shape).astype(dtype)
        made.append(laid_out(values, tuple(rng.permutation(len(shape))) if mix else order))
    return made


def twins(several):
    return [np.array(each, order="C", copy=True) for each in several]


def same_bits(one, other):
    return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()


@pytest.mark.parametrize("mix", [False, True], ids=["same order", "other orders"])
@pytest.mark.parametrize("seed", range(12))
def test_a_step_matches_the_reference_for_any_order_of_axes(seed, mix, dtype):
    rng, cases = draw(seed)
    params = arrays(rng, cases, dtype)
    places = [param.ctypes.data for param in params]
    expected = [(param.astype(np.float64), np.zeros(param.shape), np.zeros(param.shape)) for param in params]
    optimizer = na.Adam(params, **STEP)
    for step in range(1, 4):
        grads = arrays(rng, cases, dtype, mix)
        before = twins(grads)
        optimizer.step(grads)
        after = [adam_step(p, g, m, v, step, **STEP) for (p, m, v), g in zip(expected, before, strict=True)]
        expected = [each[:3] for each in after]
        assert all(same_bits(*pair) for pair in zip(grads, before, strict=True))
    tolerance = 1e-5 if dtype == np.float32 else 1e-13
    for k, param in enumerate(params):
        np.testing.assert_allclose(param, expected[k][0], rtol=tolerance, atol=tolerance)
        state = optimizer.state[k]
        np.testing.assert_allclose(state["exp_avg"], expected[k][1], rtol=tolerance, atol=tolerance)
        np.testing.assert_allclose(state["exp_avg_sq"], expected[k][2], rtol=tolerance, atol=tolerance)
    assert [param.ctypes.data for param in params] == places


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("treatment", [{}, {"max_grad_norm": 0.5, "clip_value": 0.3}, {"zero_grad": True}], ids=repr)
@pytest.mark.parametrize("seed", range(100, 104))
def test_every_element_has_the_same_bits_as_in_c_order(seed, options, treatment):
    rng, cases = draw(seed)
    params = arrays(rng, cases)
    others = twins(params)
    optimizers = [na.Adam(params, **STEP, **options), na.Adam(others, **STEP, **options)]
    norms = []
    for _ in range(3):
        grads = arrays(rng, cases, mix=True)
        copies = twins(grads)
        norms = [optimizers[0].step(grads, **treatment).grad_norm, optimizers[1].step(copies, **treatment).grad_norm]
        assert all(same_bits(*pair) for pair in zip(grads, copies, strict=True))
        assert not any(grad.any() for grad in grads) or "zero_grad" not in treatment
    if "max_grad_norm" in treatment:
        assert norms[0] == pytest.approx(norms[1], rel=1e-6)  # summed in the order of the memory
        return
    assert all(same_bits(*pair) for pair in zip(params, others, strict=True))
    for key, entry in optimizers[1].state.items():
        for name, array in entry.items():
            found = optimizers[0].state[key][name]
            assert found == array if name == "step" else same_bits(found, array), name
    if "ema_decay" in options:
        for name in ("ema", "low_precision"):
            kept, expected = getattr(optimizers[0], name), getattr(optimizers[1], name)
            assert all(same_bits(*pair) for pair in zip(kept, expected, strict=True))


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_state_and_copies_have_the_parameters_shape_and_strides(order):
    """As with torch.preserve_format, for moments, averages and copies."""
    param = laid_out(np.ones((2, 3, 4), np.float32), order)
    optimizer = na.Adam(param, amsgrad=True, ema_decay=0.5, low_precision_copy="float16")
    optimizer.step(np.ones((2, 3, 4), np.float32))
    kept = optimizer.state[0]
    for name in ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "ema"):
        assert (kept[name].shape, kept[name].strides) == (param.shape, param.strides), name
    assert optimizer.low_precision.strides == tuple(stride // 2 for stride in param.strides)
    assert optimizer.ema.strides == param.strides


@pytest.mark.parametrize("dtype", [np.float16, BFLOAT16, np.dtype(np.uint16)], ids=str)
@pytest.mark.parametrize("options", [{"master_weights": True}, {}, {"state_dtype": "bfloat16"}], ids=repr)
def test_16_bit_parameters_have_any_order_of_axes(dtype, options):
    rng, cases = draw(7)
    params = arrays(rng, cases, BFLOAT16 if dtype == np.uint16 else dtype)
    if dtype == np.uint16:
        params = [param.view(np.uint16) for param in params]
    others = twins(params)
    optimizers = [na.Adam(params, **STEP, **options), na.Adam(others, **STEP, **options)]
    for _ in range(3):
        grads = arrays(rng, cases, mix=True)
        for optimizer in optimizers:
            optimizer.step(grads)
    assert all(same_bits(*pair) for pair in zip(params, others, strict=True))
    if "master_weights" in options:
        assert optimizers[0].state[0]["master_param"].shape == params[0].shape


def test_accumulated_gradients_have_any_order_of_axes():
    rng, cases = draw(3)
    params = arrays(rng, cases)
    others = twins(params)
    optimizers = [na.Adam(params, **STEP), na.Adam(others, **STEP)]
    for _ in range(2):
        for _ in range(3):
            grads = arrays(rng, cases, mix=True)
            optimizers[0].accumulate(grads)
            optimizers[1].accumulate(twins(grads))
        for optimizer in optimizers:
            optimizer.step()
    assert all(same_bits(*pair) for pair in zip(params, others, strict=True))


def test_a_gradient_with_another_order_is_zeroed_only_by_the_step():
    param = np.ones((3, 4), np.float32)
    optimizer, grad = na.Adam(param), np.full((3, 4), np.inf, np.float32, order="F")
    assert not optimizer.step(grad, zero_grad=True, max_grad_norm=1.0).applied
    assert np.isinf(grad).all()
    optimizer.step(np.ones((3, 4), np.float32), zero_grad=True)
    assert np.isinf(grad).all()  # it was of a step that was left out
    grad[...] = 1
    optimizer.step(grad, zero_grad=True)
    assert not grad.any()


def test_a_large_array_in_fortran_order_is_updated_on_several_threads():
    rng = np.random.default_rng(0)
    param, other = np.asfortranarray(rng.normal(size=(700, 301))), None
    other = param.copy(order="C")
    grad = rng.normal(size=param.shape)
    na.Adam(param, lr=0.1).step(np.asfortranarray(grad))
    na.Adam(other, lr=0.1).step(grad)
    assert same_bits(param, other)


# --- adam_update ---


@pytest.mark.parametrize("seed", range(20, 30))
def test_the_function_accepts_arrays_with_the_same_order(seed, dtype):
    rng, cases = draw(seed, 1)
    param, grad, exp_avg, exp_avg_sq, largest = (arrays(rng, cases, dtype)[0] for _ in range(5))
    for array in (exp_avg_sq, largest):
        np.abs(array, out=array)
    if seed % 2:
        grad = laid_out(grad, tuple(rng.permutation(grad.ndim)))
    expected = adam_step(param, grad, exp_avg, exp_avg_sq, 3, max_exp_avg_sq=largest, **STEP)
    na.adam_update(param, grad, exp_avg, exp_avg_sq, 3, max_exp_avg_sq=largest, **STEP)
    tolerance = 1e-5 if dtype == np.float32 else 1e-13
    for found, value in zip((param, exp_avg, exp_avg_sq, largest), expected[:4], strict=True):
        np.testing.assert_allclose(found, value, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", ["exp_avg", "exp_avg_sq", "max_exp_avg_sq"])
def test_the_function_refuses_a_state_with_another_order(name):
    for order in ("C", "F"):
        given = {
            each: np.ones((3, 4), np.float32, order) for each in ("param", "exp_avg", "exp_avg_sq", "max_exp_avg_sq")
        }
        given[name] = np.ones((3, 4), np.float32, "F" if order == "C" else "C")
        before = {each: array.tobytes() for each, array in given.items()}
        with pytest.raises(LayoutError, match=rf"^{name} has strides .*in the order of param's"):
            na.adam_update(grad=np.ones((3, 4), np.float32), step=1, **given)
        assert {each: array.tobytes() for each, array in given.items()} == before


# --- state dicts ---


def trained(order, **options):
    """Return a parameter with this order of axes, and its optimizer after two steps."""
    rng = np.random.default_rng(5)
    param = laid_out(rng.normal(size=(6, 5, 9)).astype(np.float32), order)
    optimizer = na.Adam({"w": param}, **STEP, **options)
    for _ in range(2):
        optimizer.step({"w": rng.normal(size=param.shape).astype(np.float32)})
    return param, optimizer


@pytest.mark.parametrize("options", [{}, {"amsgrad": True, "ema_decay": 0.5}, {"state_dtype": "bfloat16"}], ids=repr)
@pytest.mark.parametrize("orders", list(itertools.product([(0, 1, 2), (2, 1, 0), (1, 2, 0)], repeat=2)))
def test_a_state_continues_in_an_optimizer_with_another_order(orders, options):
    param, optimizer = trained(orders[0], **options)
    other = laid_out(param, orders[1])
    resumed = na.Adam({"w": other}, **options)
    resumed.load_state_dict(optimizer.state_dict())
    grad = np.random.default_rng(6).normal(size=param.shape).astype(np.float32)
    optimizer.step({"w": grad})
    resumed.step({"w": grad})
    assert same_bits(param, other)
    assert resumed.state["w"]["exp_avg"].strides == laid_out(optimizer.state["w"]["exp_avg"], orders[1]).strides
    for name, array in optimizer.state["w"].items():
        assert name == "step" or same_bits(resumed.state["w"][name], array), name


@pytest.mark.parametrize("order", [(2, 1, 0), (1, 2, 0), (0, 2, 1)])
@pytest.mark.parametrize("amsgrad", [False, True])
def test_an_8_bit_state_continues_after_files_that_do_not_store_strides(order, amsgrad):
    """Blocks of codes follow the memory order, which the entry "axes" records."""
    param, optimizer = trained(order, state_dtype="8bit", amsgrad=amsgrad)
    saved = optimizer.state_dict()
    entry = {key: np.array(value, order="C", copy=True) for key, value in saved["state"][0].items()}
    assert entry["exp_avg"].shape == param.shape
    assert tuple(entry["axes"]) == order
    resumed = na.Adam({"w": laid_out(param, order)}, state_dtype="8bit", amsgrad=amsgrad)
    resumed.load_state_dict({**saved, "state": {0: entry}})
    for name, array in optimizer.state["w"].items():
        found = resumed.state["w"][name]
        assert found == array if name == "step" else same_bits(found, array), name


@pytest.mark.parametrize("orders", list(itertools.permutations([(0, 1, 2), (2, 1, 0), (1, 2, 0)], 2)))
def test_an_8_bit_state_loads_into_optimizers_with_any_order(orders):
    """Float state keeps its bits; codes in blocks of another order are rounded once more."""
    param, optimizer = trained(orders[0], state_dtype="8bit", amsgrad=True)
    floats = [na.Adam({"w": laid_out(param, order)}, state_dtype="float32", amsgrad=True) for order in orders]
    for each in floats:
        each.load_state_dict(optimizer.state_dict())
    again = na.Adam({"w": laid_out(param, orders[1])}, state_dtype="8bit", amsgrad=True)
    again.load_state_dict(optimizer.state_dict())
    back = na.Adam({"w": laid_out(param, orders[1])}, state_dtype="float32", amsgrad=True)
    back.load_state_dict(again.state_dict())
    for name in ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"):
        assert same_bits(floats[0].state["w"][name], floats[1].state["w"][name])
        value = floats[0].state["w"][name]
        largest = np.abs(value).max()
        np.testing.assert_allclose(back.state["w"][name], value, atol=0.02 * largest, rtol=0.05)


@pytest.mark.parametrize("axes", [(0, 1), (0, 1, 1), (0, 1, 3), "012", 3, (0.0, 1.0, 2.0)])
def test_invalid_axes_are_refused(axes):
    _, optimizer = trained((2, 1, 0), state_dtype="8bit")
    saved = optimizer.state_dict()
    saved["state"][0]["axes"] = axes
    with pytest.raises(StateDictError, match=r"state\[0\]\['axes'\]"):
        optimizer.load_state_dict(saved)


# --- what stays refused ---

SPARSE = {
    "gaps": lambda: np.ones((3, 8), np.float32)[:, ::2],
    "gaps in fortran order": lambda: np.ones((6, 4), np.float32, "F")[::2],
    "rows of a wider array": lambda: np.ones((3, 6), np.float32)[:, :4],
    "backwards": lambda: np.ones((3, 4), np.float32)[::-1],
    "backwards in fortran order": lambda: np.ones((3, 4), np.float32, "F")[:, ::-1],
    "one number": lambda: np.broadcast_to(np.float32(1), (3, 4)),
    "one row": lambda: np.broadcast_to(np.ones(4, np.float32), (3, 4)),
    "one column": lambda: np.broadcast_to(np.ones((3, 1), np.float32), (3, 4)),
    "overlapping": lambda: np.lib.stride_tricks.as_strided(np.ones(12, np.float32), (3, 4), (8, 4)),
    "a diagonal": lambda: np.lib.stride_tricks.as_strided(np.ones(40, np.float32), (3, 4), (20, 4)),
}


@pytest.mark.parametrize("make", SPARSE.values(), ids=SPARSE)
def test_arrays_that_are_not_dense_are_refused_by_name(make):
    values = make()
    good = np.ones((3, 4), np.float32)
    with pytest.raises(LayoutError, match=r"params\['w'\].*has strides.*contiguous memory, its axes in any order"):
        na.Adam({"w": values})
    optimizer = na.Adam({"w": good})
    for call in (optimizer.step, optimizer.accumulate):
        with pytest.raises(LayoutError, match=r"grads\['w'\].*has strides"):
            call({"w": values})
    optimizer.step({"w": good.copy()})
    saved = optimizer.state_dict()
    saved["state"][0] = {**saved["state"][0], "exp_avg": values}
    with pytest.raises(StateDictError, match=r"state\[0\]\['exp_avg'\].*has strides"):
        optimizer.load_state_dict(saved)
    with pytest.raises(LayoutError, match=r"^exp_avg_sq .*has strides"):
        na.adam_update(good, good.copy(), good.copy(), values, 1)
    assert optimizer.state["w"]["step"] == 1


def test_tables_of_rows_must_be_in_c_order():
    """A row must be contiguous; its gradient may have any order."""
    table, moments = np.ones((4, 3), np.float32, "F"), [np.zeros((4, 3), np.float32) for _ in range(2)]
    rows, grads = np.array([1, 3]), np.random.default_rng(1).normal(size=(2, 3)).astype(np.float32)
    with pytest.raises(LayoutError, match=r"^param .*expected C-contiguous"):
        na.adam_update_rows(table, rows, grads, *moments, 1)
    tables = [np.ones((4, 3), np.float32) for _ in range(2)]
    states = [[np.zeros((4, 3), np.float32) for _ in range(2)] for _ in range(2)]
    na.adam_update_rows(tables[0], rows, grads, *states[0], 1)
    na.adam_update_rows(tables[1], rows, np.asfortranarray(grads), *states[1], 1)
    assert same_bits(*tables)
    with pytest.raises(LayoutError, match=r"^grad_rows .*has strides"):
        na.adam_update_rows(tables[0], rows, np.repeat(grads, 2, axis=1)[:, ::2], *states[0], 2)


def test_a_gradient_with_another_shape_is_refused_in_any_order():
    param = np.ones((3, 4), np.float32, "F")
    optimizer = na.Adam({"w": param})
    with pytest.raises(ShapeError, match=r"grads\['w'\] has shape \(4, 3\).*params\['w'\], \(3, 4\)"):
        optimizer.step({"w": np.ones((4, 3), np.float32)})
    assert (param == 1).all()
