"""The arrays of a table in this host's memory: validated, and as numbers for the kernels. May import NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np

from numba_adam.cpu.kernels.launch_plan import COLUMNS, SCALE
from numba_adam.errors import DtypeError
from numba_adam.interop import borrow
from numba_adam.numerics.array import Array
from numba_adam.numerics.eight_bit import EightBit
from numba_adam.numerics.formats import Format
from numba_adam.settings.columns import Columns
from numba_adam.settings.options import TOO_NARROW


class HostColumns(Columns):
    """Columns of NumPy arrays."""

    def borrowed(self, array: Any, name: str) -> Any:
        """Return an array, validated; codes in 8 bits are made by this library."""
        is_coded = isinstance(array, EightBit)
        lent, called = (array.scales, f"{name}'s scales") if is_coded else (array, name)
        borrow(lent, name=called, writable=True, narrow=True)
        return array

    def compute_dtype(self, index: int) -> str:
        """Return the compute dtype of a parameter with its moments."""
        name = self.names[index]
        formats = [format_ for format_ in self.formats[index][:4] if format_ is not None]
        if Format.FLOAT16 in formats[1:]:
            raise DtypeError(
                f"the state of params{name} is float16, expected float32, float64 or bfloat16: {TOO_NARROW}"
            )
        if Format.FLOAT64 not in formats:
            return "float32"
        narrow = [format_.label for format_ in formats if format_ not in (Format.FLOAT32, Format.FLOAT64)]
        if narrow:
            raise DtypeError(
                f"params{name} is {formats[0].label} with a state of {formats[1].label}: float64 goes with float64 and "
                f"float32, not with {narrow[0]}; choose another state_dtype"
            )
        return "float64"

    def addresses(self) -> Array:
        """Return the address of each array, and of the scales of moments in 8 bits, (parameters, COLUMNS) uint64."""
        table = np.zeros((len(self.params), COLUMNS), dtype=np.uint64)
        for column, arrays in enumerate(self.arrays):
            for k, array in enumerate(arrays):
                if isinstance(array, EightBit):
                    table[k, column], table[k, column + SCALE] = address(array.codes), address(array.scales)
                else:
                    table[k, column] = address(array)
        return table

    def format_numbers(self) -> Array:
        """Return the format of each array, (parameters, COLUMNS) int64; any for a missing one: nothing reads it."""
        numbers = np.zeros((len(self.params), COLUMNS), dtype=np.int64)
        numbers[:, : len(self.arrays)] = [
            [Format.FLOAT32 if format_ is None else format_ for format_ in row] for row in self.formats
        ]
        return numbers

    def is_plain(self, index: int) -> bool:
        """Return whether all arrays of a parameter have the compute dtype, and it has no fused extra work."""
        *moments, ema, copy = (column[index] for column in self.arrays)
        return ema is None and copy is None and all(array is None or array.dtype == self.dtype for array in moments)


def address(array: Array | None) -> int:
    """Return the address of an array's elements: 0 without an array, and never 0 for an empty one."""
    return 0 if array is None else int(array.ctypes.data) or 1
