"""borrow(): the same memory for every kind of array, and refusals with advice."""

from __future__ import annotations

import array
import ctypes
from typing import ClassVar

import numpy as np
import pytest

from numba_adam.errors import DtypeError, LayoutError, ReadOnlyError, UnsupportedArrayError
from numba_adam.interop import borrow


class Interface:
    """Exposes memory only by __array_interface__."""

    def __init__(self, owner: np.ndarray) -> None:
        self.__array_interface__ = owner.__array_interface__
        self.owner = owner


class Capsule:
    """Exposes memory only by DLPack."""

    def __init__(self, owner: np.ndarray, device: tuple[int, int] = (1, 0)) -> None:
        self.owner, self.device = owner, device

    def __dlpack__(self, **options: object) -> object:
        return self.owner.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device


class OnGpu:
    """An object with the attributes of a CuPy array."""

    __cuda_array_interface__: ClassVar = {"shape": (3,), "typestr": "<f4", "data": (4096, False), "version": 3}


class Looks:
    """Can be converted to an array, perhaps by a copy, like a pandas Series."""

    def __array__(self, *_args: object, **_options: object) -> np.ndarray:
        return np.ones(3)


class Subclass(np.ndarray):
    """A subclass without special support."""


BORROWABLE = {
    "array": lambda a: a,
    "subclass": lambda a: a.view(Subclass),
    "matrix": lambda a: a.view(np.matrix),
    "memoryview": memoryview,
    "interface": Interface,
}


@pytest.mark.parametrize("wrap", BORROWABLE.values(), ids=BORROWABLE)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_borrowed_view_is_the_same_memory(wrap, dtype):
    owner = np.arange(6, dtype=dtype).reshape(2, 3)
    view = borrow(wrap(owner), name="w", writable=True)
    assert type(view) is np.ndarray
    assert (view.shape, view.dtype) == ((2, 3), np.dtype(dtype))
    view[1, 2] = 42
    assert owner[1, 2] == 42


def test_memory_is_borrowed_through_dlpack():
    owner = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert np.shares_memory(borrow(Capsule(owner), name="w"), owner)
    if np.lib.NumpyVersion(np.__version__) < "2.1.0":  # whose DLPack does not say what may be written to
        with pytest.raises(ReadOnlyError):
            borrow(Capsule(owner), name="w", writable=True)
    else:
        borrow(Capsule(owner), name="w", writable=True)[1, 2] = 42
        assert owner[1, 2] == 42


def test_a_plain_array_is_returned_itself():
    owner = np.ones(3, np.float32)
    assert borrow(owner, name="w", writable=True) is owner


@pytest.mark.parametrize("shape", [(), (0,), (0, 3), (1, 1, 1)])
def test_empty_and_single_element_shapes_are_borrowed(shape):
    owner = np.zeros(shape)
    assert borrow(owner, name="w", writable=True).shape == shape
    assert borrow(Interface(owner), name="w").shape == shape


def test_arrays_of_the_standard_library_are_borrowed():
    assert borrow(array.array("f", [1, 2]), name="g").tolist() == [1, 2]
    assert borrow((ctypes.c_double * 2)(3, 4), name="g", writable=True).tolist() == [3, 4]


def test_the_view_keeps_its_owner_alive():
    view = borrow(Interface(np.full(1000, 7.0)), name="w")
    assert (view == 7).all()


READ_ONLY = {
    "array": lambda a: a,
    "memoryview": memoryview,
    "interface": Interface,
    "scalar": lambda a: a[0],
    "bytes": lambda a: memoryview(a.tobytes()).cast("f"),
}


@pytest.mark.parametrize("wrap", READ_ONLY.values(), ids=READ_ONLY)
def test_read_only_memory_is_refused_only_for_writing(wrap):
    owner = np.ones(3, np.float32)
    owner.flags.writeable = False
    assert not borrow(wrap(owner), name="w").flags.writeable
    with pytest.raises(ReadOnlyError, match=r"params\['w'\].*is read-only.*make a copy and use that"):
        borrow(wrap(owner), name="params['w']", writable=True)


REFUSED = {
    "int32": (np.ones(3, np.int32), DtypeError, r"has dtype int32, expected float32 or float64; convert it"),
    "float16": (np.ones(3, np.float16), DtypeError, "has dtype float16"),
    "complex": (np.ones(3, np.complex64), DtypeError, "has dtype complex64"),
    "object": (np.array([None]), DtypeError, "has dtype object"),
    "record": (np.zeros(2, [("a", "f4")]), DtypeError, "has dtype"),
    "bytes": (b"abcd", DtypeError, "has dtype uint8"),
    "byte order": (np.ones(3, np.dtype(np.float32).newbyteorder("S")), LayoutError, "foreign byte order"),
    "transposed": (np.ones((2, 3)).T, LayoutError, r"strides \(8, 24\), expected C-contiguous.*ascontiguousarray"),
    "sliced": (np.ones(6)[::2], LayoutError, "strides"),
    "broadcast": (np.broadcast_to(np.ones(1), (4,)), LayoutError, "strides"),
    "unaligned": (np.zeros(13, np.uint8)[1:].view(np.float32), LayoutError, "expected a multiple of 4"),
    "masked": (np.ma.masked_array([1.0, 2.0], mask=[True, False]), UnsupportedArrayError, r"x\.filled\(0\)"),
    "list": ([1.0], UnsupportedArrayError, "is of type list, which exposes no memory; make an array of it"),
    "float": (1.0, UnsupportedArrayError, "is of type float"),
    "None": (None, UnsupportedArrayError, "is of type NoneType"),
    "string": ("w", UnsupportedArrayError, "is of type str"),
    "only __array__": (Looks(), UnsupportedArrayError, "Looks, which exposes no memory"),
    "gpu": (OnGpu(), UnsupportedArrayError, r"in a GPU's memory.*x\.get\(\)"),
    "dlpack gpu": (Capsule(np.ones(3), device=(2, 0)), UnsupportedArrayError, "device of DLPack type 2"),
}


@pytest.mark.parametrize(("given", "error", "message"), REFUSED.values(), ids=REFUSED)
def test_unsuitable_arrays_are_refused_by_name(given, error, message):
    with pytest.raises(error, match=message) as caught:
        borrow(given, name="grads['w']")
    assert "grads['w']" in str(caught.value)
