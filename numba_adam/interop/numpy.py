"""NumPy arrays that are not plainly usable: subclasses, and those to be refused. May import NumPy."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import numpy.typing as npt

from numba_adam.errors import UnsupportedArrayError
from numba_adam.interop.lender import Lender


def _lend(array: Any, name: str, narrow: bool) -> npt.NDArray[Any]:
    """Return the array without its subclass; one whose elements may be hidden is refused."""
    masked = sys.modules.get("numpy.ma")
    if masked is not None and isinstance(array, masked.MaskedArray):
        raise UnsupportedArrayError(
            f"{name} is a masked array, needed is one whose elements all count; "
            "decide what the masked ones are: x.filled(0)"
        )
    return np.asarray(array)


LENDER = Lender(
    kind="NumPy array",
    owns=lambda array: isinstance(array, np.ndarray),
    lend=_lend,
)
