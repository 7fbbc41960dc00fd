"""Borrows and validates the arrays of a step on one GPU, and returns their addresses. Knows no kernel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from numba_adam.cuda.arrays import borrow_cuda
from numba_adam.cuda.kernels.layout import COLUMNS, EIGHT_BIT, Addresses, Lanes, Layout
from numba_adam.cuda.memory import Array
from numba_adam.errors import DtypeError, UnsupportedArrayError
from numba_adam.interop.axes import Axes
from numba_adam.numerics.eight_bit import EightBit
from numba_adam.settings.columns import Columns

_MOMENTS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")


class CudaColumns(Columns):
    """Columns of CudaArrays on one GPU."""

    def __init__(
        self,
        given: Sequence[Sequence[Any] | None],
        names: Sequence[str] | None,
        labels: Sequence[str],
        axes: Sequence[Axes | None] | None,
    ) -> None:
        """Borrow the arrays and validate them, as `Columns` does, and that all are on one GPU."""
        super().__init__(given, names, labels, axes)
        self.lengths = [param.size for param in self.params]
        self.rows = [self._row(index) for index in range(len(self.params))]
        self._check_eight_bit()
        self._check_devices()

    @property
    def device(self) -> int:
        """The number of their GPU."""
        return int(self.params[0].device)

    @property
    def is_eight_bit(self) -> bool:
        """Whether there are 8-bit moments."""
        return any(EIGHT_BIT in row.values() for row in self.rows)

    def borrowed(self, array: Any, name: str) -> Any:
        """Return an array's memory; 8-bit moments are our own."""
        return array if isinstance(array, EightBit) else borrow_cuda(array, name=name, writable=True)

    def compute_dtype(self, index: int) -> str:
        """Return the compute dtype of a parameter with its moments."""
        return Layout(**self._row(index)).real

    def addresses(self) -> Array:
        """Return all addresses: (COLUMNS, parameters) int64, in the order of Addresses; 0 for the gradients."""
        table = np.zeros((COLUMNS, len(self.params)), dtype=np.int64)
        for name, column in zip(_names(), self.arrays, strict=True):
            for k, array in enumerate(column):
                if isinstance(array, EightBit):
                    table[_index_of(name), k], table[_index_of(f"{name}_scale"), k] = _addresses(array)
                elif array is not None:
                    table[_index_of(name), k] = array.address
        return table

    def _row(self, index: int) -> dict[str, Any]:
        """Return the formats of a parameter's arrays by Layout's names; a column that it does not have is left out."""
        formats = zip(_names(), self.formats[index], strict=True)
        return {name: format_.label for name, format_ in formats if format_ is not None}

    def _check_eight_bit(self) -> None:
        """Refuse 8-bit moments beside others of the same parameter, or computed in float64."""
        if self.is_eight_bit and self.dtype == "float64":
            raise DtypeError(f"{self.labels[0]}: expected the compute dtype float32 for 8-bit moments, got float64")
        for row, name in zip(self.rows, self.names, strict=True):
            if len({row[moment] == EIGHT_BIT for moment in _MOMENTS if moment in row}) > 1:
                raise DtypeError(
                    f"{self.labels[0]}{name}: expected 8 bits for all of its moments or for none, got a mixture"
                )

    def _check_devices(self) -> None:
        """Refuse arrays on another GPU."""
        for array, label in zip(*self.written(), strict=True):
            if array.device != self.device:
                raise UnsupportedArrayError(
                    f"{label}: expected GPU {self.device}, as {self.param_name(0)}, got GPU {array.device}. "
                    "Copy it there"
                )


def _names() -> list[str]:
    """Return the names that Layout and Addresses have for the columns, in the order in which they are given."""
    return [name for name in Lanes._fields if name != "grad"]


def _index_of(name: str) -> int:
    return Addresses._fields.index(name)


def _addresses(moment: EightBit) -> tuple[int, int]:
    codes, scales = moment.codes, moment.scales
    return int(codes.ctypes.data), int(scales.ctypes.data)
