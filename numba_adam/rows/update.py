"""The launches that update rows of a table: in place, or after a replay of the steps that the rows missed."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

import numpy as np

from numba_adam.cpu.kernels import threads
from numba_adam.errors import HyperparameterError
from numba_adam.numerics.array import Array
from numba_adam.numerics.constants import Constants, Settings
from numba_adam.rows import scratch
from numba_adam.rows.history import RowHistory, StepSettings, check_constant, note_call, row_history
from numba_adam.rows.kernels import in_place, partition, replay_plan
from numba_adam.rows.kernels import replay as kernel
from numba_adam.rows.kernels.grouping import group
from numba_adam.rows.tables import NOTHING, Table, address
from numba_adam.settings.folding import settings
from numba_adam.settings.hyperparameters import Hyperparameters

_FIRST_STEP = np.ones(1, dtype=np.int64)
_MAX_STEPS = 32_768  # replayed in one launch: their constants take 2 MB


class RowUpdate(NamedTuple):
    """An update or a replay of some rows of a table."""

    table: Table
    rows: Array  # for a replay: distinct, ascending; for an update in place: as the caller named them
    starts: Array  # for a replay: where the positions of each row begin in `order`
    order: Array  # the positions
    grads: int  # address of the gradients
    step: int
    grad_scale: float
    has_grads: bool  # whether the rows are updated at `step`, or only brought up to it

    @property
    def end(self) -> int:
        """The step before which the replay ends."""
        return self.step if self.has_grads else self.step + 1


def update_in_place(update: RowUpdate, hyperparameters: Hyperparameters) -> int:
    """Update rows without a replay, on as many threads as their size is worth.

    Args:
        update: the update, with `rows` as the caller named them.
        hyperparameters: of the step.

    Returns:
        The first position whose row is not in the table, and nothing was changed; -1 if all rows are.
    """
    table, rows = update.table, update.rows
    steps = StepSettings(_FIRST_STEP, np.array([settings(hyperparameters, table.dtype)]))
    constants = _constants(steps, update.step, update.step + 1, update)
    packed = np.array([*_addresses(update), address(rows), rows.size, table.width], dtype=np.uint64).reshape(4, 2)
    tasks = threads.tasks_for(rows.size * table.width)
    before = partition.BOUNDS + tasks + 1
    numbers = scratch.take(rows.size, tasks, before)
    if tasks == 1:
        numbers[:before] = (partition.WHOLE, -1, 0, 0, 0, rows.size)
    elif rows.size >= tasks * in_place.MANY and table.width <= in_place.PIECE:
        _divide(rows, table.row_count, packed, numbers, tasks)
    else:
        numbers[: partition.BOUNDS] = (partition.PIECES, *group(rows, table.row_count, numbers[before:]))
    outside = int(numbers[partition.OUTSIDE])
    if outside < 0:
        threads.launch(in_place.update_in_place, tasks, packed, constants, numbers, table.row_count)
        outside = int(numbers[partition.OUTSIDE])
    scratch.give_back(numbers)
    return outside


def _divide(rows: Array, row_count: int, packed: Array, numbers: Array, tasks: int) -> None:
    """Divide the positions of a call into one part for each task, see `partition.divide`."""
    tallies = np.zeros((tasks + 1, tasks + partition.PADDING), dtype=np.int64)
    partition.find_cuts(rows, tallies[tasks, : tasks - 1], numbers)
    for stage in (partition.COUNT, partition.DEAL):
        numbers[partition.STAGE] = stage
        threads.launch(partition.divide, tasks, packed, tallies, numbers, row_count)
        if numbers[partition.OUTSIDE] >= 0:
            break
    numbers[partition.STAGE] = partition.PARTS


def replay(updates: list[RowUpdate], hyperparameters: Hyperparameters, history: object) -> None:
    """Replay the missed steps of rows, and update the rows if there are gradients."""
    last_step, step = updates[0].table.last_step, updates[0].step
    since = min(_first_missed(update) for update in updates)
    known = RowHistory() if history is None else row_history(history, step)
    if history is None:
        check_constant(last_step, hyperparameters)
    else:
        known.check(step, hyperparameters)
    steps = known.step_settings(since, step, hyperparameters, updates[0].table.dtype)
    known.note(step, hyperparameters)
    note_call(last_step, hyperparameters, is_constant=len(known.entries) == 1)
    for update in updates:
        _replay(update, steps)


def _first_missed(update: RowUpdate) -> int:
    """Return the first step that any row missed; refuse rows that are at the step already."""
    last_step = update.table.last_step
    limit = update.step if update.has_grads else update.step + 1
    index = int(replay_plan.first_out_of_range(update.rows, last_step, limit))
    if index >= 0:
        row = int(update.rows[index])
        raise HyperparameterError(
            f"step={update.step}, and last_step[{row}] is {last_step[row]}: steps go on from 0, "
            f"and a row is updated once in each; it must be from 0 to {limit - 1}"
        )
    return int(last_step[update.rows].min(initial=limit - 1)) + 1


def _replay(update: RowUpdate, steps: StepSettings) -> None:
    """Replay rows in portions of steps, then update them."""
    table, end, rests = update.table, update.end, _keeps_rest(steps)
    begins, addresses = np.empty_like(update.rows), np.array(_addresses(update), dtype=np.uint64)
    like = table.arrays[0].reshape(-1)[:0]
    first = int(replay_plan.find_missed(addresses, update.rows, table.last_step, end, table.width, rests, like, begins))
    while first + _MAX_STEPS < end:
        stop = first + _MAX_STEPS
        portion = update._replace(starts=NOTHING)
        _launch(portion, begins, _constants(steps, first, stop, update), first, stop, rests=rests)
        table.last_step[update.rows] = np.maximum(table.last_step[update.rows], stop - 1)
        np.maximum(begins, stop, out=begins)
        first = int(begins.min())
    last = end + 1 if update.has_grads else end
    _launch(update, begins, _constants(steps, first, last, update), first, end, rests=rests)
    table.last_step[update.rows] = update.step


def _keeps_rest(steps: StepSettings) -> bool:
    """Say whether no step changes a parameter whose moments are zero: none has weight decay."""
    return bool((steps.settings[:, Settings._fields.index("weight_decay")] == 0).all())


def _constants(steps: StepSettings, first: int, end: int, update: RowUpdate) -> Array:
    """Return the constants of the steps from `first` to `end` - 1."""
    constants = np.empty((end - first, len(Constants._fields)), dtype=update.table.dtype)
    replay_plan.write_steps(steps.first_steps, steps.settings, first, update.grad_scale, constants)
    return constants


def _launch(update: RowUpdate, begins: Array, constants: Array, first: int, end: int, *, rests: bool) -> None:
    """Run the kernel on as many threads as its size is worth."""
    width, count = update.table.width, update.rows.size
    if width == 0 or count == 0:
        return
    steps = count + (begins.size * end - int(begins.sum()) if begins.size else 0)
    tasks = threads.tasks_for(steps * width)
    buffers = np.empty((tasks, kernel.SCRATCH), dtype=update.table.dtype)
    slots = np.zeros((tasks, kernel.SLOTS, kernel.TILE_ROWS), dtype=np.int64)
    addresses = np.array(_addresses(update), dtype=np.uint64)
    arrays = (addresses, update.rows, update.starts, update.order, begins, constants, slots, buffers)
    numbers = np.array([first, end, width, rests], dtype=np.int64)
    threads.launch(kernel.update_rows, tasks, _packed(arrays), constants, numbers, len(arrays))


def _packed(arrays: Collection[Array]) -> Array:
    """Return the address and the length of each array, (n, 2) uint64; the arrays must outlive it."""
    return np.array([(array.ctypes.data, len(array)) for array in arrays], dtype=np.uint64)


def _addresses(update: RowUpdate) -> list[int]:
    """Return the addresses of param, exp_avg, exp_avg_sq, max_exp_avg_sq (0: none) and the gradients."""
    columns = [begin for begin, _ in update.table.ranges[:-1]]
    return [*columns, *([0] * (4 - len(columns))), update.grads]
