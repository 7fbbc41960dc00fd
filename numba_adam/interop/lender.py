"""What every kind of array has to say about itself, and the checks that all borrowed memory passes.

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


@dataclass(frozen=True)
class Lender:
    """One kind of array, and the way to its memory."""

    kind: str
    """What messages call it, such as "NumPy array"."""

    owns: Callable[[object], bool]
    """Whether an object is of this kind. Imports nothing."""

    lend: Callable[[Any, str, bool], npt.NDArray[Any]]
    """Returns a view of an object's memory, given a name for messages and whether 16-bit formats are admitted.

    Raises UnsupportedArrayError or DtypeError.
    """

    convert: str = "np.ascontiguousarray(x, dtype=np.float32)"
    """What to write to get float32."""

    compact: str = "np.ascontiguousarray(x)"
    """What to write to get a C-contiguous array."""

    thaw: str = "np.array(x)"
    """What to write to get a writable copy."""

    layouts: Callable[[Sequence[Any]], object] | None = None
    """Returns the address, which says the device too, shape, strides and dtype of objects, to be compared later.

    None for kinds whose objects never change, and for NumPy arrays, which the kernels look at.
    """

    count_writes: Callable[[Sequence[Any]], None] | None = None
    """Tells the framework that its arrays were written to; None for kinds that do not count writes."""


def layouts_of_views(lend: Callable[[Any, str, bool], npt.NDArray[Any]]) -> Callable[[Sequence[Any]], object]:
    """Return what says the layouts of objects by the views that they lend."""

    def layouts(objects: Sequence[Any]) -> object:
        views = [lend(each, "", True) for each in objects]
        return [(view.ctypes.data, view.shape, view.strides, view.dtype) for view in views]

    return layouts


def check(view: npt.NDArray[Any], name: str, lender: Lender, *, writable: bool, narrow: bool, any_order: bool) -> None:
    """Refuse memory that the update could not use as it lies."""
    dtype = view.dtype.newbyteorder("=")
    if dtype not in (FLOAT32, FLOAT64) and not (narrow and format_of(dtype) is not None):
        raise wrong_dtype(name, view.dtype, lender.kind, lender.convert, narrow=narrow)
    if not view.dtype.isnative:
        needed = f"is in foreign byte order ({view.dtype.str}), needed is this machine's own"
        raise LayoutError(f"{name} ({lender.kind}) {needed}; convert it: {lender.convert}")
    if not (is_dense(view) if any_order else view.flags.c_contiguous):
        needed = "contiguous memory, its axes in any order" if any_order else "C-contiguous memory"
        layout = f"of shape {view.shape} has strides {view.strides}, needed is {needed}"
        raise LayoutError(f"{name} ({lender.kind}) {layout}; make a compact copy: {lender.compact}")
    if not view.flags.aligned:
        raise LayoutError(
            f"{name} ({lender.kind}) starts at address {view.ctypes.data:#x}, needed is a multiple of "
            f"{view.dtype.alignment}; make an aligned copy: {lender.thaw}"
        )
    if writable and not view.flags.writeable:
        raise ReadOnlyError(
            f"{name} ({lender.kind}) is read-only, needed is memory that can be updated in place; "
            f"make a copy and keep that: {lender.thaw}"
        )


def wrong_dtype(name: str, dtype: object, kind: str, convert: str, *, narrow: bool) -> DtypeError:
    """Return the error for an element type that is not supported."""
    needed = "float32, float64, bfloat16 (or its bits as uint16) or float16" if narrow else "float32 or float64"
    return DtypeError(f"{name} ({kind}) has dtype {dtype}, needed is {needed}; convert it: {convert}")
