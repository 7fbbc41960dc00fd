"""Results of steps that the GPU decides: the step writes its result there, and it is read when the caller asks.

So nothing waits for a step that is skipped because a gradient is not finite.
"""

from __future__ import annotations

import weakref

import numpy as np

from numba_adam.cuda.kernels.fold import NORM, RECORD, SKIP
from numba_adam.cuda.memory import Buffer
from numba_adam.settings.results import StepResult

_RECORDS = 64  # steps whose results are kept at the same time


class PendingResult(StepResult):
    """What a step did; the first read waits for the GPU."""

    __slots__ = ("__weakref__", "_place", "_records", "_result")
    _place: int
    _records: Records
    _result: StepResult | None

    def __init__(self, records: Records, place: int) -> None:
        """Note which record the step is going to write."""
        object.__setattr__(self, "_records", records)
        object.__setattr__(self, "_place", place)
        object.__setattr__(self, "_result", None)

    def read(self) -> StepResult:
        """Return what the step did."""
        result = self._result
        if result is None:
            result = self._records.read(self._place)
            object.__setattr__(self, "_result", result)
        return result

    @property
    def applied(self) -> bool:
        """True when the parameters were updated; False when a gradient was found not to be finite."""
        return self.read().applied

    @property
    def grad_norm(self) -> float | None:
        """Global norm of the gradients, unscaled and before clipping, when the step measured it."""
        return self.read().grad_norm

    def __eq__(self, other: object) -> bool:
        return isinstance(other, StepResult) and (self.applied, self.grad_norm) == (other.applied, other.grad_norm)

    def __hash__(self) -> int:
        return hash((self.applied, self.grad_norm))


class Records:
    """The records of the last steps of a table, in a ring."""

    def __init__(self, device: int) -> None:
        """Allocate the records on a GPU."""
        self._buffer = Buffer((_RECORDS, RECORD), "int64", device)
        self._streams = [0] * _RECORDS
        self._has_norm = [False] * _RECORDS
        self._unread: list[weakref.ref[PendingResult] | None] = [None] * _RECORDS
        self._place = 0

    def next(self, stream: int, *, has_norm: bool) -> PendingResult:
        """Return the result of the step that is going to be queued on a stream.

        It reuses an old record. Where the result of that is still in use and was never read, it is read now.
        """
        self._place = (self._place + 1) % _RECORDS
        former = self._unread[self._place]
        if former is not None and (result := former()) is not None:
            result.read()
        self._streams[self._place], self._has_norm[self._place] = stream, has_norm
        pending = PendingResult(self, self._place)
        self._unread[self._place] = weakref.ref(pending)
        return pending

    @property
    def address(self) -> int:
        """The address of the record of the step that `next` announced last."""
        return self._buffer.address + 8 * RECORD * self._place

    def read(self, place: int) -> StepResult:
        """Read a record; waits until it is written."""
        record = self._buffer.download(self._streams[place])[place]
        norm = float(record.view(np.float64)[NORM]) if self._has_norm[place] else None
        return StepResult(int(record[SKIP]) == 0, norm)
