"""What is done to rows of a table: an update where they lie, or a replay of the steps that they have missed."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from numba_adam.cpu.kernels import threads
from numba_adam.errors import HyperparameterError
from numba_adam.numerics.array import Array
from numba_adam.numerics.constants import Constants, Settings
from numba_adam.rows import scratch
from numba_adam.rows.history import RowHistory, Schedule, check_constant, note_call, row_history
from numba_adam.rows.kernels import in_place, replay_plan
from numba_adam.rows.kernels import replay as kernel
from numba_adam.rows.tables import NOTHING, Table, address
from numba_adam.settings.folding import settings
from numba_adam.settings.hyperparameters import Hyperparameters

_FROM_THE_FIRST = np.ones(1, dtype=np.int64)
_MOST_STEPS = 32_768  # replayed in one go: their constants take 2 MB


class Job(NamedTuple):
    """What is to be done to some rows of a table."""

    table: Table
    rows: Array  # those to be replayed, distinct, ascending; those to be updated in place as they were named
    starts: Array  # to be replayed: where each one's places begin in `order`
    order: Array  # the places
    grads: int  # address of the gradients
    step: int
    grad_scale: float
    has_grads: bool  # whether the rows are updated at `step`, or brought up to it

    @property
    def end(self) -> int:
        """The step before which the replay ends."""
        return self.step if self.has_grads else self.step + 1


def update_in_place(job: Job, hyperparameters: Hyperparameters) -> int:
    """Update rows that are not to make up for anything, on as many threads as the work is worth.

    Args:
        job: `rows` as they were named.
        hyperparameters: of the step.

    Returns:
        The first place whose row is none of the table's: nothing was changed; -1 if all are.
    """
    table = job.table
    schedule = Schedule(_FROM_THE_FIRST, np.array([settings(hyperparameters, table.dtype)]))
    constants = _constants(schedule, job.step, job.step + 1, job)[0]
    tasks = threads.tasks_for(job.rows.size * table.width)
    room, sums = scratch.take(job.rows.size, tasks), np.empty((tasks, in_place.PIECE), dtype=table.dtype)
    what = (_addresses(job), job.rows, table.row_count, constants, table.width, room, sums)
    if tasks == 1:
        outside = in_place.update_in_place_serial(*what)
    else:
        many = job.rows.size >= tasks * in_place.MANY and table.width <= in_place.PIECE
        update = in_place.update_in_place_by_parts if many else in_place.update_in_place_by_pieces
        with threads.launch_lock:
            outside = update(*what)
    scratch.give_back(room)
    return int(outside)


def replay(jobs: list[Job], hyperparameters: Hyperparameters, history: object) -> None:
    """Replay rows up to their step, and update them where there are gradients."""
    last_step, step = jobs[0].table.last_step, jobs[0].step
    since = min(_oldest(job) for job in jobs)
    known = RowHistory() if history is None else row_history(history, step)
    if history is None:
        check_constant(last_step, hyperparameters)
    else:
        known.check(step, hyperparameters)
    schedule = known.schedule(since, step, hyperparameters, jobs[0].table.dtype)
    known.note(step, hyperparameters)
    note_call(last_step, hyperparameters, is_constant=len(known.entries) == 1)
    for job in jobs:
        _replay(job, schedule)


def _oldest(job: Job) -> int:
    """Return the first step that a row has missed; refuse rows that are too far."""
    last_step = job.table.last_step
    limit = job.step if job.has_grads else job.step + 1
    index = int(replay_plan.first_ahead(job.rows, last_step, limit))
    if index >= 0:
        row = int(job.rows[index])
        raise HyperparameterError(
            f"step={job.step}, and last_step[{row}] is {last_step[row]}: steps go on from 0, "
            f"and a row is updated once in each; it must be from 0 to {limit - 1}"
        )
    return int(last_step[job.rows].min(initial=limit - 1)) + 1


def _replay(job: Job, schedule: Schedule) -> None:
    """Replay rows in portions of steps, and update them at last."""
    table, end, rests = job.table, job.end, _lets_rest(schedule)
    begins, places = np.empty_like(job.rows), _addresses(job)
    like = table.arrays[0].reshape(-1)[:0]
    first = int(replay_plan.find_missed(places, job.rows, table.last_step, end, table.width, rests, like, begins))
    while first + _MOST_STEPS < end:
        stop = first + _MOST_STEPS
        portion = job._replace(starts=NOTHING)
        _launch(portion, begins, _constants(schedule, first, stop, job), first, stop, rests=rests)
        table.last_step[job.rows] = np.maximum(table.last_step[job.rows], stop - 1)
        np.maximum(begins, stop, out=begins)
        first = int(begins.min())
    last = end + 1 if job.has_grads else end
    _launch(job, begins, _constants(schedule, first, last, job), first, end, rests=rests)
    table.last_step[job.rows] = job.step


def _lets_rest(schedule: Schedule) -> bool:
    """Say whether all steps leave a parameter alone whose moments are zero: none decays it."""
    return bool((schedule.settings[:, Settings._fields.index("weight_decay")] == 0).all())


def _constants(schedule: Schedule, first: int, end: int, job: Job) -> Array:
    """Return the constants of the steps from `first` to before `end`."""
    constants = np.empty((end - first, len(Constants._fields)), dtype=job.table.dtype)
    replay_plan.write_constants(schedule.first_steps, schedule.settings, first, job.grad_scale, constants)
    return constants


def _launch(job: Job, begins: Array, constants: Array, first: int, end: int, *, rests: bool) -> None:
    """Run the kernel on as many threads as the work is worth."""
    steps = job.rows.size + (begins.size * end - int(begins.sum()) if begins.size else 0)
    tasks = threads.tasks_for(steps * max(job.table.width, 1))
    scratch = np.empty((tasks, kernel.SCRATCH), dtype=job.table.dtype)
    slots = np.zeros((tasks, kernel.SLOTS, kernel.TILE_ROWS), dtype=np.int64)
    what = (_addresses(job), job.rows, job.starts, job.order, begins, constants, first, end, job.table.width, rests)
    if job.table.width == 0 or job.rows.size == 0:
        return
    if tasks == 1:
        kernel.update_rows_serial(*what, scratch, slots)
        return
    with threads.launch_lock:
        kernel.update_rows_parallel(*what, scratch, slots)


def _addresses(job: Job) -> Array:
    """Return where param, exp_avg, exp_avg_sq, max_exp_avg_sq (0: none) and the gradients lie."""
    columns = [address(array) for array in job.table.arrays]
    return np.array([*columns, *([0] * (4 - len(columns))), job.grads], dtype=np.uint64)
