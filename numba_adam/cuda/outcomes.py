"""Results of steps that the GPU decides: a step writes its result on the GPU, and the caller reads it later.

So no call waits to learn whether a step was skipped because of a non-finite gradient.
"""

from __future__ import annotations

import weakref

import numpy as np

from numba_adam.cuda.kernels.fold import NORM, RECORD, SKIP
from numba_adam.cuda.memory import Buffer
from numba_adam.settings.results import StepResult

_RECORDS = 64  # number of results that are kept


class PendingResult(StepResult):
    """The result of a step. The first read waits for the GPU."""

    __slots__ = ("__weakref__", "_index", "_records", "_result")
    _index: int
    _records: Records
    _result: StepResult | None

    def __init__(self, records: Records, index: int) -> None:
        """Set the record that the step will write."""
        object.__setattr__(self, "_records", records)
        object.__setattr__(self, "_index", index)
        object.__setattr__(self, "_result", None)

    def read(self) -> StepResult:
        """Return the result."""
        result = self._result
        if result is None:
            result = self._records.read(self._index)
            object.__setattr__(self, "_result", result)
        return result

    @property
    def applied(self) -> bool:
        """True: the parameters were updated. False: a gradient was not finite."""
        return self.read().applied

    @property
    def grad_norm(self) -> float | None:
        """Global norm of the unscaled gradients before clipping; None if the step did not measure it."""
        return self.read().grad_norm

    def __eq__(self, other: object) -> bool:
        return isinstance(other, StepResult) and (self.applied, self.grad_norm) == (other.applied, other.grad_norm)

    def __hash__(self) -> int:
        return hash((self.applied, self.grad_norm))


class Records:
    """A ring buffer of the records of a table's last steps."""

    def __init__(self, device: int) -> None:
        """Allocate the records on a GPU."""
        self._buffer = Buffer((_RECORDS, RECORD), "int64", device)
        self._streams = [0] * _RECORDS
        self._has_norm = [False] * _RECORDS
        self._unread: list[weakref.ref[PendingResult] | None] = [None] * _RECORDS
        self._index = 0

    def next(self, stream: int, *, has_norm: bool) -> PendingResult:
        """Return the pending result of the next step, which will be queued on a stream.

        It reuses an old record. If that record's result is still in use and unread, it is read first.
        """
        self._index = (self._index + 1) % _RECORDS
        former = self._unread[self._index]
        if former is not None and (result := former()) is not None:
            result.read()
        self._streams[self._index], self._has_norm[self._index] = stream, has_norm
        pending = PendingResult(self, self._index)
        self._unread[self._index] = weakref.ref(pending)
        return pending

    @property
    def address(self) -> int:
        """The address of the record of the last `next`."""
        return self._buffer.address + 8 * RECORD * self._index

    def read(self, index: int) -> StepResult:
        """Wait until a record is written, and read it."""
        record = self._buffer.download(self._streams[index])[index]
        norm = float(record.view(np.float64)[NORM]) if self._has_norm[index] else None
        return StepResult(int(record[SKIP]) == 0, norm)
