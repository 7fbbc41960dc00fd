"""borrow(): find an array's kind and return a view of its memory. May import NumPy and its neighbours here."""

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
        name: the array's name in error messages, such as "params['w']".
        writable: whether the caller will write to the view.
        narrow: whether bfloat16 and float16 are accepted too. NumPy has no bfloat16. An array of ml_dtypes.bfloat16
            stays one. A bfloat16 tensor of PyTorch becomes a view of its bits as uint16. A uint16 array counts as
            bfloat16 bits.
        any_order: whether the axes of a dense array may have any order in memory.

    Returns:
        A view with the array's shape: C-contiguous (or dense), aligned, in native byte order. A plain NumPy array is
        returned itself.

    Raises:
        UnsupportedArrayError: the object exposes no memory, or the memory is not in this host's RAM.
        DtypeError: the dtype is not float32 or float64, nor an accepted 16-bit format.
        LayoutError: the memory is not C-contiguous (or not dense), not aligned or not in native byte order.
        ReadOnlyError: `writable` is True, and the memory is read-only.

    >>> import array
    >>> borrow(array.array("f", [1.0, 2.0]), name="grad")
    array([1., 2.], dtype=float32)
    """
    if type(array) is np.ndarray:  # runs for every gradient of every step: keep it fast
        dtype = array.dtype
        if (dtype is FLOAT32 or dtype is FLOAT64) and array.flags.carray:
            return array
    lender = lender_of(array)
    view = lender.lend(array, name, narrow)
    check(view, name, lender, writable=writable, narrow=narrow, any_order=any_order)
    return view


def lender_of(array: object) -> Lender:
    """Return the Lender of an array's kind."""
    return next(lender for lender in _LENDERS if lender.owns(array))


def layouts_function(array: object) -> Callable[[Sequence[Any]], object] | None:
    """Return the function that reads the addresses, shapes, strides and dtypes of arrays of this array's kind.

    None for NumPy arrays, which the kernels check, and for kinds whose arrays never change.
    """
    return lender_of(array).layouts


def gradient_of(array: object) -> object:
    """Return the gradient that a parameter of PyTorch carries, which may be None. Return other arrays themselves."""
    return array if array is None or type(array) is np.ndarray else lender_of(array).gradient(array)


def maker_of(array: object) -> Callable[[npt.NDArray[Any]], object] | None:
    """Return a function that makes an array of this array's framework of a NumPy array. None: NumPy's own serves."""
    return lender_of(array).make


def drop_gradient(array: object) -> None:
    """Make a parameter of PyTorch forget its gradient. Other arrays do not change."""
    lender_of(array).drop_gradient(array)
