"""Arrays that are updated together, in one kernel launch, where they lie. The one caller of the update kernels.

The optimizer classes, the functional form and the parameter server all stand on `UpdateTable`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from numba_adam.arrays import Array, Extents, check_like
from numba_adam.errors import DtypeError
from numba_adam.folding import FLOORS, Constants
from numba_adam.interop import borrow
from numba_adam.kernels import threads, update
from numba_adam.kernels.gather import Gathered, Gatherer

_LABELS = ("params", "exp_avg", "exp_avg_sq", "max_exp_avg_sq")  # what messages call the columns


class UpdateTable:
    """Parameters and their moments, ready to be updated.

    The table keeps references to its arrays; their memory must stay where it is (NumPy arrays' does).
    """

    def __init__(
        self,
        params: Sequence[Array],
        exp_avgs: Sequence[Array],
        exp_avg_sqs: Sequence[Array],
        max_exp_avg_sqs: Sequence[Array | None] | None = None,
        names: Sequence[str] | None = None,
    ) -> None:
        """Check the arrays and note where they lie.

        Args:
            params: C-contiguous writable arrays, all float32 or all float64, any shapes.
            exp_avgs: first moments, one for each parameter, of its shape and dtype.
            exp_avg_sqs: second moments, likewise.
            max_exp_avg_sqs: largest second moments (AMSGrad), None for parameters without; None: none has one.
            names: what error messages call the parameters. Default: their indices.

        Raises:
            ArrayError: an array does not fit; the message names it.
        """
        self._names = list(names) if names is not None else [f"[{index}]" for index in range(len(params))]
        self._params = list(params)
        self._columns = [self._params, list(exp_avgs), list(exp_avg_sqs)]
        self._max_exp_avg_sqs = list(max_exp_avg_sqs) if max_exp_avg_sqs is not None else [None] * len(params)
        self.dtype = self._check()
        self._extents = Extents(*self._all_arrays())
        self._gatherer = Gatherer([param.shape for param in self._params], self.dtype, self._extents)
        self._table = self._addresses()
        self._offsets = np.cumsum([0, *(param.size for param in self._params)], dtype=np.int64)

    def update(self, grads: Sequence[Array | None], constants: Constants | Sequence[Constants]) -> None:
        """Make one step, in place; nothing is changed if a gradient does not fit.

        Args:
            grads: one gradient for each parameter, of its shape and dtype; None leaves that parameter out.
            constants: from `folding.fold`: one for all, or one for each parameter.

        Raises:
            ArrayError: a gradient does not fit; the message names it.
        """
        if isinstance(constants, Constants):
            rows, which = [constants], np.zeros(len(self._params), dtype=np.int64)
        else:
            rows, which = _distinct(constants)
        self.launch(self.gather(grads), rows, which)

    def gather(self, grads: Sequence[Any]) -> Gathered:
        """Return where the gradients lie, after checking each against its parameter.

        Raises:
            ArrayError: a gradient does not fit; the message names it.
        """
        gathered = self._gatherer.gather(grads)
        if gathered is None:  # one does not fit, or it is no NumPy array: ask one by one
            addresses = np.array([self._address_of(index, grad) for index, grad in enumerate(grads)], dtype=np.uint64)
            gathered = Gathered(addresses, sum(grad is None for grad in grads))
        return gathered

    def launch(self, grads: Gathered, constants: Sequence[Constants], which: Array) -> None:
        """Make one step with gradients that `gather` has checked and that are still alive.

        Args:
            grads: what `gather` returned.
            constants: the distinct constants of this step.
            which: (parameters,) int64: the index in `constants` of each parameter's own.
        """
        table, offsets = self._table, self._offsets
        table[:, update.GRAD] = grads.addresses
        if grads.absent:
            present = np.flatnonzero(grads.addresses)
            table, which = table[present], which[present]
            offsets = np.concatenate(([0], np.cumsum(np.diff(offsets)[present])))
        launch(table, offsets, which, np.array(constants, dtype=self.dtype))

    def _check(self) -> np.dtype[Any]:
        """Check every array against its parameter, and the parameters against each other; return their dtype."""
        dtypes = {param.dtype for param in self._params}
        if len(dtypes) != 1 or (dtype := dtypes.pop()).name not in FLOORS:
            raise DtypeError(f"params have dtypes {sorted(map(str, dtypes))}: they must all be float32 or all float64")
        for array, name in zip(*self._all_arrays(), strict=True):
            borrow(array, name=name, writable=True)
        for column, label in zip([*self._columns[1:], self._max_exp_avg_sqs], _LABELS[1:], strict=True):
            self._check_column(column, label)
        return dtype

    def _check_column(self, column: Sequence[Array | None], label: str) -> None:
        for array, param, name in zip(column, self._params, self._names, strict=True):
            if array is not None:
                check_like(array, f"{label}{name}", param, f"params{name}")

    def _all_arrays(self) -> tuple[list[Array], list[str]]:
        """Return every array that an update writes, and what to call it."""
        pairs = [
            (array, f"{label}{name}")
            for label, column in zip(_LABELS, [*self._columns, self._max_exp_avg_sqs], strict=True)
            for array, name in zip(column, self._names, strict=True)
            if array is not None
        ]
        return [array for array, _ in pairs], [name for _, name in pairs]

    def _addresses(self) -> Array:
        """Return the kernel's table, its gradient column still empty."""
        table = np.zeros((len(self._params), update.COLUMNS), dtype=np.uint64)
        columns = (update.PARAM, update.EXP_AVG, update.EXP_AVG_SQ)
        for column, arrays in zip(columns, self._columns, strict=True):
            table[:, column] = [array.ctypes.data for array in arrays]
        table[:, update.MAX_EXP_AVG_SQ] = [0 if array is None else array.ctypes.data for array in self._max_exp_avg_sqs]
        return table

    def _address_of(self, index: int, grad: Array | None) -> int:
        if grad is None:
            return 0
        name = f"grads{self._names[index]}"
        view = borrow(grad, name=name)
        check_like(view, name, self._params[index], f"params{self._names[index]}")
        self._extents.check_apart(view, name)
        return int(view.ctypes.data)


def _distinct(constants: Sequence[Constants]) -> tuple[list[Constants], Array]:
    """Return the distinct entries, and for each entry which of them it is."""
    numbers: dict[Constants, int] = {}
    which = np.array([numbers.setdefault(entry, len(numbers)) for entry in constants], dtype=np.int64)
    return list(numbers), which


def update_one(written: Sequence[Array], grad: Array, constants: Constants) -> None:
    """Make one step of one parameter.

    Args:
        written: param, exp_avg, exp_avg_sq and, with AMSGrad, max_exp_avg_sq; checked.
        grad: its gradient; checked.
        constants: from `folding.fold`.
    """
    param, *moments = (array.ctypes.data for array in written)
    addresses = [param, grad.ctypes.data, *moments, 0][: update.COLUMNS]
    table = np.array([addresses], dtype=np.uint64)
    offsets = np.array([0, grad.size], dtype=np.int64)
    launch(table, offsets, np.zeros(1, dtype=np.int64), np.array([constants], dtype=grad.dtype))


def launch(table: Array, offsets: Array, which: Array, constants: Array) -> None:
    """Run the kernel on as many threads as the size is worth. Arguments as for `kernels.update`."""
    tasks = threads.tasks_for(int(offsets[-1]))
    if tasks == 1:
        update.update_serial(table, offsets, which, constants)
        return
    with threads.launch_lock:
        threads.note_launch()
        update.update_parallel(table, offsets, which, constants, tasks)
