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
from numba_adam.server.model.steering import StepSettings
from numba_adam.server.runtime.launcher import Launcher
from numba_adam.server.runtime.measuring import Measuring
from numba_adam.settings.hyperparameters import Hyperparameters
from numba_adam.settings.scaling import Scaling

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
        settings = spec.first_settings
        each = [group.hyperparameters for group in settings.groups]
        self._whole = UpdateTable(*([column] for column in columns), hyperparameters=each[:1])
        groups = [settings.group_of[piece.tensor] for piece in self._pieces]
        self._by_tensor = UpdateTable(
            *(split(column, sizes) for column in columns), hyperparameters=each, groups=groups
        )

    def set_hyperparameters(self, hyperparameters: Sequence[Hyperparameters]) -> None:
        """Let the next steps use other hyperparameters: those of each group."""
        self._whole.set_hyperparameters(0, hyperparameters[0])
        for index, each in enumerate(hyperparameters):
            self._by_tensor.set_hyperparameters(index, each)

    def update_whole(self, gradient: FlatArray, step: int, scaling: Scaling) -> None:
        """Make a step of all tensors. Each must have a gradient, and all the same step count and hyperparameters."""
        self._whole.update([gradient[self._range]], np.array([step]), scaling)

    def update_by_tensor(self, gradients: Sequence[FlatArray | None], steps: Sequence[int], scaling: Scaling) -> None:
        """Make a step of each tensor that has a gradient."""
        pieces = [(gradients[piece.tensor], piece) for piece in self._pieces]
        cut = [None if gradient is None else gradient[piece.begin : piece.end] for gradient, piece in pieces]
        self._by_tensor.update(cut, np.array([steps[piece.tensor] for piece in self._pieces]), scaling)


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
        self._plain = spec.first_settings.step(0)
        self._hyperparameters = tuple(group.hyperparameters for group in spec.first_settings.groups)
        self._measuring: Measuring | None = None
        self._arena = arena

    @property
    def is_short(self) -> bool:
        """Whether the update is a single slice."""
        return self._elements <= MOST_ELEMENTS

    def is_done(self, number: int) -> bool:
        """Return whether a step of memory that outlived its process is complete."""
        if self._formats is not None:
            return self._formats.is_done(number)
        return self._staged is None or self._staged.is_done(number)

    def run(
        self,
        present: Sequence[bool],
        gradient: FlatArray,
        steps: Sequence[int],
        number: int = 0,
        settings: StepSettings | None = None,
    ) -> None:
        """Make one step.

        Args:
            present: for each tensor, whether it has a gradient.
            gradient: the elements of the present tensors, concatenated.
            steps: number of earlier updates of each tensor.
            number: for memory that outlives the process, the step's number, higher than those before. If the step was
                interrupted, the rest is done.
            settings: those of the step; None: those that the model begins with.
        """
        slices = self._updated(present, gradient, steps, number, settings or self._plain)
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
        self,
        present: Sequence[bool],
        gradient: FlatArray,
        steps: Sequence[int],
        number: int,
        settings: StepSettings,
    ) -> Iterator[None]:
        """Update slice by slice, and yield after each."""
        self._use(settings.hyperparameters)
        is_one_group = len(settings.hyperparameters) == 1 and not settings.frozen
        is_whole = is_one_group and all(present) and len(set(steps)) == 1  # the usual push: the vector is one array
        scaling = settings.scaling
        is_whole_read = is_whole and not scaling.is_measured and self._formats is None
        gradients = [] if is_whole_read else self._gradients(present, gradient, settings.frozen)
        if scaling.is_measured:
            scaling = self._clipped(gradients, scaling)
            yield
        if self._formats is not None:
            if any(each is not None for each in gradients):
                yield from self._formats.steps(gradients, steps, number, MOST_ELEMENTS, scaling)
            return
        if self._staged is not None and (is_whole or any(each is not None for each in gradients)):
            counts, read = (steps[:1], [gradient]) if is_whole else (steps, gradients)
            yield from self._staged.steps(read, counts, number, MOST_ELEMENTS, scaling)
        for each in self._slices:
            if is_whole:
                each.update_whole(gradient, steps[0], scaling)
            else:
                each.update_by_tensor(gradients, steps, scaling)
            yield

    def _use(self, hyperparameters: tuple[Hyperparameters, ...]) -> None:
        """Let the next steps use these hyperparameters, if they are others than before."""
        before, self._hyperparameters = self._hyperparameters, hyperparameters
        if hyperparameters is before or hyperparameters == before:
            return
        for each in self._slices:
            each.set_hyperparameters(hyperparameters)
        for update in (self._staged, self._formats):
            if update is not None:
                update.set_hyperparameters(hyperparameters)

    def _clipped(self, gradients: Sequence[FlatArray | None], scaling: Scaling) -> Scaling:
        """Return the scaling that clips the norm of the gradients."""
        if self._measuring is None:
            params = self._arena.views(self._arena.param)
            order = self._spec.first_settings.order
            self._measuring = Measuring([params[tensor] for tensor in order], order)
        return self._measuring.clipped(gradients, scaling)

    def _gradients(
        self, present: Sequence[bool], gradient: FlatArray, frozen: frozenset[int]
    ) -> list[FlatArray | None]:
        """Return one gradient for each tensor, None for the absent and the frozen."""
        sizes = [tensor.size for tensor, is_present in zip(self._spec.tensors, present, strict=True) if is_present]
        views = iter(split(gradient, sizes))
        found = [next(views) if is_present else None for is_present in present]
        return [None if tensor in frozen else each for tensor, each in enumerate(found)] if frozen else found


def _staged(spec: Spec, arena: Arena) -> StagedUpdate | None:
    """Return the update of memory that outlives the process; None for other memory."""
    if not arena.is_plain or arena.words is None or arena.staging is None:
        return None
    columns = list(arena.state_arrays().values())
    settings = spec.first_settings
    each = [group.hyperparameters for group in settings.groups]
    return StagedUpdate(columns, arena.sizes, each, arena.words, arena.staging, groups=settings.group_of)


def _formats(spec: Spec, arena: Arena) -> FormatsUpdate:
    """Return the update of state that has formats of its own."""
    staging = None
    if arena.words is not None and arena.staging is not None:
        staging = Staging(arena.words, arena.staging, staging_of_columns(arena.columns))
    arrays = by_tensor(arena.columns, arena.state_arrays())
    settings = spec.first_settings
    each, order = [group.hyperparameters for group in settings.groups], settings.order
    places = {tensor: place for place, tensor in enumerate(order)}
    numbers = [places[tensor] for tensor in range(len(order))]
    return FormatsUpdate(arrays, each, spec.options, staging, groups=settings.group_of, numbers=numbers)


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
