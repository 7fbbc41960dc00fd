"""The description of one kind of array, `Lender`, and the validation of borrowed memory.

May import NumPy, `numba_adam.interop.axes`, `numba_adam.errors` and `numba_adam.numerics.formats`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from numba_adam.errors import DtypeError, LayoutError, ReadOnlyError
from numba_adam.interop.axes import is_dense
from numba_adam.numerics.formats import format_of

FLOAT32 = np.dtype(np.float32)
FLOAT64 = np.dtype(np.float64)


Lookalike = tuple[Any, ...]  # what an array's memory looks like, in its framework's own terms


@dataclass(frozen=True)
class Lender:
    """One kind of array, with the functions that borrow its memory."""

    kind: str
    """The name of the kind in messages, such as "NumPy array"."""

    owns: Callable[[object], bool]
    """Returns whether an object is of this kind. Imports nothing."""

    lend: Callable[[Any, str, bool], npt.NDArray[Any]]
    """Returns a view of an object's memory. Takes the object, its name, and whether 16-bit formats are accepted.

    Raises UnsupportedArrayError or DtypeError.
    """

    convert: str = "np.ascontiguousarray(x, dtype=np.float32)"
    """The code that converts to float32, for messages."""

    compact: str = "np.ascontiguousarray(x)"
    """The code that makes a C-contiguous array, for messages."""

    thaw: str = "np.array(x)"
    """The code that makes a writable copy, for messages."""

    layouts: Callable[[Sequence[Any]], object] | None = None
    """Returns the address (which implies the device), shape, strides and dtype of objects, for a later comparison.

    None for kinds whose objects never change, and for NumPy arrays, which the kernels check.
    """

    lookalikes: Callable[[Sequence[Any]], list[Lookalike]] | None = None
    """Returns the layouts of parameters, for `addresses`. None for kinds that are always borrowed one by one."""

    addresses: Callable[[Sequence[Any], Sequence[Lookalike]], list[int] | None] = lambda *_: None
    """Returns the addresses of arrays. None if one has another layout than given, or must be borrowed to be read."""

    count_writes: Callable[[Sequence[Any]], None] | None = None
    """Tells the framework about a write to its arrays. None for kinds that do not count writes."""

    gradient: Callable[[Any], object] = lambda array: array
    """Returns the gradient that a parameter carries, which may be None. Returns other arrays themselves."""

    drop_gradient: Callable[[Any], None] = lambda _: None
    """Makes a parameter forget its gradient. Other arrays do not change."""

    make: Callable[[npt.NDArray[Any]], object] | None = None
    """Makes an array of this kind of a NumPy array, which belongs to it from then on. None: NumPy's own serves."""


def layouts_of_views(lend: Callable[[Any, str, bool], npt.NDArray[Any]]) -> Callable[[Sequence[Any]], object]:
    """Return a function for `Lender.layouts` that borrows each object and reads its view."""

    def layouts(objects: Sequence[Any]) -> object:
        views = [lend(each, "", True) for each in objects]
        return [(view.ctypes.data, view.shape, view.strides, view.dtype) for view in views]

    return layouts


def check(view: npt.NDArray[Any], name: str, lender: Lender, *, writable: bool, narrow: bool, any_order: bool) -> None:
    """Refuse memory that the update cannot use in place."""
    dtype = view.dtype.newbyteorder("=")
    if dtype not in (FLOAT32, FLOAT64) and not (narrow and format_of(dtype) is not None):
        raise wrong_dtype(name, view.dtype, lender.kind, lender.convert, narrow=narrow)
    if not view.dtype.isnative:
        needed = f"is in foreign byte order ({view.dtype.str}), expected this machine's"
        raise LayoutError(f"{name} ({lender.kind}) {needed}; convert it: {lender.convert}")
    if not (is_dense(view) if any_order else view.flags.c_contiguous):
        needed = "contiguous memory, its axes in any order" if any_order else "C-contiguous memory"
        layout = f"of shape {view.shape} has strides {view.strides}, expected {needed}"
        raise LayoutError(f"{name} ({lender.kind}) {layout}; make a compact copy: {lender.compact}")
    if not view.flags.aligned:
        raise LayoutError(
            f"{name} ({lender.kind}) starts at address {view.ctypes.data:#x}, expected a multiple of "
            f"{view.dtype.alignment}; make an aligned copy: {lender.thaw}"
        )
    if writable and not view.flags.writeable:
        raise ReadOnlyError(
            f"{name} ({lender.kind}) is read-only, expected memory that can be updated in place; "
            f"make a copy and use that: {lender.thaw}"
        )


def wrong_dtype(name: str, dtype: object, kind: str, convert: str, *, narrow: bool) -> DtypeError:
    """Return the error for an element type that is not supported."""
    needed = "float32, float64, bfloat16 (or its bits as uint16) or float16" if narrow else "float32 or float64"
    return DtypeError(f"{name} ({kind}) has dtype {dtype}, expected {needed}; convert it: {convert}")
