"""Arrays on a GPU with any order of axes: the CPU's bits, or a refusal by name."""

import numpy as np
import pytest
from lending import Capsule, Interface
from training import bits, expect_same_state

import numba_adam as na
from numba_adam.cuda import borrow_cuda
from numba_adam.errors import DtypeError, LayoutError, ShapeError

OPTIONS = {
    "plain": {},
    "all beside": {"ema_decay": 0.5, "low_precision_copy": "float16", "amsgrad": True},
    "8 bits": {"state_dtype": "8bit"},
}


class Like:
    """An array with CuPy's attributes and interface."""

    def __init__(self, array):
        self.array, self.data = array, Pointer(array)

    shape = property(lambda self: self.array.shape)
    strides = property(lambda self: self.array.strides)
    dtype = property(lambda self: self.array.dtype)

    def __dlpack_device__(self):
        return 2, 0

    @property
    def __cuda_array_interface__(self):
        return Interface(self.array).__cuda_array_interface__


class Pointer:
    """CuPy's MemoryPointer."""

    def __init__(self, array):
        self.array = array

    ptr = property(lambda self: self.array.ctypes.data)


def drawn(seed, shape=(3, 2, 5), order="F"):
    return np.array(np.random.default_rng(seed).normal(size=shape), np.float32, order=order)


def moved(array, order):
    """Return a copy with this order of axes in memory."""
    return np.array(array.transpose(order), order="C", copy=True).transpose(np.argsort(order))


@pytest.mark.parametrize("lend", [Interface, Capsule])
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_an_array_with_any_order_of_axes_has_the_cpus_bits(lend, order, options):
    """Blocks of 8-bit codes follow the memory order on both devices."""
    param, twin = (moved(drawn(1), order) for _ in range(2))
    ours, theirs = na.Adam([lend(param)], lr=0.1, **options), na.Adam([twin], lr=0.1, **options)
    for seed in range(3):
        grad = moved(drawn(seed), order)
        ours.step([lend(grad)])
        theirs.step([grad])
    assert bits(param) == bits(twin)
    expect_same_state(ours, theirs)
    if "ema_decay" in options:
        for name in ("ema", "low_precision"):
            kept, expected = getattr(ours, name)[0], getattr(theirs, name)[0]
            interface = kept.__cuda_array_interface__
            assert (interface["shape"], kept.strides) == (expected.shape, expected.strides)


@pytest.mark.parametrize("order", ["C", "F"])
def test_strides_of_axes_of_length_one_or_zero_are_ignored(order):
    for shape in ((), (1,), (1, 4, 1), (0, 3), (4, 0, 2)):
        param, twin = (np.array(drawn(2, shape), order=order) for _ in range(2))
        na.Adam([Interface(param)], lr=0.1).step([Interface(drawn(3, shape, order))])
        na.Adam([twin], lr=0.1).step([drawn(3, shape, order)])
        assert bits(param) == bits(twin)


def test_the_function_accepts_arrays_with_the_same_order():
    arrays, twins = ([np.abs(drawn(seed)) for seed in range(4)] for _ in range(2))
    na.adam_update(*map(Interface, arrays), 1)
    na.adam_update(*twins, 1)
    assert [bits(array) for array in arrays] == [bits(twin) for twin in twins]
    arrays[2] = np.ascontiguousarray(arrays[2])
    with pytest.raises(LayoutError, match=r"exp_avg .*strides"):
        na.adam_update(*map(Interface, arrays), 2)


@pytest.mark.parametrize("order", ["C", "F"])
def test_a_gradient_with_another_order_is_refused_by_name(order):
    param = drawn(1, order=order)
    before = param.tobytes()
    optimizer = na.Adam({"w": Interface(param)})
    with pytest.raises(LayoutError, match=r"grads\['w'\] has strides .*in the order of params\['w'\]"):
        optimizer.step({"w": Interface(drawn(2, order="F" if order == "C" else "C"))})
    with pytest.raises(ShapeError, match=r"grads\['w'\] has shape \(5, 2, 3\).*\(3, 2, 5\)"):
        optimizer.step({"w": Interface(drawn(2, (5, 2, 3), order))})
    assert (param.tobytes(), optimizer.state) == (before, {})


def test_arrays_that_are_not_dense_are_refused():
    for values in (np.ones((6, 4), "f4")[::2], np.ones((3, 4), "f4")[::-1], np.broadcast_to(np.ones(4, "f4"), (3, 4))):
        for lend in (Interface, Capsule):
            with pytest.raises(LayoutError, match=r"w .*contiguous memory, its axes in any order, got strides"):
                borrow_cuda(lend(values), name="w", any_order=True)


def test_accumulated_gradients_may_have_any_order():
    param, twin = drawn(1), drawn(1)
    ours, theirs = na.Adam([Interface(param)], lr=0.1), na.Adam([twin], lr=0.1)
    for _ in range(2):
        for seed in range(3):
            ours.accumulate([Interface(drawn(seed))])
            theirs.accumulate([drawn(seed)])
        ours.step()
        theirs.step()
    assert bits(param) == bits(twin)


@pytest.mark.parametrize("lend", [Interface, Capsule, Like])
@pytest.mark.parametrize("options", [{}, {"ema_decay": 0.5, "amsgrad": True}], ids=repr)
def test_a_change_of_a_parameters_axes_is_followed(lend, options):
    given = lend(drawn(1, (4, 4), "C"))
    twin = np.array(given.array, copy=True)
    ours, theirs = na.Adam([given], lr=0.1, **options), na.Adam([twin], lr=0.1, **options)
    for seed, order in enumerate("CFFC"):
        given.__init__(np.array(given.array, order=order, copy=True))
        grad = drawn(seed, (4, 4), order)
        ours.step([lend(grad)])
        theirs.step([grad])
        assert bits(given.array) == bits(twin)
    expect_same_state(ours, theirs)


@pytest.mark.parametrize("lend", [Interface, Capsule, Like])
def test_a_change_of_shape_or_dtype_in_place_is_refused(lend):
    given = lend(drawn(1, (4, 4), "C"))
    array = given.array
    optimizer = na.Adam([given], lr=0.1)
    optimizer.step([Interface(drawn(2, (4, 4), "C"))])
    before = array.tobytes()
    for bad, error in (
        (array.reshape(2, 8), ShapeError),
        (array.view("f8"), (DtypeError, ShapeError)),
        (array[::2], LayoutError),
    ):
        given.__init__(bad)
        with pytest.raises(error, match=r"params\[0\]"):
            optimizer.step([Interface(np.ones(bad.shape, bad.dtype))])
    assert array.tobytes() == before
    given.__init__(array)
    optimizer.step([Interface(drawn(2, (4, 4), "C"))])
    assert optimizer.state[0]["step"] == 2


def test_a_gradient_transposed_in_place_between_steps_is_detected():
    """The object and the address stay the same; CuPy allows `grad.shape = ...`."""
    param, grad = drawn(1, (4, 4), "C"), Like(drawn(2, (4, 4), "C"))
    optimizer = na.Adam([Interface(param)], lr=0.1)
    optimizer.step([grad])
    before, whole = param.tobytes(), grad.array
    for turned, error in ((whole.T, LayoutError), (whole.reshape(16), ShapeError), (whole.view("i4"), DtypeError)):
        grad.array = turned
        with pytest.raises(error, match=r"grads\[0\]"):
            optimizer.step([grad])
    assert param.tobytes() == before
    grad.array = whole
    optimizer.step([grad])
    assert optimizer.state[0]["step"] == 2
