"""Borrows and validates the arrays of a step on one GPU, and returns their addresses. Knows no kernel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from numba_adam.cuda.arrays import CudaArray, borrow_cuda
from numba_adam.cuda.kernels.layout import COLUMNS, EIGHT_BIT, Addresses, Lanes, Layout
from numba_adam.cuda.memory import Array
from numba_adam.errors import DtypeError, UnsupportedArrayError
from numba_adam.interop.arrays import check_like
from numba_adam.numerics.eight_bit import EightBit
from numba_adam.settings.step_arrays import written

_MOMENTS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")


class Columns:
    """Parameters, and the arrays that are updated with them."""

    def __init__(self, given: Sequence[Sequence[Any]], names: Sequence[str], labels: Sequence[str]) -> None:
        """Borrow the arrays and validate them.

        Args:
            given: params, exp_avgs, exp_avg_sqs, max_exp_avg_sqs, emas and copies; None for a missing array.
                An 8-bit moment is an EightBit of CudaArrays.
            names: names of the parameters in error messages.
            labels: names of the kinds of arrays in error messages, in the same order, then that of the gradients.

        Raises:
            ArrayError: an array does not fit; the message names it.
        """
        self.names, self.labels = list(names), labels
        self._columns = [
            [_borrowed(array, f"{label}{name}") for array, name in zip(column, names, strict=True)]
            for column, label in zip(given, labels, strict=False)
        ]
        self.params: list[CudaArray] = self._columns[0]
        self.lengths = [param.size for param in self.params]
        self.rows = [self._formats(k) for k in range(len(self.params))]
        self.dtype = self._computed_in()
        self._check_devices()
        self._check_shapes()

    @property
    def device(self) -> int:
        """The number of their GPU."""
        return self.params[0].device

    @property
    def range(self) -> str:
        """The dtype that sets the range of all moments, and so their floors."""
        formats = {row[name] for row in self.rows for name in _MOMENTS if name in row}
        return "float64" if formats == {"float64"} else "float32"

    @property
    def is_eight_bit(self) -> bool:
        """Whether there are 8-bit moments."""
        return any(EIGHT_BIT in row.values() for row in self.rows)

    def written(self) -> tuple[list[Any], list[str]]:
        """Return every array that an update writes, except the gradients, and its name in error messages."""
        return written(self._columns, self.names, self.labels)

    def addresses(self) -> Array:
        """Return all addresses: (COLUMNS, parameters) int64, in the order of Addresses; 0 for the gradients."""
        table = np.zeros((COLUMNS, len(self.params)), dtype=np.int64)
        for name, column in zip(_names(), self._columns, strict=True):
            for k, array in enumerate(column):
                if isinstance(array, EightBit):
                    table[_index_of(name), k], table[_index_of(f"{name}_scale"), k] = _addresses(array)
                elif array is not None:
                    table[_index_of(name), k] = array.address
        return table

    def _formats(self, row: int) -> dict[str, Any]:
        """Return the formats of a parameter's arrays by Layout's names, without missing columns."""
        columns = zip(_names(), self._columns, strict=True)
        return {name: _format(column[row]) for name, column in columns if column[row] is not None}

    def _computed_in(self) -> str:
        """Return the compute dtype, which all parameters share."""
        reals = sorted({Layout(**row).real for row in self.rows})
        if len(reals) != 1:
            found = ", ".join(sorted({param.format for param in self.params}))
            raise DtypeError(
                f"{self.labels[0]}: expected one compute dtype, float32 or float64, got parameters of {found}. "
                "Split them"
            )
        if self.is_eight_bit:
            self._check_eight_bit(reals[0])
        return reals[0]

    def _check_eight_bit(self, real: str) -> None:
        """Refuse 8-bit moments beside others of the same parameter, or computed in float64."""
        if real == "float64":
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
                    f"{label}: expected GPU {self.device}, as {self.labels[0]}{self.names[0]}, got GPU {array.device}. "
                    "Copy it there"
                )

    def _check_shapes(self) -> None:
        """Refuse arrays whose shape is not their parameter's."""
        for column, label in zip(self._columns[1:], self.labels[1:], strict=False):
            for array, param, name in zip(column, self.params, self.names, strict=True):
                if array is not None and array.shape != param.shape:
                    check_like(array, f"{label}{name}", param, f"{self.labels[0]}{name}")  # type: ignore[arg-type]


def _names() -> list[str]:
    """Return the names that Layout and Addresses have for the columns, in the order in which they are given."""
    return [name for name in Lanes._fields if name != "grad"]


def _index_of(name: str) -> int:
    return Addresses._fields.index(name)


def _borrowed(array: Any, name: str) -> Any:
    """Borrow an array; 8-bit moments are our own."""
    return array if array is None or isinstance(array, EightBit) else borrow_cuda(array, name=name, writable=True)


def _format(array: Any) -> str:
    return EIGHT_BIT if isinstance(array, EightBit) else str(array.format)


def _addresses(moment: EightBit) -> tuple[int, int]:
    codes, scales = moment.codes, moment.scales
    return int(codes.ctypes.data), int(scales.ctypes.data)
