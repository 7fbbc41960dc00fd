"""The arrays of a table, column by column: borrowed, and validated against each other. The same for every backend."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from numba_adam.errors import DtypeError
from numba_adam.interop.arrays import check_shape
from numba_adam.interop.axes import Axes, as_given
from numba_adam.numerics.formats import Format
from numba_adam.settings.step_arrays import array_format, written


class Columns(ABC):
    """Parameters, and the arrays that are updated with them."""

    def __init__(
        self,
        given: Sequence[Sequence[Any] | None],
        names: Sequence[str] | None,
        labels: Sequence[str],
        axes: Sequence[Axes | None] | None,
    ) -> None:
        """Borrow the arrays and validate them.

        Args:
            given: params, exp_avgs, exp_avg_sqs, max_exp_avg_sqs, emas and copies. None where a parameter has no such
                array, or none of them has.
            names: what error messages call the parameters; None: their indices.
            labels: what they call each column, in the same order, then the gradients.
            axes: for each parameter the order in memory of its gradients' axes; None: C order, of all of them.

        Raises:
            ArrayError: an array does not fit; the message names it.
        """
        params: Any = given[0]
        nothing = [None] * len(params)
        self.labels = labels
        self.names = [f"[{index}]" for index in range(len(params))] if names is None else list(names)
        self.axes: list[Axes | None] = list(axes or nothing)
        self.arrays = [
            [self._borrowed_or_none(array, f"{label}{name}") for array, name in zip(column, self.names, strict=True)]
            for column, label in zip((column or nothing for column in given), labels, strict=False)
        ]
        self.params: list[Any] = self.arrays[0]
        self._check_shapes()
        self.shapes = [as_given(*pair).shape for pair in zip(self.params, self.axes, strict=True)]
        """The shape of each parameter's gradients."""

        self.formats: list[list[Format | None]] = [
            [None if array is None else array_format(array) for array in arrays]
            for arrays in zip(*self.arrays, strict=True)
        ]
        """The formats of each parameter's arrays, in the order of the columns."""

        self.dtype = self._shared_dtype()
        """The compute dtype, "float32" or "float64"."""

    @property
    def range(self) -> str:
        """The dtype whose range all moments have: its floors keep them out of the subnormal numbers."""
        formats = {format_ for row in self.formats for format_ in row[1:4] if format_ is not None}
        return "float64" if formats == {Format.FLOAT64} else "float32"

    def written(self) -> tuple[list[Any], list[str]]:
        """Return every array that an update writes, except the gradients, and what error messages call it."""
        return written(self.arrays, self.names, self.labels)

    def grad_name(self, index: int) -> str:
        """Return what error messages call a parameter's gradient."""
        return f"{self.labels[6]}{self.names[index]}"

    def param_name(self, index: int) -> str:
        """Return what error messages call a parameter."""
        return f"{self.labels[0]}{self.names[index]}"

    @abstractmethod
    def borrowed(self, array: Any, name: str) -> Any:
        """Return the memory of an array, or of a moment in 8 bits, validated by itself."""

    @abstractmethod
    def compute_dtype(self, index: int) -> str:
        """Return the compute dtype of a parameter with its moments.

        Raises:
            DtypeError: their formats cannot be mixed.
        """

    def _borrowed_or_none(self, array: Any, name: str) -> Any:
        return None if array is None else self.borrowed(array, name)

    def _check_shapes(self) -> None:
        """Refuse arrays whose shape is not their parameter's."""
        for column, label in zip(self.arrays[1:], self.labels[1:], strict=False):
            for index, array in enumerate(column):
                if array is not None:
                    check_shape(array, f"{label}{self.names[index]}", self.params[index], self.param_name(index))

    def _shared_dtype(self) -> str:
        """Return the compute dtype, which all parameters share."""
        dtypes = {self.compute_dtype(index) for index in range(len(self.params))}
        if len(dtypes) != 1:
            found = ", ".join(sorted({array_format(param).label for param in self.params}))
            raise DtypeError(
                f"{self.labels[0]}: expected one compute dtype, float32 or float64, got parameters of {found}. "
                "Split them"
            )
        return dtypes.pop()
