"""A NumPy parameter with a replaced shape, strides, dtype or memory is refused until it is restored.

NumPy lets an array object be changed under whoever holds it: `w.shape = ...`, `w.dtype = ...`. The memory stays where
it is, so an address alone does not show it, and a step would update the wrong elements.
"""

from __future__ import annotations

import array as stdlib
import warnings

import numpy as np
import pytest

import numba_adam as na
from numba_adam.cpu import table as tables
from numba_adam.errors import ArrayError, DtypeError, LayoutError, ShapeError, StateDictError


class Sub(np.ndarray):
    """A subclass without special support."""


KINDS = {
    "C order": lambda: np.ones((4, 4), np.float32),
    "Fortran order": lambda: np.ones((4, 4), np.float32, order="F"),
    "a subclass": lambda: np.ones((4, 4), np.float32).view(Sub),
    "a view": lambda: np.ones(20, np.float32)[2:18].reshape(4, 4),
    "bfloat16 bits": lambda: np.ones((4, 4), np.uint16),
}


def replaced(array, name, value):
    """Set an attribute of an array object, without NumPy's deprecation warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        setattr(array, name, value)


def to_two_axes(array):
    replaced(array, "shape", (2, 8) if array.flags.c_contiguous else (4, 4, 1))


def to_other_strides(array):
    replaced(array, "strides", array.strides[::-1])


def to_integers(array):
    replaced(array, "dtype", np.int32 if array.itemsize == 4 else np.int16)


def to_other_floats(array):
    wide = np.uint16 if array.flags.c_contiguous else np.dtype("f4").newbyteorder("S")
    replaced(array, "dtype", wide if array.itemsize == 4 else np.float16)


CHANGES = {
    "shape": (to_two_axes, ShapeError, r"has shape \([\d, ]+\), expected \(4, 4\) as when it was borrowed"),
    "strides": (to_other_strides, LayoutError, r"has strides .*, expected "),
    "dtype": (
        to_integers,
        DtypeError,
        r"has dtype int(16|32), expected (float32|uint16) as when it was borrowed: .*undo",
    ),
    "floats": (
        to_other_floats,
        (DtypeError, ShapeError),
        "has dtype (float16|uint16|>f4|<f4), expected (float32|uint16)",
    ),
}


def trained(kind, **options):
    """Return a parameter beside another one, and their optimizer after a step."""
    params = {"v": np.ones(3, np.float32), "w": KINDS[kind]()}
    optimizer = na.Adam(params, lr=0.1, **options)
    optimizer.step(grads_for())
    return params["w"], optimizer


def grads_for(shape=(4, 4)):
    return {"v": np.ones(3, np.float32), "w": np.arange(16, dtype=np.float32).reshape(shape) - 7}


def attributes(array):
    return array.shape, array.strides, array.dtype


@pytest.mark.parametrize("quick", [True, False], ids=["all at once", "one by one"])
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_parameter_that_was_changed_is_refused_and_nothing_is_updated(kind, change, quick, monkeypatch):
    if not quick:
        monkeypatch.setattr(tables, "usable", lambda: False)
    make, error, words = CHANGES[change]
    param, optimizer = trained(kind)
    as_it_was, memory = attributes(param), param.view()
    try:
        make(param)
    except AttributeError as refusal:
        pytest.skip(f"this NumPy does not allow it: {refusal}")
    before, steps = memory.tobytes(), optimizer.state["v"]["step"]
    for grads in (grads_for(), grads_for(param.shape) if param.size == 16 else grads_for()):
        for call in (optimizer.step, optimizer.accumulate):
            with pytest.raises(error, match=rf"^params\['w'\] {words}"):
                call(grads)
    assert memory.tobytes() == before
    assert optimizer.state["v"]["step"] == steps
    for name, value in zip(("dtype", "shape", "strides"), (as_it_was[2], *as_it_was[:2]), strict=True):
        replaced(param, name, value)
    optimizer.step(grads_for())
    assert optimizer.state["w"]["step"] == 2
    assert memory.tobytes() != before


@pytest.mark.parametrize("options", [{}, {"ema_decay": 0.5, "low_precision_copy": "float16"}], ids=repr)
@pytest.mark.parametrize("change", ["shape", "dtype"])
def test_a_changed_parameter_is_refused_before_its_first_step_too(change, options):
    param = np.ones((4, 4), np.float32)
    optimizer = na.Adam({"w": param}, **options)
    make, error, words = CHANGES[change]
    make(param)
    with pytest.raises(error, match=rf"^params\['w'\] {words}"):
        optimizer.step({"w": np.ones(param.shape, np.float32)})
    assert optimizer.state == {}


def test_a_parameter_with_a_master_copy_is_watched_too():
    param, optimizer = trained("bfloat16 bits", master_weights=True)
    to_two_axes(param)
    with pytest.raises(ShapeError, match=r"^params\['w'\] has shape"):
        optimizer.step(grads_for())


@pytest.mark.parametrize("change", CHANGES)
def test_a_state_loads_with_the_parameters_original_layout(change):
    """The optimizer uses the memory it borrowed; a changed array object does not matter."""
    param, optimizer = trained("C order", ema_decay=0.5)
    saved = optimizer.state_dict()
    CHANGES[change][0](param)
    optimizer.load_state_dict(saved)
    with pytest.raises(ArrayError, match=r"^params\['w'\] has"):
        optimizer.step(grads_for())
    saved["state"][1] = {**saved["state"][1], "exp_avg": np.ones(16, np.float32)}
    with pytest.raises(StateDictError, match=r"\(4, 4\)"):
        optimizer.load_state_dict(saved)


def test_a_copy_given_to_the_caller_is_watched_too():
    param, optimizer = trained("C order", low_precision_copy="float16")
    to_integers(optimizer.low_precision["w"])
    before = param.tobytes()
    with pytest.raises(DtypeError, match=r"low_precision\['w'\] has dtype int16, expected float16"):
        optimizer.step(grads_for())
    assert param.tobytes() == before


def test_a_parameter_with_replaced_memory_is_refused():
    memory = bytearray(np.ones(16, np.float32).tobytes())
    param = np.frombuffer(memory, np.float32)
    optimizer = na.Adam([param])
    optimizer.step([np.ones(16, np.float32)])
    before, state = bytes(memory), np.full(16, 3, np.float32).__reduce__()[2]
    param.__setstate__(state)
    assert (param == 3).all()
    with pytest.raises(LayoutError, match=r"^params\[0\] has other memory than when it was borrowed"):
        optimizer.step([np.ones(16, np.float32)])
    assert ((param == 3).all(), bytes(memory)) == (True, before)


def test_an_equal_dtype_object_is_not_a_change():
    param = np.ones(8, np.float32)
    optimizer = na.Adam([param], lr=0.1)
    optimizer.step([np.ones(8, np.float32)])
    replaced(param, "dtype", np.dtype("f4", metadata={"unit": "m"}))
    optimizer.step([np.ones(8, np.float32)])
    assert optimizer.state[0]["step"] == 2


@pytest.mark.parametrize("kind", ["C order", "Fortran order", "a subclass"])
def test_arrays_that_an_optimizer_writes_to_cannot_be_resized(kind):
    param, optimizer = trained(kind)
    with pytest.raises(ValueError, match=r"resize|contiguous"):
        param.resize((400, 400), refcheck=False)
    optimizer.step(grads_for())
    assert optimizer.state["w"]["step"] == 2


@pytest.mark.parametrize("kind", ["C order", "Fortran order", "a subclass"])
def test_a_read_only_parameter_of_any_kind_is_refused(kind):
    param, optimizer = trained(kind)
    before = param.tobytes()
    param.flags.writeable = False
    with pytest.raises(ArrayError, match=r"params\['w'\].*read-only"):
        optimizer.step(grads_for())
    assert param.tobytes() == before


# --- gradients: looked at anew in every step ---


@pytest.mark.parametrize("order", "CF")
def test_every_step_reads_a_gradient_with_its_current_strides(order):
    """The same object with other strides is a different gradient."""
    param, other = (np.ones((4, 4), np.float32, order) for _ in range(2))
    optimizers = [na.Adam([param], lr=0.1), na.Adam([other], lr=0.1)]
    grad = np.random.default_rng(1).normal(size=(4, 4)).astype(np.float32)
    for _ in range(3):
        optimizers[0].step([grad])
        optimizers[1].step([np.array(grad, order=order, copy=True)])
        assert param.tobytes() == other.tobytes()
        try:
            to_other_strides(grad)
        except AttributeError:  # a NumPy that does not allow it
            grad = grad.T
    to_integers(grad)
    with pytest.raises(DtypeError, match=r"grads\[0\].*int32"):
        optimizers[0].step([grad])


# --- what lends its memory by a protocol ---


class Interface:
    """Exposes memory only by __array_interface__, and may change it."""

    def __init__(self, owner):
        self.owner = owner

    @property
    def __array_interface__(self):
        return self.owner.__array_interface__


class Capsule:
    """Exposes memory only by DLPack, and may change it."""

    def __init__(self, owner):
        self.owner = owner

    def __dlpack__(self, **options):
        return self.owner.__dlpack__(**options)

    def __dlpack_device__(self):
        return (1, 0)


LENDERS = [Interface]
if np.lib.NumpyVersion(np.__version__) >= "2.1.0":  # whose DLPack says what may be written to
    LENDERS.append(Capsule)


@pytest.mark.parametrize("lend", LENDERS)
def test_a_changed_layout_of_a_lender_is_followed_or_refused(lend):
    rng = np.random.default_rng(2)
    values, grads = rng.normal(size=(4, 4)), rng.normal(size=(4, 4, 4))
    lent, twin = lend(values.copy()), values.copy()
    optimizer, other = na.Adam([lent], lr=0.1, ema_decay=0.5), na.Adam([twin], lr=0.1, ema_decay=0.5)
    for grad, order in zip(grads, "CFCF", strict=True):
        lent.owner = np.array(lent.owner, order=order, copy=True)
        optimizer.step([grad])
        other.step([grad])
        assert (lent.owner == twin).all()
        for name in ("exp_avg", "exp_avg_sq", "ema"):
            assert (optimizer.state[0][name] == other.state[0][name]).all()
    good = lent.owner
    for bad, error in (
        (good.reshape(2, 8), ShapeError),
        (good.astype(np.float32), DtypeError),
        (good[::-1], LayoutError),
    ):
        lent.owner = bad
        with pytest.raises(error, match=r"params\[0\]"):
            optimizer.step([np.ones(bad.shape, bad.dtype)])
    lent.owner = good
    optimizer.step([grads[0]])
    assert optimizer.state[0]["step"] == 5


def test_an_array_of_the_standard_library_cannot_be_resized_while_in_use():
    param = stdlib.array("f", [1.0] * 4)
    optimizer = na.Adam([param])
    optimizer.step([np.ones(4, np.float32)])
    with pytest.raises(BufferError):
        param.append(1.0)
    assert optimizer.step([np.ones(4, np.float32)]).applied


def test_a_change_of_axes_during_accumulation_is_refused():
    lent = Interface(np.ones((3, 4)))
    optimizer = na.Adam([lent], lr=0.1)
    optimizer.accumulate([np.ones((3, 4))])
    lent.owner = np.asfortranarray(lent.owner)
    with pytest.raises(LayoutError, match=r"params\[0\] .*drop_accumulated"):
        optimizer.accumulate([np.ones((3, 4))])
    with pytest.raises(LayoutError, match=r"params\[0\] .*drop_accumulated"):
        optimizer.step()
    assert (lent.owner == 1).all()
    optimizer.drop_accumulated()
    optimizer.step([np.ones((3, 4))])
    assert (lent.owner < 1).all()


@pytest.mark.parametrize("options", [{"state_dtype": "8bit"}, {"amsgrad": True, "state_dtype": "bfloat16"}], ids=repr)
def test_an_8_bit_state_follows_a_change_of_axes(options):
    rng = np.random.default_rng(3)
    lent = Interface(rng.normal(size=(9, 40)).astype(np.float32))
    optimizer = na.Adam([lent], **options)
    grads = rng.normal(size=(2, 9, 40)).astype(np.float32)
    optimizer.step([grads[0]])
    before = na.Adam([lent.owner.copy()], state_dtype="float32")
    before.load_state_dict(optimizer.state_dict())
    lent.owner = np.asfortranarray(lent.owner)
    optimizer.step([None])
    after = na.Adam([lent.owner.copy()], state_dtype="float32")
    after.load_state_dict(optimizer.state_dict())
    for name in ("exp_avg", "exp_avg_sq"):
        largest = np.abs(before.state[0][name]).max()
        np.testing.assert_allclose(after.state[0][name], before.state[0][name], atol=0.02 * largest, rtol=0.05)
