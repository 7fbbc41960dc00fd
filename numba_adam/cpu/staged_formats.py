"""Steps, in slices, over arrays whose state has its own formats; the next step finishes one that was interrupted.

Imports the table, the kernel and NumPy.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from numba_adam.cpu.kernels import staged_formats, threads
from numba_adam.cpu.table import UpdateTable
from numba_adam.numerics.array import Array
from numba_adam.numerics.staging import FORMATS_BLOCK, FORMATS_CHUNK, StagingLayout, staging_layout, words_of
from numba_adam.settings.hyperparameters import Hyperparameters
from numba_adam.settings.options import Options
from numba_adam.settings.scaling import AS_THEY_ARE, Scaling
from numba_adam.settings.step_arrays import Extras, StepArrays, array_format

_STAGED_COLUMNS = 6  # as StepArrays has; the last is never staged


class Staging:
    """What lets a step survive the death of its process, in memory that outlives it.

    Args:
        words: (numerics.staging.words_of(elements, chunk),) uint64; zero before the first step.
        memory: uint8, of `layout.total_bytes` for each word.
        layout: of the staging of one block.
    """

    def __init__(self, words: Array, memory: Array, layout: StagingLayout) -> None:
        self.words, self.memory, self.layout = words, memory, layout


class FormatsUpdate:
    """Steps over several parameters, in any formats that the library has. One thread at a time may use it.

    The bits are those of `UpdateTable`. With a staging, all arrays lie in memory that outlives this process, and so
    must the gradients: whatever instruction was the last of an interrupted step, the same step, made again with the
    same number, gives the bits that it would have given.

    Args:
        arrays: the arrays of each parameter, one-dimensional.
        hyperparameters: those of all parameters, or of each group.
        options: the rounding, the seed and the decay of the averages.
        staging: None: an interrupted step is lost.
        chunk: elements of a chunk.
        block: elements of a block: a multiple of `numerics.eight_bit.BLOCK`, which divides `chunk`.
        groups: the group of each parameter; None: all are of group 0.
        numbers: the place of each parameter in its optimizer, for roundings at random; None: as they are given.
    """

    def __init__(
        self,
        arrays: StepArrays,
        hyperparameters: Hyperparameters | Sequence[Hyperparameters],
        options: Options,
        staging: Staging | None = None,
        chunk: int = FORMATS_CHUNK,
        block: int = FORMATS_BLOCK,
        groups: Sequence[int] | None = None,
        numbers: Sequence[int] | None = None,
    ) -> None:
        extras = Extras.of(options, arrays, numbers or range(len(arrays.params)))
        each = [hyperparameters] if isinstance(hyperparameters, Hyperparameters) else list(hyperparameters)
        self._table = UpdateTable(*arrays[:4], hyperparameters=each, groups=groups, extras=extras)
        self._staging, self._chunk = staging, chunk
        self._chunks = words_of(sum(param.size for param in arrays.params), chunk)
        self._job = np.zeros(staged_formats.JOB, np.uint64)
        self._job[staged_formats.CHUNK_ELEMENTS], self._job[staged_formats.BLOCK_ELEMENTS] = chunk, block
        if staging is not None:
            self._job[staged_formats.WORDS] = staging.words.ctypes.data
            self._job[staged_formats.STAGING] = staging.memory.ctypes.data or 1  # 0 means none
            self._job[staged_formats.STAGING_BYTES] = staging.layout.total_bytes
            self._job[staged_formats.OFFSETS :] = staging.layout.offsets

    def set_hyperparameters(self, hyperparameters: Sequence[Hyperparameters]) -> None:
        """Let the next steps use other hyperparameters: those of each group."""
        for index, each in enumerate(hyperparameters):
            self._table.set_hyperparameters(index, each)

    def is_done(self, number: int) -> bool:
        """Return whether every chunk has completed the step with a number: then finishing it needs no gradient."""
        last = number * staged_formats.STATES + staged_formats.DONE
        return self._staging is None or bool((self._staging.words >= last).all())

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
            gradients: one for each parameter; None: without a gradient.
            counts: earlier updates of each parameter.
            number: the step's number, higher than that of every step before.
            most: elements.
            scaling: the treatment of the gradients; nothing is measured here.
        """
        updates = np.array(counts, np.int64)
        plan = self._table.plan(gradients, updates, scaling)
        self._job[staged_formats.NUMBER] = number
        self._job[staged_formats.STEPS] = updates.ctypes.data
        each = max(1, most // self._chunk)
        for first in range(0, self._chunks, each):
            stop = min(first + each, self._chunks)
            self._job[staged_formats.FIRST], self._job[staged_formats.STOP] = first, stop
            tasks = min(threads.shares_for((stop - first) * self._chunk), stop - first)
            self._table.launch_formats(plan, self._job, tasks)
            yield


def layout_of(arrays: StepArrays, block: int = FORMATS_BLOCK) -> StagingLayout:
    """Return the layout of a staging for arrays of these formats: those of the first parameter."""
    first = [column[0] for column in arrays[: _STAGED_COLUMNS - 1]]
    return staging_layout([*(None if array is None else array_format(array) for array in first), None], block)
