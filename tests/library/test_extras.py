"""Fused work of a step: master weights, moving averages, low-precision copies, zeroed gradients."""

from __future__ import annotations

import copy
import math
import os

import formats_reference as oracle
import ml_dtypes
import numba
import numpy as np
import pytest
from formats_reference import BFLOAT16, DTYPES, Twin, bits, values_of

import numba_adam as na
from numba_adam.errors import HyperparameterError, OverlapError, ReadOnlyError

SIZES = (1_300, 1, 0, 129)
NARROW = ("bfloat16", "bfloat16 as uint16", "float16")
COPIES = {"bfloat16": BFLOAT16, "float16": np.dtype(np.float16)}
HYPERPARAMETERS = {"weight_decay": 0.05, "decoupled_weight_decay": True, "lr": 0.02, "betas": (0.8, 0.95)}


def arrays_of(param, grad="float32", steps=4, sizes=SIZES):
    params = [values_of(size, DTYPES[param], size) for size in sizes]
    return params, [[values_of(size, DTYPES[grad], 31 * k + size) for size in sizes] for k in range(steps)]


def trained(params, grads, step=None, **options):
    optimizer = na.Adam([param.copy() for param in params], **options)
    for several in grads:
        optimizer.step([grad.copy() for grad in several], **(step or {}))
    return optimizer


def params_of(optimizer):
    return [param for group in optimizer.param_groups for param in group["params"]]


def contents(optimizer):
    """Return all bytes of an optimizer's visible state."""
    states = {
        name: {key: value.tobytes() if isinstance(value, np.ndarray) else value for key, value in state.items()}
        for name, state in optimizer.state.items()
    }
    return [param.tobytes() for param in params_of(optimizer)], states


# --- master weights ---


@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize("state", ["float32", "bfloat16", "8bit"])
@pytest.mark.parametrize("name", NARROW)
def test_with_master_weights_a_parameter_is_the_rounded_float32_parameter(name, state, amsgrad):
    params, grads = arrays_of(name, "float16")
    options = {**HYPERPARAMETERS, "state_dtype": state, "amsgrad": amsgrad}
    narrow = trained(params, grads, master_weights=True, **options)
    wide = trained([oracle.widen(param) for param in params], grads, **options)
    for index, (own, other) in enumerate(zip(params_of(narrow), params_of(wide), strict=True)):
        assert narrow.state[index]["master_param"].tobytes() == other.tobytes()
        assert own.tobytes() == oracle.encode(other, own.dtype).tobytes()
        assert own.dtype == DTYPES[name]
        for key in ("exp_avg", "exp_avg_sq"):
            assert narrow.state[index][key].tobytes() == wide.state[index][key].tobytes()


def test_master_weights_keep_changes_below_the_parameters_precision():
    with_master, without = (np.ones(4, BFLOAT16) for _ in range(2))
    optimizers = [na.Adam([with_master], lr=1e-4, master_weights=True), na.Adam([without], lr=1e-4)]
    for optimizer in optimizers:
        for _ in range(100):
            optimizer.step([np.ones(4, np.float32)])
    assert (without == 1).all()
    assert (with_master == np.float32(0.99)).all() or (np.abs(with_master.astype(np.float32) - 0.99) < 2**-8).all()


def test_float32_and_float64_parameters_have_no_master_copy():
    params = [np.ones(3, np.float32), np.ones(3, BFLOAT16), np.ones(3)]
    optimizer = na.Adam(params, master_weights=True, lr=0.5)
    optimizer.step([np.ones(3, np.float32)] * 3)
    assert ["master_param" in optimizer.state[index] for index in range(3)] == [False, True, False]
    assert (oracle.widen(params[1]) < 1).all()


def test_a_16_bit_parameter_with_a_master_copy_can_have_float64_state():
    (param, *_), grads = arrays_of("bfloat16", "float32")
    optimizer = trained([param], [several[:1] for several in grads], master_weights=True, state_dtype="float64")
    twin = Twin(param, "float64", master_weights=True)
    for several in grads:
        twin.step(several[0])
    assert optimizer.state[0]["master_param"].tobytes() == twin.master.tobytes()
    assert bits(params_of(optimizer)[0]) == bits(twin.param)


def test_a_non_finite_gradient_reaches_the_master_copy_only_without_a_finite_check():
    w = np.ones(3, BFLOAT16)
    optimizer = na.Adam([w], master_weights=True)
    optimizer.step([np.ones(3, np.float32)])
    before = contents(optimizer)
    bad = np.array([1, np.inf, np.nan], np.float32)
    assert not optimizer.step([bad], loss_scale=2.0).applied
    assert contents(optimizer) == before
    optimizer.step([bad])
    assert np.isnan(oracle.widen(w)).tolist() == [False, True, True]
    assert np.isnan(optimizer.state[0]["master_param"]).tolist() == [False, True, True]


@pytest.mark.parametrize("form", ["plain", "another buffer"])
def test_a_read_only_parameter_with_a_master_copy_is_not_written(form):
    w = np.ones(6, BFLOAT16)
    grad = np.ones(6, np.float32) if form == "plain" else memoryview(np.ones(6, np.float32))
    optimizer = na.Adam([w], master_weights=True, lr=0.5)
    optimizer.step([grad])
    w.setflags(write=False)
    before = contents(optimizer)
    with pytest.raises(ReadOnlyError, match=r"params\[0\]"):
        optimizer.step([grad])
    assert contents(optimizer) == before
    w.setflags(write=True)
    optimizer.step([grad])
    assert optimizer.state[0]["step"] == 2


# --- moving averages ---


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.999])
@pytest.mark.parametrize(("param", "state"), [
    ("float32", None), ("float64", None), ("float32", "float64"), ("float64", "float32"), ("bfloat16", None),
    ("bfloat16 as uint16", "bfloat16"), ("float16", None),
])  # fmt: skip
def test_the_average_uses_the_weights_before_rounding(param, state, decay):
    params, grads = arrays_of(param)
    optimizer = trained(params, grads, state_dtype=state, ema_decay=decay)
    for place, (array, found) in enumerate(zip(params, optimizer.ema, strict=True)):
        twin = Twin(array, state, ema_decay=decay, place=place)
        for several in grads:
            twin.step(several[place])
        assert (found.dtype, bits(found)) == (twin.real, bits(twin.ema))
        assert bits(params_of(optimizer)[place]) == bits(twin.param)


def test_an_average_does_not_change_other_bits():
    for param in ("float32", "float64", "bfloat16"):
        params, grads = arrays_of(param, param)
        with_one, without = (trained(params, grads, **options) for options in ({"ema_decay": 0.9}, {}))
        assert contents(with_one)[0] == contents(without)[0]


def test_with_master_weights_the_average_uses_the_master_copies():
    params, grads = arrays_of("bfloat16")
    narrow = trained(params, grads, master_weights=True, ema_decay=0.9)
    wide = trained([oracle.widen(param) for param in params], grads, ema_decay=0.9)
    assert [array.tobytes() for array in narrow.ema] == [array.tobytes() for array in wide.ema]


def test_parameters_without_a_gradient_keep_their_average():
    params = [np.ones(3, np.float32), np.full(3, 2, np.float32)]
    optimizer = na.Adam(params, ema_decay=0.5, lr=0.5)
    params[1][:] = 7
    optimizer.step([np.ones(3, np.float32), None])
    assert optimizer.ema[1].tolist() == [2, 2, 2]
    assert optimizer.ema[0].tolist() == pytest.approx([0.75] * 3)


def test_hyperparameters_can_change_between_steps():
    (param, *_), grads = arrays_of("bfloat16", steps=6)
    optimizer = na.Adam([param.copy()], ema_decay=0.9, low_precision_copy="float16")
    twin = Twin(param, ema_decay=0.9, low_precision_copy="float16", hyperparameters={})
    changes = [{}, {"lr": 0.1}, {"betas": (0.5, 0.6)}, {"eps": 1e-3}, {"weight_decay": 0.1}, {"maximize": True}]
    for change, several in zip(changes, grads, strict=True):
        optimizer.param_groups[0].update(change)
        twin.hyperparameters |= change
        optimizer.step([several[0]])
        twin.step(several[0])
    assert bits(optimizer.ema[0]) == bits(twin.ema)
    assert bits(optimizer.low_precision[0]) == bits(twin.copy)
    assert bits(params_of(optimizer)[0]) == bits(twin.param)


# --- low-precision copies ---


@pytest.mark.parametrize("kind", COPIES)
@pytest.mark.parametrize("param", DTYPES)
def test_the_copy_is_the_rounded_new_parameter(param, kind):
    params, grads = arrays_of(param)
    optimizer = trained(params, grads, low_precision_copy=kind, ema_decay=0.5)
    for place, (array, found) in enumerate(zip(params, optimizer.low_precision, strict=True)):
        twin = Twin(array, low_precision_copy=kind, place=place)
        for several in grads:
            twin.step(several[place])
        assert (found.dtype, bits(found)) == (COPIES[kind], bits(twin.copy))
        if param == "float32":
            assert bits(found) == bits(params_of(optimizer)[place].astype(COPIES[kind]))


@pytest.mark.parametrize(("kind", "step"), [("bfloat16", 2.0**-7), ("float16", 2.0**-10)])
def test_a_float64_parameter_near_a_tie_is_rounded_once(kind, step):
    above, below = 1 + step / 2 + 2.0**-40, 1 + 3 * step / 2 - 2.0**-40
    optimizer = na.Adam(np.array([above, below, -above, -below]), lr=0.0, low_precision_copy=kind)
    optimizer.step(np.ones(4))
    values = [float(value) for value in optimizer.low_precision.view(np.uint16 if kind == "bfloat16" else np.float16)]
    if kind == "bfloat16":
        values = [float(np.uint32(int(code) << 16).view(np.float32)) for code in values]
    assert values == [1 + step, 1 + step, -1 - step, -1 - step]


@pytest.mark.parametrize("kind", COPIES)
def test_before_the_first_step_the_copy_equals_the_parameter(kind):
    params, _ = arrays_of("float32")
    optimizer = na.Adam(params, low_precision_copy=kind)
    assert [bits(array) for array in optimizer.low_precision] == [bits(p.astype(COPIES[kind])) for p in params]


@pytest.mark.parametrize("skip", [0, 1, 5, 31])
def test_a_large_parameter_at_any_address_is_its_rounded_master_copy(skip):
    """Copies of large arrays bypass the caches in whole lines; neighbouring memory must not change."""
    size = 2**21 + 77
    memory = np.full(size + 64, 7, BFLOAT16)
    param = memory[skip : skip + size]
    param[:] = np.random.default_rng(skip).standard_normal(size, dtype=np.float32)
    optimizer = na.Adam([param], master_weights=True, lr=0.1)
    optimizer.step([np.linspace(-1, 1, size, dtype=np.float32)])
    master = optimizer.state_dict()["state"][0]["master_param"]
    assert param.tobytes() == master.astype(BFLOAT16).tobytes()
    assert (memory[:skip] == 7).all()
    assert (memory[skip + size :] == 7).all()


@pytest.mark.parametrize("kind", COPIES)
def test_the_copy_of_a_large_parameter_is_its_rounded_value(kind):
    size = 2**21 + 1
    param = np.random.default_rng(1).standard_normal(size, dtype=np.float32)
    optimizer = na.Adam([param], low_precision_copy=kind)
    optimizer.step([param.copy()])
    assert optimizer.low_precision[0].tobytes() == param.astype(DTYPES[kind]).tobytes()


def test_a_copy_too_large_for_float16_is_infinite():
    w = np.full(3, 65_519, np.float32)
    optimizer = na.Adam(w, low_precision_copy="float16", lr=1.0)
    assert optimizer.low_precision.tolist() == [65_504.0] * 3
    optimizer.step(np.float32([1, -1, -1]))
    assert optimizer.low_precision.tolist() == [65_504.0, math.inf, math.inf]


def test_master_weights_and_a_copy_cannot_be_combined():
    for dtype in (BFLOAT16, np.float32):
        with pytest.raises(HyperparameterError, match="master_weights and low_precision_copy"):
            na.Adam([np.ones(3, dtype)], master_weights=True, low_precision_copy="bfloat16")


# --- in the form of params ---


def test_copies_and_averages_have_the_form_of_the_parameters():
    options = {"ema_decay": 0.5, "low_precision_copy": "bfloat16"}
    w = np.ones((2, 3), np.float32)
    single = na.Adam(w.copy(), **options)
    listed = na.Adam([w.copy(), np.ones(())], **options)
    named = na.Adam({"b": w.copy(), "a": np.ones(2)}, **options)
    groups = na.Adam([{"params": {"x": w.copy()}}, {"params": {"y": np.ones(2)}, "lr": 1.0}], **options)
    for name in ("ema", "low_precision"):
        assert getattr(single, name).shape == (2, 3)
        assert [array.shape for array in getattr(listed, name)] == [(2, 3), ()]
        assert {key: array.shape for key, array in getattr(named, name).items()} == {"b": (2, 3), "a": (2,)}
        assert list(getattr(groups, name)) == ["x", "y"]
    assert [array.dtype for array in listed.ema] == ["float32", "float64"]
    assert [array.dtype for array in listed.low_precision] == [BFLOAT16, BFLOAT16]


@pytest.mark.parametrize(("name", "option"), [("ema", "ema_decay"), ("low_precision", "low_precision_copy")])
def test_missing_copies_are_refused_with_advice(name, option):
    for params in (np.ones(3), [np.ones(3)], {"w": np.ones(3)}):
        with pytest.raises(HyperparameterError, match=option):
            getattr(na.Adam(params), name)


# --- memory that must not be shared ---


@pytest.mark.parametrize("options", [{}, {"zero_grad": True}], ids=["reading", "zeroing"])
@pytest.mark.parametrize("name", ["ema", "low_precision", "master_param", "exp_avg", "params"])
def test_gradients_in_the_optimizers_own_memory_are_refused(name, options):
    kept = {"low_precision_copy": "bfloat16"} if name == "low_precision" else {"master_weights": True}
    optimizer = na.Adam([np.ones(64, BFLOAT16), np.ones(16, BFLOAT16)], ema_decay=0.5, **kept)
    optimizer.step([np.ones(64, np.float32), np.ones(16, np.float32)])
    own = {
        "ema": lambda: optimizer.ema[0],
        "low_precision": lambda: optimizer.low_precision[0],
        "params": lambda: params_of(optimizer)[0],
    }.get(name, lambda: optimizer.state[0][name])()
    grad = own.view(np.uint8)[32:64].view(np.uint16)
    before = contents(optimizer), own.tobytes()
    with pytest.raises(OverlapError, match=r"grads\[1\].*\[0\]"):
        optimizer.step([np.ones(64, np.float32), grad], **options)
    assert (contents(optimizer), own.tobytes()) == before


def test_copies_and_averages_cannot_be_resized():
    optimizer = na.Adam([np.ones(10_000, np.float32)], ema_decay=0.5, low_precision_copy="bfloat16")
    optimizer.step([np.ones(10_000, np.float32)])
    for array in (optimizer.ema[0], optimizer.low_precision[0]):
        with pytest.raises(ValueError, match="resize"):
            array.resize(1_000_000, refcheck=False)
    assert optimizer.step([np.ones(10_000, np.float32)]).applied


# --- state dicts ---


ROUND_TRIPS = {
    "bfloat16": ("bfloat16", {"state_dtype": "bfloat16"}),
    "at random": ("bfloat16", {"state_dtype": "bfloat16", "rounding": "stochastic", "seed": 5}),
    "8 bits": ("bfloat16", {"state_dtype": "8bit"}),
    "8 bits, AMSGrad": ("float32", {"state_dtype": "8bit", "amsgrad": True}),
    "masters": ("bfloat16", {"master_weights": True}),
    "masters of float16 with an average": ("float16", {"master_weights": True, "ema_decay": 0.9}),
    "average": ("float32", {"ema_decay": 0.9}),
    "average in float64": ("float32", {"ema_decay": 0.9, "state_dtype": "float64"}),
    "copy": ("float32", {"low_precision_copy": "bfloat16", "ema_decay": 0.5}),
}


@pytest.mark.parametrize("name", ROUND_TRIPS)
def test_a_round_trip_continues_with_the_same_bits(name):
    param, options = ROUND_TRIPS[name]
    params, grads = arrays_of(param, "float32", steps=6)
    first = trained(params, grads[:3], **options)
    saved, now = copy.deepcopy(first.state_dict()), [param.copy() for param in params_of(first)]
    second = na.Adam(now, **options)
    second.load_state_dict(saved)
    assert contents(second) == contents(first)
    for optimizer in (first, second):
        for several in grads[3:]:
            optimizer.step(several)
    assert contents(second) == contents(first)
    if "ema_decay" in options:
        assert [array.tobytes() for array in second.ema] == [array.tobytes() for array in first.ema]
    if "low_precision_copy" in options:
        assert [bits(array) for array in second.low_precision] == [bits(array) for array in first.low_precision]


FLOATS = ("float32", "float64", "bfloat16")


@pytest.mark.parametrize("new", FLOATS)
@pytest.mark.parametrize("old", FLOATS)
def test_loading_rounds_a_state_to_the_optimizers_format(old, new):
    params, grads = arrays_of("float32", "float32")
    first = trained(params, grads, state_dtype=old, amsgrad=True, ema_decay=0.5)
    second = na.Adam([param.copy() for param in params], state_dtype=new, ema_decay=0.5)
    second.load_state_dict(first.state_dict())
    for index in first.state:
        for key in ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"):
            expected = oracle.encode(oracle.widen(first.state[index][key]), DTYPES[new])
            assert (second.state[index][key].dtype, bits(second.state[index][key])) == (DTYPES[new], bits(expected))
        assert bits(second.ema[index]) == bits(first.ema[index].astype(second.ema[index].dtype))


def test_a_uint16_state_loads_as_bfloat16_bits():
    params, grads = arrays_of("float32")
    first = trained(params, grads, state_dtype="bfloat16")
    saved = copy.deepcopy(first.state_dict())
    for entry in saved["state"].values():
        entry["exp_avg"], entry["exp_avg_sq"] = entry["exp_avg"].view(np.uint16), entry["exp_avg_sq"].view(np.uint16)
    second = na.Adam([param.copy() for param in params], state_dtype="bfloat16")
    second.load_state_dict(saved)
    assert contents(second)[1] == contents(first)[1]


def test_loading_without_a_master_copy_starts_from_the_parameter():
    params, grads = arrays_of("bfloat16")
    first = trained(params, grads)
    second = na.Adam([param.copy() for param in params_of(first)], master_weights=True, ema_decay=0.5)
    second.load_state_dict(first.state_dict())
    for index, param in enumerate(params_of(second)):
        assert second.state[index]["master_param"].tobytes() == oracle.widen(param).tobytes()
        assert second.ema[index].tobytes() == oracle.widen(param).tobytes()


def test_loading_ignores_entries_that_the_optimizer_does_not_use():
    params, grads = arrays_of("bfloat16")
    first = trained(params, grads, master_weights=True, ema_decay=0.5)
    second = na.Adam([param.copy() for param in params])
    second.load_state_dict(first.state_dict())
    assert set(second.state[0]) == {"step", "exp_avg", "exp_avg_sq"}


def test_loaded_arrays_are_copied():
    params, grads = arrays_of("bfloat16")
    first = trained(params, grads, master_weights=True, ema_decay=0.5)
    second = na.Adam([param.copy() for param in params_of(first)], master_weights=True, ema_decay=0.5)
    before = contents(first)
    second.load_state_dict(first.state_dict())
    second.step(grads[0])
    assert contents(first) == before


# --- without ml_dtypes, in a child, on threads ---


def test_without_ml_dtypes_bfloat16_arrays_are_uint16(run_python):
    output = run_python(
        """
import sys
import numpy as np
import numba_adam as na
ones = np.full(5, 0x3F80, np.uint16)
w = ones.copy()
opt = na.Adam([w], lr=0.5, state_dtype="bfloat16", low_precision_copy="bfloat16", ema_decay=0.5)
opt.step([ones])
print(sorted({str(each.dtype) for each in (w, opt.state[0]["exp_avg"], opt.low_precision[0])}))
print([hex(w[0]), hex(opt.low_precision[0][0]), float(opt.ema[0].round(6)[0]), "ml_dtypes" in sys.modules])
import ml_dtypes
opt.step([ones.view(ml_dtypes.bfloat16)])
print(opt.state[0]["step"], na.Adam([ones.view(ml_dtypes.bfloat16)], low_precision_copy="bfloat16").low_precision[0])
"""
    )
    assert output.splitlines() == ["['uint16']", "['0x3f00', '0x3f00', 0.75, False]", "2 [1 1 1 1 1]"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_steps_in_every_format(run_python):
    """Parallel kernels ran before the fork; the child's steps must still be correct."""
    output = run_python(
        """
import os
import numpy as np
import numba_adam as na

def after(steps):
    w = np.full(200_000, 0x3F80, np.uint16)
    opt = na.Adam([w], lr=0.1, state_dtype="bfloat16", ema_decay=0.5, master_weights=True)
    results = [opt.step([np.full(200_000, 0x3F80, np.uint16)], max_grad_norm=1.0) for _ in range(steps)]
    return w.tobytes(), opt.ema[0].tobytes(), results[-1].grad_norm

expected = after(2)
import warnings
warnings.simplefilter("ignore", DeprecationWarning)  # Python warns of forks beside threads; that is what is tested
child = os.fork()
if child == 0:
    os._exit(0 if after(2) == expected else 1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), after(2) == expected)
""",
        NUMBA_NUM_THREADS="2",
    )
    assert output == "0 True"


@pytest.mark.parametrize("threads", [1, 2])
def test_a_large_array_with_all_options_matches_the_oracle(threads):
    before = numba.get_num_threads()
    numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))
    try:
        param, grads = values_of(70_001, BFLOAT16, 1), [values_of(70_001, BFLOAT16, k) for k in range(3)]
        twin = Twin(param, "bfloat16", {"amsgrad": True}, master_weights=True, ema_decay=0.9)
        optimizer = na.Adam(param, state_dtype="bfloat16", amsgrad=True, master_weights=True, ema_decay=0.9)
        for grad in grads:
            twin.step(grad, clip_value=0.5)
            optimizer.step(grad, clip_value=0.5, zero_grad=True)
            assert not oracle.widen(grad).any()
    finally:
        numba.set_num_threads(before)
    assert bits(param) == bits(twin.param)
    assert bits(optimizer.ema) == bits(twin.ema)
    assert bits(optimizer.state[0]["max_exp_avg_sq"]) == bits(twin.max_exp_avg_sq)
    assert ml_dtypes.bfloat16 == param.dtype


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_loading_a_state_keeps_the_array_objects(dtype):
    """A model may hold a reference to the copy."""
    params, grads = arrays_of(dtype)
    kinds = {"low_precision_copy": "float16"} if dtype == "float32" else {"master_weights": True}
    optimizer = trained(params, grads, ema_decay=0.5, **kinds)
    names = ("ema", "low_precision") if dtype == "float32" else ("ema",)
    held = {name: getattr(optimizer, name) for name in names}
    before = copy.deepcopy(optimizer.state_dict())
    optimizer.load_state_dict(optimizer.state_dict())
    assert contents(optimizer)[1] == {k: {n: v.tobytes() if hasattr(v, "tobytes") else v for n, v in state.items()}
                                      for k, state in before["state"].items()}  # fmt: skip
    for several in grads:
        optimizer.step(several)
    optimizer.load_state_dict(before)
    optimizer.step(grads[0])
    for name in names:
        for own, other in zip(held[name], getattr(optimizer, name), strict=True):
            assert own is other


@pytest.mark.parametrize("first", ["float64", "bfloat16"])
def test_random_numbers_depend_on_the_parameters_index_in_the_optimizer(first):
    """The parameter is the first of its part and the second of its optimizer; the latter index counts."""
    arrays = [values_of(50, DTYPES[first], 1), values_of(50, BFLOAT16, 2), values_of(50, np.dtype("float64"), 3)]
    grads = [values_of(50, array.dtype, 4) for array in arrays]
    optimizer = na.Adam([array.copy() for array in arrays], rounding="stochastic", seed=6, lr=0.01)
    twins = [
        Twin(array, hyperparameters={"lr": 0.01}, rounding="stochastic", seed=6, place=place)
        for place, array in enumerate(arrays)
    ]
    for _ in range(3):
        optimizer.step(grads)
        for twin, grad in zip(twins, grads, strict=True):
            twin.step(grad)
    for param, twin in zip(params_of(optimizer), twins, strict=True):
        assert bits(param) == bits(twin.param)
