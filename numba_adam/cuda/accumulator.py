"""Sums the gradients of several micro-batches on a GPU, without waiting for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from numba_adam.cuda.arrays import CudaArray
from numba_adam.cuda.batches import Batch, Work, batches, launch
from numba_adam.cuda.kernels import accumulate
from numba_adam.cuda.kernels.layout import Addresses
from numba_adam.cuda.memory import Array, Buffer, buffer_of, clear, zeros
from numba_adam.interop.axes import Axes, as_given
from numba_adam.numerics.formats import Format

_SUM, _GRAD = Addresses._fields.index("param"), Addresses._fields.index("grad")


class CudaAccumulator:
    """The sums of some parameters' gradients on a GPU, in the compute dtype; fulfils `contract.Accumulator`."""

    def __init__(self, params: Sequence[CudaArray], dtype: str, axes: Sequence[Axes | None]) -> None:
        """Allocate the sums, zero everywhere.

        Args:
            params: the parameters, their axes in C order.
            dtype: dtype of the sums.
            axes: the order of each gradient's axes in memory.
        """
        self._axes = list(axes)
        self._sums = [zeros(param.shape, Format.named(dtype), param.device, param.stream) for param in params]
        self._have = [False] * len(params)

    def on(self, stream: int) -> list[CudaArray]:
        """Return the sums, to be written next on a stream."""
        self._sums = [replace(array, stream=stream) for array in self._sums]
        return self._sums

    def note(self, grads: Sequence[Any]) -> None:
        """Note which parameters had a gradient."""
        self._have = [have or grad is not None for have, grad in zip(self._have, grads, strict=True)]

    def grads(self) -> list[Any]:
        """Return the sum of each parameter's gradients; None without a gradient."""
        triples = zip(self._sums, self._have, self._axes, strict=True)
        return [as_given(array, axes) if have else None for array, have, axes in triples]

    def reset(self, *, are_zero: bool) -> None:
        """Forget which parameters had a gradient. Queue zeros for the sums, unless a step has done so."""
        for array, have in zip(self._sums, self._have, strict=True):
            if have and not are_zero:
                clear(array)
        self._have = [False] * len(self._have)


class Additions:
    """Adds a table's gradients to sums: the launches and their plan."""

    def __init__(self, work: Work, real: str, stream: int) -> None:
        """Allocate the buffers; `work` is the update's launch plan, `real` the compute dtype."""
        self._real, self._table = real, np.zeros_like(work.table)
        nothing = buffer_of(np.zeros(1, dtype=np.int64), work.addresses.device, stream)
        self._nothing = nothing  # an addition is never skipped
        addresses = Buffer(work.table.shape, "int64", work.addresses.device)
        self._work = work._replace(table=self._table, addresses=addresses, skip=nothing.address)
        self._batches: dict[tuple[str, ...], list[Batch]] = {}

    def add(self, sums: Sequence[CudaArray], grads: Array, formats: tuple[str, ...], stream: int) -> None:
        """Queue the addition.

        Args:
            sums: one for each of the table's parameters.
            grads: (parameters,) int64: the addresses of the gradients, 0 without one.
            formats: their formats, "" without one.
            stream: the stream.
        """
        wanted = np.array([[array.address for array in sums], grads], dtype=np.int64)
        if not np.array_equal(wanted, self._table[[_SUM, _GRAD]]):
            self._table[[_SUM, _GRAD]] = wanted
            self._work.addresses.upload(self._table, stream)
        if formats not in self._batches:
            layouts = [accumulate.layout(self._real, number) if number else None for number in formats]
            self._batches[formats] = batches(layouts, self._work.sizes, self._work.addresses.device, stream)
        for batch in self._batches[formats]:
            launch(accumulate.kernels(batch.layout), batch, self._work, stream)
