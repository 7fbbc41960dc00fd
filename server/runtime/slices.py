"""Runs the update of a model's flat arrays in slices of a few milliseconds, so that calls wait for a slice at most.

The update is element-wise, so slicing does not change the result. Imports NumPy, the library's update, the arena, the
spec and the launcher.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple

import numpy as np

from numba_adam.cpu.kernels.threads import ELEMENTS_PER_TASK
from numba_adam.cpu.staged import StagedUpdate
from numba_adam.cpu.staged_formats import FormatsUpdate, Staging
from numba_adam.cpu.table import UpdateTable
from numba_adam.server.model.arena import Arena, FlatArray, split
from numba_adam.server.model.columns import by_tensor, staging_of_columns
from numba_adam.server.model.spec import Spec
from numba_adam.server.runtime.launcher import Launcher

MOST_ELEMENTS = 1 << 22  # of one slice; each of several has at least half of it, enough for the prefetch
_GRAIN = 512  # elements; slices begin at cache lines
_FEWEST_ELEMENTS = 2 * ELEMENTS_PER_TASK  # a smaller update takes less time than waking another thread


class Piece(NamedTuple):
    """The part of one tensor that lies in a slice."""

    tensor: int
    """Index of the tensor."""

    begin: int
    """Its first element, counted within the tensor."""

    end: int
    """The end, exclusive."""


class Slice:
    """Some consecutive elements of all state arrays.

    Args:
        spec: the model.
        arena: its memory.
        begin: the first element.
        end: the end, exclusive.
    """

    def __init__(self, spec: Spec, arena: Arena, begin: int, end: int) -> None:
        self._range = slice(begin, end)
        self._pieces = list(_pieces(arena.sizes, begin, end))
        columns = [array[begin:end] for array in arena.state_arrays().values()]
        sizes = [piece.end - piece.begin for piece in self._pieces]
        self._whole = UpdateTable(*([column] for column in columns), hyperparameters=[spec.hyperparameters])
        self._by_tensor = UpdateTable(
            *(split(column, sizes) for column in columns), hyperparameters=[spec.hyperparameters]
        )

    def update_whole(self, gradient: FlatArray, step: int) -> None:
        """Make a step of all tensors. Each must have a gradient, and all the same step count."""
        self._whole.update([gradient[self._range]], np.array([step]))

    def update_by_tensor(self, gradients: Sequence[FlatArray | None], steps: Sequence[int]) -> None:
        """Make a step of each tensor that has a gradient."""
        pieces = [(gradients[piece.tensor], piece) for piece in self._pieces]
        cut = [None if gradient is None else gradient[piece.begin : piece.end] for gradient, piece in pieces]
        self._by_tensor.update(cut, np.array([steps[piece.tensor] for piece in self._pieces]))


class SlicedUpdate:
    """The update over one model's arrays. One thread at a time may use it.

    Args:
        spec: the model.
        arena: its memory.
        launcher: runs updates that are faster on several threads. None: all run on the calling thread.
    """

    def __init__(self, spec: Spec, arena: Arena, launcher: Launcher | None) -> None:
        self._spec = spec
        self._launcher = launcher
        self._elements = arena.element_count
        self._staged = _staged(spec, arena)
        self._formats = None if arena.is_plain else _formats(spec, arena)
        cuts = [] if self._staged or self._formats else _cuts(arena.element_count)
        self._slices = [Slice(spec, arena, begin, end) for begin, end in cuts]

    @property
    def is_short(self) -> bool:
        """Whether the update is a single slice."""
        return self._elements <= MOST_ELEMENTS

    def is_done(self, number: int) -> bool:
        """Return whether a step of memory that outlived its process is complete."""
        if self._formats is not None:
            return self._formats.is_done(number)
        return self._staged is None or self._staged.is_done(number)

    def run(self, present: Sequence[bool], gradient: FlatArray, steps: Sequence[int], number: int = 0) -> None:
        """Make one step.

        Args:
            present: for each tensor, whether it has a gradient.
            gradient: the elements of the present tensors, concatenated.
            steps: number of earlier updates of each tensor.
            number: for memory that outlives the process, the step's number, higher than those before. If the step was
                interrupted, the rest is done.
        """
        slices = self._updated(present, gradient, steps, number)
        if self._launcher is not None and self._is_worth_a_launch(gradient.size, self._launcher):
            self._launcher.run(slices)
        else:
            for _ in slices:
                pass

    def _is_worth_a_launch(self, elements: int, launcher: Launcher) -> bool:
        """Return whether several threads are faster; a small update should not wait for a slice of a large one."""
        if launcher.threads == 1 or elements < _FEWEST_ELEMENTS:
            return False
        return not self.is_short or launcher.is_idle

    def _updated(
        self, present: Sequence[bool], gradient: FlatArray, steps: Sequence[int], number: int
    ) -> Iterator[None]:
        """Update slice by slice, and yield after each."""
        if self._formats is not None:
            if any(present):
                yield from self._formats.steps(self._gradients(present, gradient), steps, number, MOST_ELEMENTS)
            return
        is_whole = all(present) and len(set(steps)) == 1  # the usual push: the whole vector is one array
        gradients = [] if is_whole else self._gradients(present, gradient)
        if self._staged is not None and any(present):
            counts = steps[:1] if is_whole else steps
            yield from self._staged.steps([gradient] if is_whole else gradients, counts, number, MOST_ELEMENTS)
        for each in self._slices:
            if is_whole:
                each.update_whole(gradient, steps[0])
            else:
                each.update_by_tensor(gradients, steps)
            yield

    def _gradients(self, present: Sequence[bool], gradient: FlatArray) -> list[FlatArray | None]:
        """Return one gradient for each tensor, None for the absent."""
        sizes = [tensor.size for tensor, is_present in zip(self._spec.tensors, present, strict=True) if is_present]
        views = iter(split(gradient, sizes))
        return [next(views) if is_present else None for is_present in present]


def _staged(spec: Spec, arena: Arena) -> StagedUpdate | None:
    """Return the update of memory that outlives the process; None for other memory."""
    if not arena.is_plain or arena.words is None or arena.staging is None:
        return None
    columns = list(arena.state_arrays().values())
    return StagedUpdate(columns, arena.sizes, spec.hyperparameters, arena.words, arena.staging)


def _formats(spec: Spec, arena: Arena) -> FormatsUpdate:
    """Return the update of state that has formats of its own."""
    staging = None
    if arena.words is not None and arena.staging is not None:
        staging = Staging(arena.words, arena.staging, staging_of_columns(arena.columns))
    arrays = by_tensor(arena.columns, arena.state_arrays())
    return FormatsUpdate(arrays, spec.hyperparameters, spec.options, staging)


def _cuts(elements: int) -> Iterator[tuple[int, int]]:
    """Yield the begin and end of slices of nearly equal size."""
    count = -(-elements // MOST_ELEMENTS)
    size = -(-elements // (count * _GRAIN)) * _GRAIN if count else 1
    for begin in range(0, elements, size):
        yield begin, min(begin + size, elements)


def _pieces(sizes: Sequence[int], begin: int, end: int) -> Iterator[Piece]:
    """Yield the pieces of tensors that lie between two elements."""
    for tensor, (first, last) in enumerate(pairwise(accumulate(sizes, initial=0))):
        if first < end and last > begin and first < last:
            yield Piece(tensor, max(begin - first, 0), min(end, last) - first)
