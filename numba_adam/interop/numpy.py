"""Borrows NumPy arrays that the fast path of `borrow` does not take, such as subclasses. May import NumPy."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import numpy.typing as npt

from numba_adam.errors import UnsupportedArrayError
from numba_adam.interop.lender import Lender


def _lend(array: Any, name: str, narrow: bool) -> npt.NDArray[Any]:
    """Return the array as a plain ndarray; refuse a masked array, whose elements may be hidden."""
    masked = sys.modules.get("numpy.ma")
    if masked is not None and isinstance(array, masked.MaskedArray):
        raise UnsupportedArrayError(
            f"{name} is a masked array, expected one without a mask; replace the masked elements: x.filled(0)"
        )
    return np.asarray(array)


LENDER = Lender(
    kind="NumPy array",
    owns=lambda array: isinstance(array, np.ndarray),
    lend=_lend,
)
