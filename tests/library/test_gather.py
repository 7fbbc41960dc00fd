"""The fast check of NumPy arrays reads their objects in memory, and must detect every unsuitable array.

Each array here differs in one thing from a plain C-contiguous ndarray of the parameter's shape and dtype. It must be
taken for what it is: refused, or used with the same result as a plain copy of it.
"""

from __future__ import annotations

import array

import ml_dtypes
import numpy as np
import pytest

import numba_adam as na
from numba_adam.cpu.kernels import gather
from numba_adam.errors import ArrayError, DtypeError, LayoutError, ShapeError, UnsupportedArrayError

SHAPE = (3, 4)


class Sub(np.ndarray):
    """A subclass that overrides methods."""

    def __array_finalize__(self, other):
        self.extra = "more"


def values():
    return np.random.default_rng(3).random(SHAPE, np.float32)


def shifted(dtype="f4"):
    """Return an array whose memory begins one element after an aligned address, within a larger one."""
    whole = np.zeros(13, dtype)
    whole[1:] = values().ravel()
    return whole[1:].reshape(SHAPE)


def read_only():
    result = values()
    result.flags.writeable = False
    return result


def on_buffer(buffer):
    return np.frombuffer(buffer, np.float32).reshape(SHAPE)


USABLE = {
    "plain": values,
    "shifted": shifted,
    "a subclass": lambda: values().view(Sub),
    "a record array's base": lambda: values().view(np.recarray),
    "a memory map's class": lambda: values().view(np.memmap),
    "dtype with metadata": lambda: values().view(np.dtype("f4", metadata={"unit": "m"})),
    "a dtype of its own": lambda: values().view(np.dtype("f4").newbyteorder("S").newbyteorder("S")),
    "read-only": read_only,
    "of bytes": lambda: on_buffer(values().tobytes()),
    "of a bytearray": lambda: on_buffer(bytearray(values().tobytes())),
    "a view of a view": lambda: values().reshape(12)[:].reshape(SHAPE)[:, :],
    "transposed twice": lambda: np.ascontiguousarray(values().T).T.copy(),
    "a row of a larger one": lambda: np.stack([values(), values()])[1],
    "memoryview": lambda: memoryview(values()),
    "transposed": lambda: np.ascontiguousarray(values().T).T,
    "column by column": lambda: np.asfortranarray(values()),
    "column by column of a subclass": lambda: np.asfortranarray(values()).view(Sub),
}
ANOTHER_ORDER = [name for name in USABLE if name.startswith(("transposed", "column by column")) and "twice" not in name]
REFUSED = {
    "another shape": (lambda: values().T.copy(), ShapeError),
    "flat": (lambda: values().ravel(), ShapeError),
    "one more axis": (lambda: values()[None], ShapeError),
    "an axis more at the end": (lambda: values()[..., None], ShapeError),
    "scalar": (lambda: np.array(1, np.float32), ShapeError),
    "empty": (lambda: np.empty((3, 0), np.float32), ShapeError),
    "one row more": (lambda: np.ones((4, 4), np.float32), ShapeError),
    "every other column": (lambda: np.ones((3, 8), np.float32)[:, ::2], LayoutError),
    "every other row": (lambda: np.ones((6, 4), np.float32)[::2], LayoutError),
    "backwards": (lambda: values()[::-1, ::-1], LayoutError),
    "one number everywhere": (lambda: np.broadcast_to(np.float32(1), SHAPE), LayoutError),
    "off by a byte": (lambda: np.frombuffer(b"\0" * 49, np.uint8)[1:].view("f4").reshape(SHAPE), LayoutError),
    "big-endian": (lambda: values().astype(">f4"), LayoutError),
    "int32": (lambda: values().view("i4"), DtypeError),
    "uint32": (lambda: values().view("u4"), DtypeError),
    "int16": (lambda: values().view("i2")[:, ::2].copy(), DtypeError),
    "float64 of another shape": (lambda: values().astype("f8").T.copy(), ShapeError),
    "uint16 off by a byte": (lambda: np.frombuffer(b"\0" * 25, np.uint8)[1:].view("u2").reshape(SHAPE), LayoutError),
    "float16 of foreign byte order": (lambda: values().astype(">f2"), LayoutError),
    "bytes of the same size": (lambda: values().view("S4"), DtypeError),
    "raw memory of the same size": (lambda: values().view("V4"), DtypeError),
    "records of the same size": (lambda: values().view([("x", "f4")]), DtypeError),
    "objects": (lambda: values().astype(object), DtypeError),
    "masked": (lambda: np.ma.masked_array(values(), mask=values() > 0.5), UnsupportedArrayError),
    "list": (lambda: values().tolist(), UnsupportedArrayError),
    "NumPy's scalar": (lambda: np.float32(1), ArrayError),
    "Ellipsis": (lambda: ..., UnsupportedArrayError),
    "False": (lambda: False, UnsupportedArrayError),
    "the type ndarray": (lambda: np.ndarray, UnsupportedArrayError),
}


OTHER_FORMATS = {
    "float64": (lambda: values().astype("f8"), lambda grad: grad),
    "float16": (lambda: values().astype("f2"), lambda grad: grad),
    "bfloat16": (lambda: values().astype(ml_dtypes.bfloat16), lambda grad: grad),
    "bfloat16 as uint16": (
        lambda: values().astype(ml_dtypes.bfloat16).view("u2"),
        lambda g: g.view(ml_dtypes.bfloat16),
    ),
    "float16 of a subclass": (lambda: values().astype("f2").view(Sub), np.asarray),
    "bfloat16 at an odd word": (lambda: shifted(ml_dtypes.bfloat16), lambda grad: grad),
}


def step(grads, shapes):
    """Return the parameters' bytes after one step from zeros."""
    params = [np.zeros(shape, np.float32) for shape in shapes]
    optimizer = na.Adam(params, eps=0.1)
    optimizer.step(grads)
    return [param.tobytes() for param in params], optimizer.state


@pytest.mark.parametrize("place", range(3))
@pytest.mark.parametrize("name", USABLE)
def test_a_suitable_array_gives_the_same_result_as_a_plain_copy(name, place):
    grads = [np.ones(5, np.float32), values(), np.ones((), np.float32)]
    grads[place] = USABLE[name]()
    plain = [np.array(grad, np.float32, copy=True, subok=False) for grad in grads]
    shapes = [grad.shape for grad in plain]
    assert all(type(grad) is np.ndarray for grad in plain)
    (one, state), (other, other_state) = step(grads, shapes), step(plain, shapes)
    assert one == other
    for index in range(3):
        assert state[index]["exp_avg"].tobytes() == other_state[index]["exp_avg"].tobytes()


@pytest.mark.parametrize("place", range(3))
@pytest.mark.parametrize("name", OTHER_FORMATS)
def test_16_bit_gradients_count_with_their_float32_values(name, place):
    make, read = OTHER_FORMATS[name]
    grads = [np.ones(5, np.float32), values(), np.ones((), np.float32)]
    grads[place] = make()
    plain = [np.array(grad, np.float32) for grad in (*grads[:place], read(grads[place]), *grads[place + 1 :])]
    shapes = [grad.shape for grad in plain]
    assert step(grads, shapes)[0] == step(plain, shapes)[0]


@pytest.mark.parametrize("place", range(3))
@pytest.mark.parametrize("name", REFUSED)
def test_an_unsuitable_array_is_refused_by_name(name, place):
    make, error = REFUSED[name]
    shapes = [(5,), (2, 2), ()]
    shapes[place] = SHAPE
    grads = [np.ones(shape, np.float32) for shape in shapes]
    grads[place] = make()
    params = [np.zeros(shape, np.float32) for shape in shapes]
    optimizer = na.Adam(params)
    with pytest.raises(error) as caught:
        optimizer.step(grads)
    assert f"grads[{place}]" in str(caught.value)
    assert optimizer.state == {}
    assert not any(param.any() for param in params)


@pytest.mark.parametrize("name", [name for name in USABLE if name not in ("read-only", "of bytes")])
def test_parameters_of_every_usable_kind_are_updated_in_place(name):
    param = USABLE[name]()
    before = np.array(param, subok=False)
    na.Adam([param, np.zeros(2, np.float32)]).step([np.ones(SHAPE, np.float32), np.ones(2, np.float32)])
    after = np.array(param, subok=False)
    assert (after < before).all()
    moments = np.zeros_like(before), np.zeros_like(before)
    na.adam_update(before, np.ones(SHAPE, np.float32), *moments, 1)
    assert after.tobytes() == before.tobytes()


def test_the_function_accepts_every_suitable_kind_for_every_argument():
    for place in range(4):
        for name, make in USABLE.items():
            if place != 1 and name in ("read-only", "of bytes", *ANOTHER_ORDER):
                continue
            arrays = [values(), values() + 1, values() / 2, values() / 4]
            expected = [each.copy() for each in arrays]
            arrays[place] = make()
            expected[place] = np.array(arrays[place], subok=False)
            na.adam_update(*arrays, 1)
            na.adam_update(*expected, 1)
            found = [np.array(each, subok=False).tobytes() for each in arrays]
            assert found == [each.tobytes() for each in expected], (place, name)


def test_arrays_of_other_kinds_can_be_mixed_with_plain_ones():
    sizes = [3, 0, 70, 1, 1_000]
    plain = [np.arange(size, dtype=np.float32) for size in sizes]
    mixed = [plain[0], plain[1].view(Sub), array.array("f", plain[2]), None, memoryview(plain[4])]
    plain[3] = None
    shapes = [(size,) for size in sizes]
    assert step(mixed, shapes)[0] == step(plain, shapes)[0]


def test_a_gradient_that_was_reshaped_between_steps_is_read_again():
    param, grad = np.zeros((3, 4), np.float32), np.ones((3, 4), np.float32)
    optimizer = na.Adam([param])
    optimizer.step([grad])
    flat = grad.reshape(-1)
    with pytest.raises(ShapeError):
        optimizer.step([flat])
    optimizer.step([flat.reshape(3, 4)])
    assert optimizer.state[0]["step"] == 2


@pytest.mark.parametrize("answer", [True, False])
def test_without_the_fast_check_every_array_is_borrowed(answer, monkeypatch):
    """Without the fast check: the same bits and the same errors."""
    import numba_adam.cpu.table as table

    assert gather.usable() is True  # on every machine that runs these tests so far
    monkeypatch.setattr(table, "usable", lambda: answer)
    grads = [values(), None, shifted()]
    found, _ = step(grads, [SHAPE] * 3)
    assert found[0] != np.zeros(SHAPE, np.float32).tobytes() == found[1]
    param, *moments = np.zeros((3, *SHAPE), np.float32)
    na.adam_update(param, grads[0], *moments, 1, eps=0.1)
    assert param.tobytes() == found[0]
    with pytest.raises(LayoutError, match=r"grads\[1\]"):
        step([values(), values()[::-1], values()], [SHAPE] * 3)
