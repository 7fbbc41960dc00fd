"""Steps over flat arrays in memory that outlives the process: a step that was interrupted is finished by the next.

Imports the table, the kernel and NumPy.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise

import numpy as np

from numba_adam.cpu.kernels import staged, threads
from numba_adam.cpu.table import Plan, UpdateTable
from numba_adam.numerics.array import Array
from numba_adam.numerics.staging import BLOCK, CHUNK
from numba_adam.settings.hyperparameters import Hyperparameters
from numba_adam.settings.scaling import AS_THEY_ARE, Scaling


class StagedUpdate:
    """Steps over the flat arrays of several parameters. One thread at a time may use it.

    All arrays lie in memory that outlives this process, and so must the gradients. Whatever instruction was the last
    of an interrupted step, the same step, made again with the same number, gives the bits that it would have given.

    Args:
        columns: param, exp_avg, exp_avg_sq, and max_exp_avg_sq with AMSGrad: one-dimensional, of one dtype and size.
        sizes: the elements of each parameter; they follow each other in the columns.
        hyperparameters: those of all parameters, or of each group.
        words: (numerics.staging.words_of(elements),) uint64; zero before the first step.
        staging: (numerics.staging.staging_of(elements, columns),) of the columns' dtype.
        chunk: elements of a chunk, a multiple of `numerics.staging.BLOCK`.
        groups: the group of each parameter; None: all are of group 0.
    """

    def __init__(
        self,
        columns: Sequence[Array],
        sizes: Sequence[int],
        hyperparameters: Hyperparameters | Sequence[Hyperparameters],
        words: Array,
        staging: Array,
        chunk: int = CHUNK,
        groups: Sequence[int] | None = None,
    ) -> None:
        self._columns, self._words, self._staging = list(columns), words, staging
        self._elements, self._chunk = columns[0].size, chunk
        bounds = list(accumulate(sizes, initial=0))
        cut = [[column[begin:end] for begin, end in pairwise(bounds)] for column in columns]
        each = [hyperparameters] if isinstance(hyperparameters, Hyperparameters) else list(hyperparameters)
        self._whole = UpdateTable(*([column] for column in columns), hyperparameters=each[:1])
        self._by_tensor = UpdateTable(*cut, hyperparameters=each, groups=groups)
        self._job = np.zeros(staged.JOB, np.uint64)
        self._job[: staged.COLUMNS + 1] = (
            0,
            words.ctypes.data,
            staging.ctypes.data,
            self._elements,
            chunk,
            0,
            0,
            len(columns),
        )
        first = staged.COLUMNS + 1
        self._job[first : first + len(columns)] = [column.ctypes.data for column in columns]

    def set_hyperparameters(self, hyperparameters: Sequence[Hyperparameters]) -> None:
        """Let the next steps use other hyperparameters: those of each group."""
        self._whole.set_hyperparameters(0, hyperparameters[0])
        for index, each in enumerate(hyperparameters):
            self._by_tensor.set_hyperparameters(index, each)

    def is_done(self, number: int) -> bool:
        """Return whether every chunk has completed the step with a number: then finishing it needs no gradient."""
        sizes = np.minimum(self._chunk, self._elements - np.arange(len(self._words)) * self._chunk)
        return bool((self._words >= number * staged.STATES + 2 * -(-sizes // BLOCK)).all())

    def steps(
        self,
        gradients: Sequence[Array | None],
        counts: Sequence[int],
        number: int,
        most: int = 1 << 62,
        scaling: Scaling = AS_THEY_ARE,
    ) -> Iterator[None]:
        """Return an iterator that makes a step, or finishes one that was interrupted, about `most` elements at a time.

        Args:
            gradients: one for each parameter, of the columns' dtype; or one of all elements; None: without a gradient.
            counts: earlier updates of each parameter; or one number for all.
            number: the step's number, higher than that of every step before.
            most: elements.
            scaling: the treatment of the gradients; nothing is measured here.
        """
        table = self._whole if len(gradients) == 1 else self._by_tensor
        steps = np.array(counts, np.int64)
        plan = table.plan(gradients, steps, scaling)
        self._job[staged.NUMBER] = number
        return self._launches(table, plan, most, gradients)

    def _launches(
        self,
        table: UpdateTable,
        plan: Plan,
        most: int,
        gradients: Sequence[Array | None],  # noqa: ARG002 - must live as long as the iterator
    ) -> Iterator[None]:
        """Launch the kernel for some chunks after others, and yield after each launch."""
        chunks, each = len(self._words), max(1, most // self._chunk)
        for first in range(0, chunks, each):
            stop = min(first + each, chunks)
            self._job[staged.FIRST], self._job[staged.STOP] = first, stop
            tasks = min(threads.tasks_for((stop - first) * self._chunk), stop - first)
            table.launch_staged(plan, self._job, tasks)
            yield
