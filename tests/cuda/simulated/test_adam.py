"""Adam and AdamW over GPU arrays, alone or with CPU arrays: every bit equals that of an optimizer on the CPU."""

import copy
import math

import numpy as np
import pytest
from lending import STREAM, Capsule, Interface, on_gpu
from training import bits, draw, expect_same_state, expect_same_training

import numba_adam as na
from numba_adam.cuda import CudaArray
from numba_adam.cuda.memory import download

OPTIONS = [
    {},
    {"amsgrad": True, "eps_mode": "algorithm1", "maximize": True},
    {"lr": lambda step: 0.1 / step},
    {"state_dtype": "bfloat16"},
    {"rounding": "stochastic", "seed": 5},
    {"rounding": "stochastic", "state_dtype": "bfloat16", "amsgrad": True},
    {"rounding": "stochastic", "low_precision_copy": "bfloat16", "ema_decay": 0.9},
    {"rounding": "stochastic", "master_weights": True, "state_dtype": "bfloat16"},
    {"state_dtype": "8bit", "rounding": "stochastic"},
    {"ema_decay": 0.9},
    {"low_precision_copy": "float16"},
    {"master_weights": True, "ema_decay": 0.5},
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: ",".join(map(str, options.values())) or "plain")
@pytest.mark.parametrize("on_cpu", [(), (0, 2)], ids=["GPU", "mixed"])
def test_every_option_has_the_cpus_bits(options, on_cpu):
    expect_same_training(("uint16", "float32", "uint16"), on_cpu, **options)


@pytest.mark.parametrize("on_cpu", [(), (1,)], ids=["GPU", "mixed"])
def test_float32_and_float64_parameters_are_two_parts_of_one_optimizer(on_cpu):
    expect_same_training(("float32", "float64", "float32"), on_cpu)
    expect_same_training(("float32", "float64", "float32"), on_cpu, state_dtype="float32")
    expect_same_training(("float32", "float32"), on_cpu, state_dtype="float64")


CALLS = [
    {"grad_scale": 0.5, "clip_value": 0.3},
    {"max_grad_norm": 0.5},
    {"loss_scale": 8.0},
    {"loss_scale": 3.0, "max_grad_norm": 1e9, "zero_grad": True},
]


@pytest.mark.parametrize("call", CALLS, ids=lambda call: ",".join(call))
def test_scaled_and_clipped_steps_have_the_cpus_bits_and_norm(call):
    expect_same_training(("float32",) * 3, call=call)
    expect_same_training(("float32",) * 3, call=call, grad_dtypes=("float16", "uint16", "float32"))


def test_parameters_on_the_cpu_and_a_gpu_have_one_norm():
    """The sums of both parts are added in order, as for two parts on the CPU."""
    params, grads = draw(1, "float32", "float32"), draw(2, "float32", "float32")
    copies = draw(1, "float32", "float32")
    ours, theirs = na.Adam([params[0], Interface(params[1])]), na.Adam(copies)
    result = ours.step([grads[0], Interface(grads[1])], max_grad_norm=1e-3)
    np.testing.assert_allclose(result.grad_norm, math.sqrt(sum((grad.astype("f8") ** 2).sum() for grad in grads)))
    theirs.step(grads, grad_scale=1e-3 / (result.grad_norm + 1e-6))
    assert [bits(param) for param in params] == [bits(copy) for copy in copies]


@pytest.mark.parametrize("on_cpu", [(), (0,)], ids=["GPU", "mixed"])
def test_a_non_finite_gradient_skips_the_step(on_cpu):
    params, grads = draw(1, "float32", "float32"), draw(2, "float32", "float32")
    before = [bits(param) for param in params]
    grads[1][7] = np.inf
    asked = []
    schedule = {"lr": lambda step: asked.append(step) or 0.1}
    optimizer = na.Adam([params[0] if on_cpu else Interface(params[0]), Interface(params[1])], **schedule)
    lent = [grads[0] if on_cpu else Interface(grads[0]), Interface(grads[1])]
    for _ in range(2):
        result = optimizer.step(lent, loss_scale=2.0)
        assert (result.applied, result.grad_norm) == (False, math.inf)
    assert [bits(param) for param in params] == before
    assert optimizer.state == {}
    grads[1][7] = 0
    assert optimizer.step(lent, loss_scale=2.0).applied
    assert optimizer.step(lent, loss_scale=2.0).applied
    assert asked == [1, 1, 1, 1, 2]  # the first when it was made
    assert [state["step"] for state in optimizer.state.values()] == [2, 2]


def test_results_can_be_read_at_any_later_time():
    """Each step writes a record; when all records are unread, the oldest is read first."""
    param, grad = np.ones(3, "f4"), np.ones(3, "f4")
    optimizer, grads = na.Adam(Interface(param)), []
    for step in range(70):
        grad[...] = np.nan if step % 3 == 0 else step
        grads.append(optimizer.step(Interface(grad), max_grad_norm=1.0))
    assert [result.applied for result in grads] == [step % 3 != 0 for step in range(70)]
    assert grads[5].grad_norm == pytest.approx(5 * math.sqrt(3))
    assert grads[5] == na.StepResult(True, grads[5].grad_norm)
    assert len({grads[5], na.StepResult(True, grads[5].grad_norm)}) == 1
    assert optimizer.state[0]["step"] == 46


def test_one_array_a_dict_and_groups_have_the_cpus_bits():
    whole, param, other = np.ones((2, 3), "f4"), np.ones(3, "f4"), np.ones(3, "f4")
    na.Adam(Interface(whole), lr=0.5).step(Capsule(np.ones((2, 3), "f4")))
    np.testing.assert_allclose(whole, 0.5, rtol=1e-6)
    optimizer = na.Adam(
        [{"params": {"a": Interface(param)}, "lr": 0.5}, {"params": {"b": Capsule(other), "c": np.ones(1)}, "lr": 0.25}]
    )
    optimizer.step({"c": None, "b": Interface(np.ones(3, "f4")), "a": Interface(np.ones(3, "f4"))})
    np.testing.assert_allclose(param, 0.5, rtol=1e-6)
    np.testing.assert_allclose(other, 0.75, rtol=1e-6)
    assert set(optimizer.state) == {"a", "b"}
    optimizer.param_groups[0]["lr"] = 0.0
    optimizer.step({"a": Interface(np.ones(3, "f4")), "b": None, "c": np.ones(1)})
    np.testing.assert_allclose(param, 0.5, rtol=1e-6)
    assert [state["step"] for state in optimizer.state.values()] == [2, 1, 1]


def test_amsgrad_can_be_switched_on_later():
    params, copies = draw(1, "float32", "float32"), draw(1, "float32", "float32")
    ours, theirs = na.Adam(on_gpu(*params)), na.Adam(copies)
    for seed in range(2, 6):
        if seed == 4:
            ours.param_groups[0]["amsgrad"] = theirs.param_groups[0]["amsgrad"] = True
        grads = draw(seed, "float32", "float32")
        ours.step(on_gpu(*grads))
        theirs.step(grads)
    assert [bits(param) for param in params] == [bits(copy) for copy in copies]
    expect_same_state(ours, theirs)


@pytest.mark.parametrize(
    "options",
    [
        {"amsgrad": True},
        {"state_dtype": "bfloat16", "rounding": "stochastic"},
        {"master_weights": True, "ema_decay": 0.9},
        {"state_dtype": "8bit", "amsgrad": True},
    ],
    ids=lambda options: ",".join(options),
)
@pytest.mark.parametrize("back", [False, True], ids=["CPU to GPU", "GPU to CPU"])
def test_a_state_dict_loads_from_gpu_to_cpu_and_back(options, back):
    dtypes = ("uint16", "float32", "uint16")
    ours, theirs = expect_same_training(dtypes, **options)
    params, copies = draw(9, *dtypes), draw(9, *dtypes)
    ours_state, theirs_state = ours.state_dict(), theirs.state_dict()
    there, here = na.AdamW(on_gpu(*params), **options), na.AdamW(copies, **options)
    there.load_state_dict(ours_state if back else theirs_state)
    here.load_state_dict(theirs_state if back else ours_state)
    expect_same_state(there, here)
    grads = draw(10, *dtypes)
    there.step(on_gpu(*grads))
    here.step(grads)
    assert [bits(param) for param in params] == [bits(copy) for copy in copies]
    expect_same_state(there, here)


def test_every_entry_of_a_gpus_state_dict_is_a_copy():
    (param,), (grad,) = draw(1, "float32"), draw(2, "float32")
    optimizer = na.Adam(on_gpu(param), ema_decay=0.5, amsgrad=True)
    optimizer.step(on_gpu(grad))
    taken = optimizer.state_dict()["state"][0]
    before = {key: value.tobytes() for key, value in taken.items()}
    for scale in (None, 2.0):  # counted here, and on the GPU
        optimizer.step(on_gpu(grad), loss_scale=scale)
    assert {key: value.tobytes() for key, value in taken.items()} == before
    assert optimizer.state[0]["step"] == 3


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy])
def test_copying_an_optimizer_of_gpu_arrays_is_refused(duplicate):
    (param,) = draw(1, "float32")
    with pytest.raises(TypeError, match="load_state_dict"):
        duplicate(na.Adam(on_gpu(param)))


def test_an_infinite_norm_measures_and_clips_nothing():
    (param,), (other,), (grad,) = draw(1, "float32"), draw(1, "float32"), draw(2, "float32")
    result = na.Adam(on_gpu(param)).step(on_gpu(grad), max_grad_norm=math.inf)
    na.Adam(on_gpu(other)).step(on_gpu(grad))
    assert result.applied
    assert result.grad_norm == pytest.approx(float(np.linalg.norm(grad.astype(np.float64))))
    assert bits(param) == bits(other)


def test_8_bit_state_loads_as_floats():
    params, copies, grads = (draw(seed, "float32", "float32") for seed in (1, 1, 2))
    source = na.Adam(draw(1, "float32", "float32"), state_dtype="8bit")
    source.step(grads)
    ours, theirs = na.Adam(on_gpu(*params)), na.Adam(copies)
    ours.load_state_dict(source.state_dict())
    theirs.load_state_dict(source.state_dict())
    expect_same_state(ours, theirs)


def test_averages_and_copies_are_on_the_gpu():
    params, copies = draw(1, "float32", "float32"), draw(1, "float32", "float32")
    options = {"ema_decay": 0.9, "low_precision_copy": "bfloat16"}
    ours = na.Adam({"a": Interface(params[0]), "b": Interface(params[1])}, **options)
    theirs = na.Adam({"a": copies[0], "b": copies[1]}, **options)
    grads = draw(2, "float32", "float32")
    ours.step(dict(zip("ab", on_gpu(*grads), strict=True)))
    theirs.step(dict(zip("ab", grads, strict=True)))
    for kept, expected in ((ours.ema, theirs.ema), (ours.low_precision, theirs.low_precision)):
        assert set(kept) == {"a", "b"}
        assert all(type(array) is CudaArray for array in kept.values())
        assert all(bits(download(kept[name])) == bits(expected[name]) for name in "ab")
    assert ours.ema["a"].__cuda_array_interface__["stream"] == STREAM
    before = ours.ema["a"].address
    ours.load_state_dict(theirs.state_dict())
    assert ours.ema["a"].address == before
    assert bits(download(ours.ema["a"])) == bits(theirs.ema["a"])


def test_the_loss_scale_can_be_on_the_gpu():
    param, copy, grad = np.ones(40, "f4"), np.ones(40, "f4"), np.linspace(1, 2, 40, dtype="f4")
    ours, theirs = na.Adam(Interface(param)), na.Adam(copy)
    scale = np.array(4.0, "f4")
    for value in (4.0, 16.0):
        scale[...] = value
        result = ours.step(Interface(grad), loss_scale=Interface(scale), max_grad_norm=0.1)
        assert result == theirs.step(grad, loss_scale=value, max_grad_norm=0.1)
    assert bits(param) == bits(copy)


def test_the_function_updates_gpu_arrays():
    arrays = [np.ones(5, "f4"), np.full(5, 0.5, "f4"), *np.zeros((3, 5), "f4")]
    copies = [array.copy() for array in arrays]
    for step in (1, 2):
        lent = on_gpu(*arrays)
        na.adam_update(*lent[:4], step, lr=0.1, grad_scale=0.5, max_exp_avg_sq=lent[4])
        na.adam_update(*copies[:4], step, lr=0.1, grad_scale=0.5, max_exp_avg_sq=copies[4])
    assert [bits(array) for array in arrays] == [bits(copy) for copy in copies]


def test_warmup_compiles_every_format():
    assert list(na.warmup("cuda")) == ["cuda"]


@pytest.mark.parametrize(("dtype", "state"), [("float64", "float64"), ("float32", "float64"), ("float64", "float32")])
@pytest.mark.parametrize("copy", ["bfloat16", "float16"])
def test_copies_of_float64_parameters_are_rounded_as_on_the_cpu(dtype, state, copy):
    """Numbers next to a tie, rounded once, or twice by way of float32."""
    ties = np.array([1 + 2.0**-8, 1 + 2.0**-11, 1 + 3 * 2.0**-8, 1 + 3 * 2.0**-11])
    values = np.concatenate([ties, ties + 2.0**-40, ties - 2.0**-40, ties + 2.0**-23, -ties - 2.0**-40]).astype(dtype)
    params = values.copy(), values.copy()
    options = {"lr": 1e-13, "state_dtype": state, "low_precision_copy": copy}
    ours, theirs = na.Adam(Interface(params[0]), **options), na.Adam(params[1], **options)
    grad = np.where(np.arange(values.size) % 2, 1.0, -1.0).astype(dtype)
    ours.step(Interface(grad))
    theirs.step(grad)
    assert bits(params[0]) == bits(params[1])
    assert bits(download(ours.low_precision)) == bits(theirs.low_precision)
