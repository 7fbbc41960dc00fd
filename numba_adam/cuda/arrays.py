"""borrow_cuda(): returns the address of an array in a GPU's memory, without a copy and without waiting.

May import NumPy, `numba_adam.errors` and its neighbours.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np

from numba_adam.cuda import dlpack, streams
from numba_adam.errors import DtypeError, LayoutError, ReadOnlyError, UnsupportedArrayError
from numba_adam.interop.axes import is_dense
from numba_adam.numerics.formats import Format

_BY_TYPESTR = {"<f4": Format.FLOAT32, "<f8": Format.FLOAT64, "<f2": Format.FLOAT16, "<u2": Format.BFLOAT16}
_BY_DTYPE = {**{format_.label: format_ for format_ in _BY_TYPESTR.values()}, "uint16": Format.BFLOAT16}
_NEEDED = "float32, float64, float16 or bfloat16 (or uint16, its bits)"
_STORED = {Format.BFLOAT16: "uint16", Format.EIGHT_BIT: "uint8"}
_IMMUTABLE = ("jax", "jaxlib")  # frameworks with immutable arrays; their interfaces do not say so


@dataclass(frozen=True, slots=True, eq=False)
class CudaArray:
    """A dense array in a GPU's memory."""

    address: int
    """Address of its first byte; a multiple of the element size."""

    shape: tuple[int, ...]
    """Its extents."""

    format: Format
    """Its number format; EIGHT_BIT for the codes of an 8-bit moment."""

    device: int
    """The number of its GPU."""

    stream: int
    """The handle of the caller's current stream."""

    owner: Any
    """An object that keeps the memory alive."""

    given_strides: tuple[int, ...] | None = None
    """Bytes from one element to the next along each axis; None: C-contiguous."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """NumPy's dtype of an element: uint16 for bfloat16 (its bits), uint8 for codes."""
        return np.dtype(stored_as(self.format))

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Number of bytes."""
        return self.size * self.dtype.itemsize

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def strides(self) -> tuple[int, ...]:
        """Bytes from one element to the next along each axis."""
        return self.given_strides or tuple(self.dtype.itemsize * stride for stride in _c_strides(self.shape))

    @property
    def flags(self) -> SimpleNamespace:
        """`flags.c_contiguous`, as NumPy's arrays have it."""
        return SimpleNamespace(c_contiguous=self.given_strides is None)

    def transpose(self, axes: tuple[int, ...]) -> CudaArray:
        """Return the same memory with the axes in another order."""
        shape, strides = tuple(self.shape[axis] for axis in axes), tuple(self.strides[axis] for axis in axes)
        return replace(self, shape=shape, given_strides=_strides_unless_c(shape, strides, self.dtype.itemsize))

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """The interface for other libraries, as in `cupy.asarray(array)`; bfloat16 as its bits."""
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.address, False),
            "strides": self.given_strides,
            "version": 3,
            "stream": self.stream,
        }

    @property
    def ctypes(self) -> SimpleNamespace:
        """`ctypes.data`, as NumPy's arrays have it, so that overlap checks treat both kinds alike."""
        return SimpleNamespace(data=self.address)


def stored_as(format_: Format) -> str:
    """Return the name of the NumPy dtype that stores a format."""
    return _STORED.get(format_, format_.label)


def is_on_cuda(array: object) -> bool:
    """Return whether an array is in a GPU's memory. Imports nothing, and does not wait."""
    if isinstance(array, (np.ndarray, np.generic)):
        return False
    if isinstance(array, CudaArray) or dlpack.device_of(array) is not None:
        return True
    return not hasattr(array, "__dlpack_device__") and hasattr(array, "__cuda_array_interface__")


def quick_layout(array: Any) -> object:
    """Return an array's address, shape, strides and dtype if they are cheap to read, otherwise None."""
    if hasattr(array, "data_ptr"):
        return array.data_ptr(), array.shape, array.stride(), array.dtype
    pointer = getattr(getattr(array, "data", None), "ptr", None)
    return None if pointer is None else (pointer, array.shape, array.strides, array.dtype)


def borrow_cuda(array: Any, *, name: str, writable: bool = False, any_order: bool = False) -> CudaArray:
    """Return the memory of an array, without a copy and without waiting.

    Args:
        array: anything on a CUDA GPU with `__cuda_array_interface__` or DLPack: a CuPy array, a PyTorch tensor;
            float32, float64, float16 or bfloat16 (or the bits of bfloat16 as uint16), C-contiguous.
        name: its name in error messages, such as "params['w']".
        writable: True: the caller will write to it.
        any_order: True: the axes of a dense array may have any order in memory.

    Raises:
        UnsupportedArrayError: the array exposes no memory, or is not on a CUDA GPU.
        DtypeError: its dtype is none of the above.
        LayoutError: it is not C-contiguous (or not dense), not aligned or not in native byte order.
        ReadOnlyError: `writable` is set, and the memory is read-only.
    """
    if isinstance(array, CudaArray):
        return _in_order(array, name, any_order=any_order)
    _check_kind(array, name, writable=writable)
    # A tensor that requires grad exposes no memory; autograd need not see the writes.
    plain = array.detach() if hasattr(array, "detach") else array
    interface = _interface_of(plain)
    if interface is not None and interface["typestr"] in _BY_TYPESTR:
        return _in_order(_from_interface(plain, interface, name, writable=writable), name, any_order=any_order)
    if hasattr(plain, "__dlpack__"):
        return _in_order(_from_dlpack(plain, name), name, any_order=any_order)
    if interface is None:
        raise _cannot(array, name, "it has neither __cuda_array_interface__ nor __dlpack__")
    raise _wrong_dtype(name, array, interface["typestr"])


def _check_kind(array: object, name: str, *, writable: bool) -> None:
    if not is_on_cuda(array):
        raise _cannot(array, name, "it is not in the memory of a CUDA GPU")
    if writable and type(array).__module__.partition(".")[0] in _IMMUTABLE:
        raise ReadOnlyError(
            f"{name} ({_kind(array)}): expected memory that can be updated in place, got an immutable array. Make and "
            "keep a copy in another framework: cupy.array(x)"
        )


def _interface_of(array: Any) -> dict[str, Any] | None:
    """Return the CUDA array interface; None if there is none, or if it raises for an unknown dtype."""
    try:
        interface: dict[str, Any] | None = getattr(array, "__cuda_array_interface__", None)
    except (TypeError, RuntimeError):
        return None
    return interface


def _from_interface(array: Any, interface: dict[str, Any], name: str, *, writable: bool) -> CudaArray:
    address, is_read_only = interface["data"]
    if writable and is_read_only:
        raise ReadOnlyError(
            f"{name} ({_kind(array)}): expected memory that can be updated in place, got a read-only array. Make and "
            "keep a copy: x.copy()"
        )
    if interface.get("mask") is not None:
        raise _cannot(array, name, "it is masked")
    format_ = _BY_TYPESTR[interface["typestr"]]
    shape, strides = tuple(interface["shape"]), interface.get("strides")
    device = _device_of(array)
    stream = streams.current(array, device, interface.get("stream"))
    return _with_strides(CudaArray(int(address or 0), shape, format_, device, stream, array), strides)


def _from_dlpack(array: Any, name: str) -> CudaArray:
    try:
        lent = dlpack.lend(array)
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        raise _cannot(array, name, str(error)) from error
    format_ = _BY_DTYPE.get(lent.dtype)
    if format_ is None:
        raise _wrong_dtype(name, array, lent.dtype)
    stream = streams.current(array, lent.device, None)
    item_bytes = format_.item_bytes
    strides = None if lent.strides is None else tuple(stride * item_bytes for stride in lent.strides)
    owner = (array, lent.capsule)
    return _with_strides(CudaArray(lent.address, lent.shape, format_, lent.device, stream, owner), strides)


def _with_strides(array: CudaArray, strides: Any) -> CudaArray:
    """Return an array with its given strides, in bytes; None for C-contiguous."""
    given = None if strides is None else _strides_unless_c(array.shape, tuple(strides), array.dtype.itemsize)
    return replace(array, given_strides=given)


def _in_order(array: CudaArray, name: str, *, any_order: bool) -> CudaArray:
    """Refuse memory that an update cannot use."""
    if array.given_strides is not None and not (any_order and is_dense(array)):
        needed = "contiguous memory, its axes in any order" if any_order else "C-contiguous memory"
        raise LayoutError(
            f"{name} ({_kind(array.owner)}): expected {needed}, got strides {array.strides} of shape {array.shape}. "
            "Make a compact copy: cupy.ascontiguousarray(x), x.contiguous()"
        )
    if array.address % array.dtype.itemsize:
        raise LayoutError(
            f"{name} ({_kind(array.owner)}): expected an address that is a multiple of {array.dtype.itemsize}, got "
            f"{array.address:#x}. Make an aligned copy: x.copy()"
        )
    return array


def _c_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the strides, in elements, of a C-contiguous array of a shape."""
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


def _strides_unless_c(shape: tuple[int, ...], strides: tuple[int, ...], item_bytes: int) -> tuple[int, ...] | None:
    """Return strides in bytes; None if all axes longer than one have the strides of C order."""
    compact = tuple(item_bytes * stride for stride in _c_strides(shape))
    is_c = 0 in shape or all(
        extent == 1 or one == other for extent, one, other in zip(shape, strides, compact, strict=True)
    )
    return None if is_c else strides


def _device_of(array: Any) -> int:
    """Return the number of an array's GPU; the current GPU if the array does not say."""
    said = dlpack.device_of(array)
    if said is not None:
        return said
    from numba_adam.cuda.seam import current_device  # needs a CUDA package

    return current_device()


def _kind(array: object) -> str:
    owner = array[0] if isinstance(array, tuple) else array
    return f"{type(owner).__module__.partition('.')[0]}.{type(owner).__name__}"


def _cannot(array: object, name: str, why: str) -> UnsupportedArrayError:
    return UnsupportedArrayError(
        f"{name} ({_kind(array)}): expected an array that lends memory of a CUDA GPU, got one that does not: {why}. "
        "Make one: cupy.asarray(x)"
    )


def _wrong_dtype(name: str, array: object, dtype: str) -> DtypeError:
    return DtypeError(f"{name} ({_kind(array)}): expected {_NEEDED}, got dtype {dtype}. Convert it")
