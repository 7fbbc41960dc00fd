"""Gradients accumulated on a GPU: the sums and the steps have the CPU's bits."""

import numpy as np
import pytest
from lending import Interface, on_gpu
from training import bits, draw, expect_same_state

import numba_adam as na
from numba_adam.errors import NamesError, ShapeError

SHAPES = ((67,), (3, 5), (0,), ())


def expect_same(dtypes, grad_dtypes=None, on_cpu=(), skip=0, call=None, missing=None, **options):
    """Make two steps of three micro-batches each on both devices, and compare."""
    params, copies = (draw(1, *dtypes, shapes=SHAPES, skip=skip) for _ in range(2))

    def lend(arrays):
        return [array if k in on_cpu else Interface(array) for k, array in enumerate(arrays)]

    def some(grads):
        return [None if k == missing else grad for k, grad in enumerate(grads)]

    ours, theirs = na.AdamW(lend(params), **options), na.AdamW(copies, **options)
    for step in range(2):
        for batch in range(3):
            grads = draw(10 * step + batch, *(grad_dtypes or dtypes), shapes=SHAPES, skip=skip)
            ours.accumulate(some(lend(grads)))
            theirs.accumulate(some(grads))
        result, expected = ours.step(**(call or {})), theirs.step(**(call or {}))
        assert (result.applied, result.grad_norm) == (expected.applied, expected.grad_norm)
    assert [bits(param) for param in params] == [bits(copy) for copy in copies]
    expect_same_state(ours, theirs)


@pytest.mark.parametrize("call", [{}, {"accumulation": "sum"}, {"max_grad_norm": 0.1}, {"clip_value": 0.2}], ids=str)
def test_sums_and_means_have_the_cpus_bits(call):
    expect_same(("float32",) * 4, call=call)


@pytest.mark.parametrize(
    ("dtypes", "grad_dtypes", "options"),
    [
        (("uint16", "float32", "float16", "float32"), ("uint16", "float16", "float32", "uint16"), {}),
        (("float64",) * 4, ("float64", "float32", "float64", "float16"), {}),
        (("float32",) * 4, None, {"state_dtype": "8bit"}),
        (("uint16",) * 4, None, {"master_weights": True}),
    ],
    ids=["narrow", "float64", "8bit", "master weights"],
)
def test_every_format_is_summed_in_the_compute_dtype(dtypes, grad_dtypes, options):
    expect_same(dtypes, grad_dtypes, **options)


@pytest.mark.parametrize("on_cpu", [(0,), (1, 3)], ids=str)
def test_parameters_on_the_cpu_and_a_gpu_accumulate_together(on_cpu):
    expect_same(("float32",) * 4, on_cpu=on_cpu)
    expect_same(("float32", "float64", "float32", "float64"), on_cpu=on_cpu)


@pytest.mark.parametrize("skip", [1, 3])
def test_the_bits_do_not_depend_on_addresses(skip):
    expect_same(("float32",) * 4, skip=skip)


def test_one_array_and_parameters_without_a_gradient_accumulate():
    expect_same(("float32",))
    expect_same(("float32",) * 4, missing=1)


@pytest.mark.parametrize("call", [{"loss_scale": 2.0}, {"max_grad_norm": 1.0}], ids=str)
@pytest.mark.parametrize("is_mixed", [False, True], ids=["GPU", "mixed"])
def test_a_skipped_step_drops_the_sums(call, is_mixed):
    """Even before the step's result is read."""
    params, grads = np.ones((2, 20), "f4"), np.ones((2, 20), "f4")
    optimizer = na.Adam([params[0] if is_mixed else Interface(params[0]), Interface(params[1])])
    lent = [grads[0] if is_mixed else Interface(grads[0]), Interface(grads[1])]
    grads[1, 3] = np.inf
    optimizer.accumulate(lent)
    result = optimizer.step(**call)
    grads[1, 3] = 1.0
    optimizer.accumulate(lent)
    optimizer.step()
    assert not result.applied
    copy = np.ones(20, "f4")
    na.Adam(copy).step(np.ones(20, "f4"))
    assert [bits(param) for param in params] == [bits(copy)] * 2


def test_accumulated_gradients_can_be_dropped():
    param, copy = np.ones(20, "f4"), np.ones(20, "f4")
    optimizer = na.Adam(Interface(param))
    optimizer.accumulate(Interface(np.full(20, 5.0, "f4")))
    with pytest.raises(NamesError, match="micro-batches were accumulated"):
        optimizer.step(Interface(np.ones(20, "f4")))
    optimizer.drop_accumulated()
    optimizer.accumulate(Interface(np.ones(20, "f4")))
    optimizer.step()
    na.Adam(copy).step(np.ones(20, "f4"))
    assert bits(param) == bits(copy)


def test_an_unsuitable_gradient_is_not_added():
    params = [np.ones(4, "f4"), np.ones(4, "f4")]
    optimizer = na.Adam([params[0], Interface(params[1])])
    good = [np.ones(4, "f4"), Interface(np.ones(4, "f4"))]
    optimizer.accumulate(good)
    with pytest.raises(ShapeError, match=r"grads\[1\] has shape \(3,\)"):
        optimizer.accumulate([np.ones(4, "f4"), Interface(np.ones(3, "f4"))])
    optimizer.step()
    copies = [np.ones(4, "f4"), np.ones(4, "f4")]
    na.Adam(copies).step([np.ones(4, "f4"), np.ones(4, "f4")])
    assert [bits(param) for param in params] == [bits(copy) for copy in copies]


def test_accumulating_does_not_change_gradients():
    params, grads = draw(1, "float32", "uint16"), draw(2, "float32", "uint16")
    before = [bits(grad) for grad in grads]
    optimizer = na.Adam(on_gpu(*params))
    optimizer.accumulate(on_gpu(*grads))
    optimizer.step(zero_grad=True)
    assert [bits(grad) for grad in grads] == before
