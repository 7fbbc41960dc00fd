"""borrow(): which kind an array is of, and the way to its memory. May import NumPy and its neighbours here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from numba_adam.interop import jax, numpy, protocols, torch
from numba_adam.interop.lender import FLOAT32, FLOAT64, Lender, check

_LENDERS: tuple[Lender, ...] = (numpy.LENDER, torch.LENDER, jax.LENDER, *protocols.LENDERS)


def borrow(
    array: object, *, name: str, writable: bool = False, narrow: bool = False, any_order: bool = False
) -> npt.NDArray[Any]:
    """Return a NumPy view of an array's memory, without copying.

    Args:
        array: a NumPy array, a PyTorch tensor (CPU), a JAX array (CPU), or anything with the buffer protocol,
            `__array_interface__` or `__dlpack__`; float32 or float64.
        name: what error messages call it, such as "params['w']".
        writable: whether the view is going to be written to.
        narrow: whether bfloat16 and float16 are admitted too. NumPy knows no bfloat16 of its own: an array of
            ml_dtypes' stays what it is, a PyTorch tensor's bits come as uint16, and uint16 arrays are taken for such.
        any_order: whether the axes of the array may lie in memory in any order, as long as it is dense.

    Returns:
        A view of the array's own shape: C-contiguous (or dense), aligned, in native byte order. A plain NumPy array is
        returned as it is.

    Raises:
        UnsupportedArrayError: there is no memory to borrow, or it is not in this host's RAM.
        DtypeError: neither float32 nor float64, nor one of the narrow formats where these are admitted.
        LayoutError: not C-contiguous (or not dense), not aligned or not in native byte order.
        ReadOnlyError: `writable`, and the memory must not be written to.

    >>> import array
    >>> borrow(array.array("f", [1.0, 2.0]), name="grad")
    array([1., 2.], dtype=float32)
    """
    if type(array) is np.ndarray:  # on the way of every gradient of every step: keep it to these three questions
        dtype = array.dtype
        if (dtype is FLOAT32 or dtype is FLOAT64) and array.flags.carray:
            return array
    lender = lender_of(array)
    view = lender.lend(array, name, narrow)
    check(view, name, lender, writable=writable, narrow=narrow, any_order=any_order)
    return view


def lender_of(array: object) -> Lender:
    """Return what knows an array's kind."""
    return next(lender for lender in _LENDERS if lender.owns(array))


def layouts_function(array: object) -> Callable[[Sequence[Any]], object] | None:
    """Return what says the addresses, shapes, strides and dtypes of arrays of an array's kind.

    None for kinds that need not be asked: NumPy arrays, which the kernels look at, and arrays that never change.
    """
    return lender_of(array).layouts
