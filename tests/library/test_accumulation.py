"""Accumulation of gradients over micro-batches, and steps with the sums."""

from __future__ import annotations

import math
import os
import threading
from array import array as buffer

import formats_reference as oracle
import numba
import numpy as np
import pytest
from formats_reference import DTYPES, values_of

import numba_adam as na
from numba_adam.errors import ArrayError, HyperparameterError, NamesError, OverlapError, ReadOnlyError, ShapeError

SIZES = (5, 8_192, 8_193, 0, 40_000, 31)


def draws(count, dtype="float32", sizes=SIZES, seed=0):
    return [[values_of(size, DTYPES[dtype], 97 * k + size + seed) for size in sizes] for k in range(count)]


def ones(dtype="float32", sizes=SIZES):
    return [oracle.encode(np.ones(size), DTYPES[dtype]) for size in sizes]


def sums_of(batches, real):
    """Return the sum of several micro-batches' gradients, added in order; None without a gradient."""
    totals = []
    for grads in zip(*batches, strict=True):
        given = [oracle.widen(grad).astype(real) for grad in grads if grad is not None]
        total = None
        if given:
            total = np.zeros(given[0].shape, real)
            for grad in given:
                total = total + grad
        totals.append(total)
    return totals


def contents(optimizer):
    """Return all bytes of an optimizer's visible state."""
    states = {
        name: {key: value.tobytes() if isinstance(value, np.ndarray) else value for key, value in state.items()}
        for name, state in optimizer.state.items()
    }
    return [param.tobytes() for group in optimizer.param_groups for param in group["params"]], states


def accumulated(params, batches, step=None, **options):
    optimizer = na.Adam([param.copy() for param in params], **options)
    for grads in batches:
        optimizer.accumulate(grads)
    return optimizer, optimizer.step(**(step or {}))


def stepped(params, grads, step=None, **options):
    optimizer = na.Adam([param.copy() for param in params], **options)
    return optimizer, optimizer.step(grads, **(step or {}))


# --- what is computed ---


@pytest.mark.parametrize("grad", DTYPES)
@pytest.mark.parametrize(("param", "state", "real"), [
    ("float32", None, "float32"), ("float64", None, "float64"), ("float32", "float64", "float64"),
    ("bfloat16", "bfloat16", "float32"), ("float16", "8bit", "float32"),
])  # fmt: skip
def test_sums_are_added_in_order_in_the_compute_dtype(param, state, real, grad):
    params, batches = ones(param), draws(4, grad)
    own, _ = accumulated(params, batches, {"accumulation": "sum"}, state_dtype=state)
    by_hand, _ = stepped(params, sums_of(batches, real), state_dtype=state)
    assert contents(own) == contents(by_hand)


@pytest.mark.parametrize("count", [1, 2, 3, 7])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_mean_is_the_sum_times_one_over_the_count(dtype, count):
    params, batches = ones(dtype), draws(count, dtype)
    own, _ = accumulated(params, batches)
    by_hand, _ = stepped(params, sums_of(batches, dtype), {"grad_scale": 1 / count})
    assert contents(own) == contents(by_hand)
    means = [sum(grad.astype(np.float64) for grad in grads) / count for grads in zip(*batches, strict=True)]
    for state, mean in zip(own.state.values(), means, strict=True):
        scale = 1e-6 if dtype == "float32" else 1e-14
        np.testing.assert_allclose(state["exp_avg"], 0.1 * mean, rtol=scale, atol=scale * 4)


@pytest.mark.parametrize("step", [
    {"grad_scale": 0.5}, {"loss_scale": 8.0}, {"max_grad_norm": 1.0}, {"clip_value": 0.25},
    {"loss_scale": 4.0, "max_grad_norm": 3.0, "clip_value": 0.1},
], ids=str)  # fmt: skip
@pytest.mark.parametrize("kind", ["mean", "sum"])
def test_scaling_and_clipping_apply_to_the_mean_or_the_sum(kind, step):
    params, batches = ones(), draws(4)
    own, result = accumulated(params, batches, {**step, "accumulation": kind})
    share = np.float32(0.25 if kind == "mean" else 1.0)  # exact, so that the order of the factors does not matter
    by_hand, other = stepped(params, [share * total for total in sums_of(batches, "float32")], step)
    assert contents(own) == contents(by_hand)
    assert result == other


def test_the_norm_is_the_norm_of_the_mean():
    batches = draws(3)
    _, result = accumulated(ones(), batches, {"max_grad_norm": 1e9})
    squares = math.fsum(float(x) ** 2 for total in sums_of(batches, "float32") for x in total)
    assert result.grad_norm == pytest.approx(math.sqrt(squares) / 3, rel=1e-13)


def test_several_rounds_of_accumulation_can_follow_each_other():
    params = ones()
    own = na.Adam([param.copy() for param in params])
    by_hand = na.Adam([param.copy() for param in params])
    for turn in range(4):
        batches = draws(turn + 1, seed=1_000 * turn)
        for grads in batches:
            own.accumulate(grads)
        own.step(accumulation="sum")
        by_hand.step(sums_of(batches, "float32"))
        own.step(batches[0])  # and plain steps between them
        by_hand.step(batches[0])
    assert contents(own) == contents(by_hand)


def test_the_number_of_threads_does_not_change_the_bits():
    found, before = set(), numba.get_num_threads()
    try:
        for threads in range(1, before + 1):
            numba.set_num_threads(threads)
            optimizer, result = accumulated(ones(), draws(3, "bfloat16"), {"max_grad_norm": 1.0})
            found.add((str(contents(optimizer)), result.grad_norm))
    finally:
        numba.set_num_threads(before)
    assert len(found) == 1


def test_averages_copies_and_master_weights_are_updated():
    params, batches = ones("bfloat16"), draws(3, "bfloat16")
    for options in ({"master_weights": True, "ema_decay": 0.5}, {"low_precision_copy": "float16", "ema_decay": 0.5}):
        own, _ = accumulated(params, batches, {"accumulation": "sum"}, **options)
        by_hand, _ = stepped(params, sums_of(batches, "float32"), **options)
        assert contents(own) == contents(by_hand)
        assert [a.tobytes() for a in own.ema] == [a.tobytes() for a in by_hand.ema]


# --- the caller's gradients ---


def test_gradients_are_not_changed_and_can_be_reused():
    optimizer, grad = na.Adam([np.zeros(3, np.float32)], lr=1.0, betas=(0.0, 0.0)), np.ones(3, np.float32)
    for _ in range(3):
        optimizer.accumulate([grad])
        grad += 1
    assert grad.tolist() == [4, 4, 4]
    optimizer.step(accumulation="sum", zero_grad=True)
    assert grad.tolist() == [4, 4, 4]
    assert optimizer.state[0]["exp_avg"].tolist() == [6, 6, 6]


def test_gradients_may_be_read_only_shared_or_any_buffer():
    grad = np.arange(6, dtype=np.float32)
    grad.setflags(write=False)
    optimizer = na.Adam([np.zeros(4, np.float32), np.zeros(4, np.float32)], betas=(0.0, 0.0))
    optimizer.accumulate([grad[:4], grad[2:]])
    optimizer.accumulate([memoryview(grad[:4]), buffer("f", [1, 1, 1, 1])])
    optimizer.step(accumulation="sum")
    assert [state["exp_avg"].tolist() for state in optimizer.state.values()] == [[0, 2, 4, 6], [3, 4, 5, 6]]


@pytest.mark.parametrize("form", ["one", "dict", "groups"])
def test_gradients_have_the_same_form_as_the_parameters(form):
    w, grad = np.zeros(3), np.ones(3)
    params, grads = {
        "one": (w, grad),
        "dict": ({"w": w}, {"w": grad}),
        "groups": ([{"params": {"w": w}}], {"w": grad}),
    }[form]
    optimizer = na.Adam(params, betas=(0.0, 0.0))
    optimizer.accumulate(grads)
    optimizer.accumulate(grads)
    assert optimizer.step().applied
    assert next(iter(optimizer.state.values()))["exp_avg"].tolist() == [1, 1, 1]


def test_none_counts_as_a_zero_gradient_in_the_mean():
    params, batches = ones(), draws(4)
    for k, grads in enumerate(batches):
        grads[k] = grads[4] = None
    own, _ = accumulated(params, batches)
    by_hand, _ = stepped(params, sums_of(batches, "float32"), {"grad_scale": 0.25})
    assert contents(own) == contents(by_hand)
    assert 4 not in own.state


def test_a_parameter_without_a_gradient_in_this_round_does_not_change():
    params = [np.ones(3), np.ones(3, np.float32)]
    optimizer = na.Adam(params, lr=0.5)
    for _ in range(2):
        optimizer.accumulate([np.ones(3), np.ones(3)])
        optimizer.step()
    before = params[0].tobytes()
    optimizer.accumulate([None, np.ones(3)])
    optimizer.step()
    assert [optimizer.state[k]["step"] for k in range(2)] == [2, 3]
    assert params[0].tobytes() == before


def test_a_step_with_only_none_gradients_changes_nothing():
    optimizer = na.Adam([np.ones(3)])
    optimizer.accumulate([None])
    assert optimizer.step().applied
    assert optimizer.state == {}
    with pytest.raises(NamesError):
        optimizer.step()


# --- steps that are left out, and sums that are dropped ---


@pytest.mark.parametrize("step", [{"loss_scale": 2.0}, {"max_grad_norm": 1.0}], ids=str)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_skipped_step_drops_the_sums(bad, step):
    params = [np.ones(3), np.ones(40_000, np.float32)]
    optimizer = na.Adam(params)
    optimizer.accumulate([np.ones(3), np.ones(40_000)])
    spoilt = np.ones(40_000)
    spoilt[39_999] = bad
    optimizer.accumulate([None, spoilt])
    before = contents(optimizer)
    assert not optimizer.step(**step).applied
    assert contents(optimizer) == before
    with pytest.raises(NamesError, match="accumulate"):
        optimizer.step(**step)
    optimizer.accumulate([np.ones(3), np.ones(40_000)])
    assert optimizer.step(**step).applied
    other, _ = stepped([np.ones(3), np.ones(40_000, np.float32)], [np.ones(3), np.ones(40_000)], step)
    assert contents(optimizer) == contents(other)


def test_an_overflow_of_a_sum_is_detected():
    optimizer = na.Adam([np.ones(2, np.float32)])
    for _ in range(2):
        optimizer.accumulate([np.full(2, 3e38, np.float32)])
    assert not optimizer.step(loss_scale=1.0).applied
    assert optimizer.state == {}


def test_without_a_finite_check_non_finite_sums_are_used_and_then_reset():
    optimizer = na.Adam([np.ones(2)])
    optimizer.accumulate([np.array([1.0, np.nan])])
    assert optimizer.step().applied
    optimizer.accumulate([np.ones(2)])
    assert optimizer.step(loss_scale=1.0).applied


def test_accumulated_gradients_can_be_dropped():
    params, grads = ones(), draws(1)[0]
    optimizer = na.Adam([param.copy() for param in params])
    optimizer.drop_accumulated()  # nothing yet
    optimizer.accumulate([np.full(size, np.nan, np.float32) for size in SIZES])
    optimizer.drop_accumulated()
    assert optimizer.state == {}
    with pytest.raises(NamesError):
        optimizer.step()
    optimizer.accumulate(grads)
    optimizer.step()
    assert contents(optimizer) == contents(stepped(params, grads)[0])


# --- refusals ---


def test_a_step_without_gradients_requires_accumulated_ones():
    for params in (np.ones(3), [np.ones(3)], {"w": np.ones(3)}):
        optimizer = na.Adam(params)
        with pytest.raises(NamesError, match="accumulate"):
            optimizer.step()
        assert optimizer.state == {}


def test_a_step_with_gradients_while_sums_exist_is_refused_with_advice():
    optimizer = na.Adam([np.ones(3)])
    optimizer.accumulate([np.ones(3)])
    optimizer.accumulate([np.ones(3)])
    with pytest.raises(NamesError, match=r"2 micro-batches.*drop_accumulated"):
        optimizer.step([np.ones(3)])
    assert optimizer.state == {}
    assert optimizer.step().applied


@pytest.mark.parametrize("value", ["average", None, 1, np.ones(2), ["mean"]], ids=repr)
def test_an_unknown_accumulation_is_refused_and_the_sums_are_kept(value):
    optimizer = na.Adam([np.ones(3)])
    with pytest.raises(HyperparameterError, match="accumulation"):
        optimizer.step([np.ones(3)], accumulation=value)
    optimizer.accumulate([np.ones(3)])
    with pytest.raises(HyperparameterError, match="accumulation"):
        optimizer.step(accumulation=value)
    assert optimizer.state == {}
    assert optimizer.step().applied


WRONG = {
    "shape": (ShapeError, lambda: np.ones(4)),
    "dtype": (ArrayError, lambda: np.ones(3, np.int32)),
    "layout": (ArrayError, lambda: np.ones((3, 2))[:, 0]),
}


@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize("place", range(3))
@pytest.mark.parametrize("name", WRONG)
def test_an_unsuitable_gradient_changes_no_sum(name, place, warm):
    error, make = WRONG[name]
    optimizer = na.Adam([np.ones(3, np.float32), np.ones(3), np.ones(3, np.float32)], betas=(0.0, 0.0))
    count = 1 if warm else 0
    if warm:
        optimizer.accumulate([np.ones(3)] * 3)
    grads = [np.ones(3)] * 3
    grads[place] = make()
    with pytest.raises(error, match=rf"grads\[{place}\]"):
        optimizer.accumulate(grads)
    optimizer.accumulate([np.full(3, 5.0)] * 3)
    optimizer.step()
    for state in optimizer.state.values():
        np.testing.assert_allclose(state["exp_avg"], (5 + count) / (1 + count), rtol=1e-6)


@pytest.mark.parametrize("wrong", [[np.ones(3)] * 2, {"w": np.ones(3)}, np.ones(3), 3], ids=repr)
def test_gradients_in_another_form_are_refused(wrong):
    optimizer = na.Adam([np.ones(3)])
    with pytest.raises(NamesError):
        optimizer.accumulate(wrong)
    with pytest.raises(NamesError):
        optimizer.step()  # it does not count


@pytest.mark.parametrize("first", ["accumulate", "step"])
def test_a_gradient_in_a_parameters_memory_is_refused_in_any_order_of_calls(first):
    """Includes a float32 gradient in a float64 parameter, which another part of the optimizer updates."""
    single, double = np.ones(4, np.float32), np.ones(2)
    optimizer = na.Adam([single, double])
    good = [np.ones(4, np.float32), np.ones(2)]
    for bad in ([double.view(np.float32), good[1]], [good[0], single.view(np.float64)], [single, good[1]]):
        if first == "step":
            optimizer.step(good)
        with pytest.raises(OverlapError, match=r"grads.*params"):
            optimizer.accumulate(bad)
        optimizer.accumulate(good)
        optimizer.step()
        before = contents(optimizer)
        with pytest.raises(OverlapError, match=r"grads.*params"):
            optimizer.step(bad)
        assert contents(optimizer) == before


def test_a_parameter_made_read_only_keeps_the_sums():
    w = np.ones(3)
    optimizer = na.Adam([w])
    optimizer.accumulate([np.ones(3)])
    w.setflags(write=False)
    with pytest.raises(ReadOnlyError):
        optimizer.step()
    w.setflags(write=True)
    assert optimizer.step().applied
    assert optimizer.state[0]["exp_avg"].tolist() == pytest.approx([0.1] * 3)


# --- beside other things ---


def test_accumulating_does_not_count_as_a_step():
    optimizer = na.Adam([np.ones(3)], ema_decay=0.5)
    optimizer.accumulate([np.ones(3)])
    assert optimizer.state == {}
    assert optimizer.state_dict()["state"] == {}


def test_hyperparameters_can_change_between_accumulation_and_step():
    w, other = np.ones(3), np.ones(3)
    optimizer = na.Adam([w])
    optimizer.accumulate([np.ones(3)])
    optimizer.param_groups[0].update(lr=0.5, amsgrad=True)
    optimizer.accumulate([np.full(3, 3.0)])
    optimizer.step()
    na.Adam([other], lr=0.5, amsgrad=True).step([np.full(3, 2.0)])
    assert w.tolist() == other.tolist()
    assert "max_exp_avg_sq" in optimizer.state[0]


def test_loading_a_state_keeps_the_sums():
    """Like PyTorch's gradients."""
    source, _ = stepped([np.ones(3)], [np.full(3, 2.0)])
    w, other = np.ones(3), np.ones(3)
    optimizer, twin = na.Adam([w]), na.Adam([other])
    optimizer.accumulate([np.full(3, 4.0)])
    for each in (optimizer, twin):
        each.load_state_dict(source.state_dict())
    optimizer.step()
    twin.step([np.full(3, 4.0)])
    assert contents(optimizer) == contents(twin)
    assert optimizer.state[0]["step"] == 2


def test_two_threads_can_accumulate_at_the_same_time():
    optimizer = na.Adam([np.ones(40_000, np.float32)], betas=(0.0, 0.0))

    def work():
        for _ in range(50):
            optimizer.accumulate([np.ones(40_000, np.float32)])

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    optimizer.step(accumulation="sum")
    assert (optimizer.state[0]["exp_avg"] == 150).all()


def test_no_sum_is_lost_between_threads_that_accumulate_and_one_that_steps():
    """Every gradient is one, so the mean of a round is one if no sum is lost."""
    seen = []
    optimizer = na.Adam([np.ones(64)], betas=(0.0, 0.0), lr=0.0)
    stop = threading.Event()

    def work():
        while not stop.is_set():
            optimizer.accumulate([np.ones(64)])

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    while len(seen) < 60:
        try:
            optimizer.step()
        except NamesError:
            continue
        seen.append(optimizer.state[0]["exp_avg"][0])
    stop.set()
    for thread in threads:
        thread.join()
    assert np.allclose(seen, 1.0, rtol=1e-12)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_child_continues_with_the_accumulated_sums(run_python):
    program = """
import os
import threading
import warnings
import numpy as np
import numba_adam as na

warnings.simplefilter("ignore", DeprecationWarning)  # Python's, on forking with threads
w = np.zeros(100_000, np.float32)
optimizer = na.Adam([w], lr=1.0, betas=(0.0, 0.0))
optimizer.accumulate([np.full(100_000, 2, np.float32)])
child = os.fork()
optimizer.accumulate([np.full(100_000, 4, np.float32)])
optimizer.step()
good = (optimizer.state[0]["exp_avg"] == 3).all() and (w < -0.9).all()
if not child:
    os._exit(0 if good else 1)
print(good, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    assert run_python(program) == "True 0"


@pytest.mark.parity
def test_a_parameters_storage_can_be_replaced_between_accumulation_and_step():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed; `make parity` installs it")
    w = torch.nn.Parameter(torch.ones(3))
    optimizer = na.Adam([w], lr=1.0, betas=(0.0, 0.0))
    optimizer.accumulate([torch.full((3,), 2.0)])
    w.data = torch.zeros(3)
    optimizer.accumulate([torch.full((3,), 4.0)])
    optimizer.step()
    assert w.tolist() == pytest.approx([-1.0] * 3)
    assert optimizer.state[0]["exp_avg"].tolist() == [3, 3, 3]
