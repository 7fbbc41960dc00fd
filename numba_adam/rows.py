"""Adam on some rows of a table, such as those of an embedding that a batch has named. Knows no framework."""

from __future__ import annotations

import itertools
import threading
from typing import Any, Literal, NamedTuple

import numpy as np

from numba_adam.arrays import Array, Extents, check_like
from numba_adam.errors import (
    DtypeError,
    HyperparameterError,
    LayoutError,
    ReadOnlyError,
    ShapeError,
    UnsupportedArrayError,
)
from numba_adam.folding import Constants, Settings, settings
from numba_adam.functional import _step as step_number
from numba_adam.hyperparameters import EpsMode, Hyperparameters, real
from numba_adam.interop import borrow
from numba_adam.kernels import rows as kernel
from numba_adam.kernels import rows_in_place, rows_plan, threads
from numba_adam.kernels.rows_order import ROOM, group
from numba_adam.row_history import RowHistory, Schedule, check_constant, forget_calls, note_call, row_history

Mode = Literal["lazy", "exact"]
History = RowHistory | list[tuple[int, Hyperparameters]] | tuple[tuple[int, Hyperparameters], ...]

_NOTHING = np.empty(0, dtype=np.int64)
_FROM_THE_FIRST = np.ones(1, dtype=np.int64)
_MOST_STEPS = 32_768  # replayed in one go: their constants take 2 MB
_MOST_KEPT = 1 << 21  # numbers of 64 bits that a thread keeps: 16 MB
_MOST_ROWS = 1_000_000  # brought up to date in one go, where all are


def adam_update_rows(
    param: object,
    rows: object,
    grad_rows: object,
    exp_avg: object,
    exp_avg_sq: object,
    step: int,
    *,
    mode: Mode = "lazy",
    last_step: Array | None = None,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    decoupled_weight_decay: bool = False,
    eps_mode: EpsMode = "hat",
    maximize: bool = False,
    grad_scale: float = 1.0,
    max_exp_avg_sq: object | None = None,
    history: History | None = None,
) -> None:
    """Make one Adam step on some rows of a table, in place; the gradient of all the others is zero.

        >>> import numpy as np
        >>> import numba_adam as na
        >>> table, exp_avg, exp_avg_sq = np.ones((4, 2)), np.zeros((4, 2)), np.zeros((4, 2))
        >>> grads = np.array([[1.0, 1.0], [2.0, -2.0], [1.0, 1.0]])
        >>> adam_update_rows(table, np.array([3, 1, 3]), grads, exp_avg, exp_avg_sq, step=1, lr=0.5)
        >>> table.round(6)
        array([[1. , 1. ],
               [0.5, 1.5],
               [1. , 1. ],
               [0.5, 0.5]])

    A row that is named more than once gets the sum of its gradients, added in the order in which they stand.

    "lazy": rows that are not named stay as they are, moments too, and do not decay. The cost grows with the rows named.
    "exact": a row that is named first makes up for the steps it has missed since its `last_step`, so that it is, bit
    for bit, what `adam_update` would have made of the whole table with gradients of zero. The cost grows with the
    steps missed as well. Before rows are read, `adam_catch_up_rows` brings them up to date.

    Args:
        param: the table, (n, ...): float32 or float64, C-contiguous, writable; its rows are what the first index picks.
        rows: (k,) integers from 0 to n - 1.
        grad_rows: (k, ...): the gradient of each of them, of the table's dtype; not changed.
        exp_avg: first moment, of the table's shape and dtype; zeros before the first step.
        exp_avg_sq: second moment, likewise.
        step: number of this update of the table, 1 for the first.
        mode: "lazy" or "exact".
        last_step: "exact" needs it: (n,) int64, the step that each row was last brought up to, zeros at first; updated.
        lr: as for `adam_update`, and so are all that follow but the last.
        betas: decay rates of the two moving averages.
        eps: keeps the denominator away from zero.
        weight_decay: pull towards zero.
        decoupled_weight_decay: shrink the parameter itself (AdamW) instead of adding to the gradient (L2).
        eps_mode: "hat" or "algorithm1".
        maximize: climb instead of descending.
        grad_scale: multiplies the gradients.
        max_exp_avg_sq: largest second moment so far (AMSGrad), of the table's shape and dtype.
        history: for "exact": the hyperparameters of the steps before this one, a `RowHistory` (which notes this call's)
            or pairs (first_step, Hyperparameters). None: they have not changed since the first step; refused if calls
            with the same `last_step` array show that they have.

    Raises:
        ArrayError: an array does not fit; the message names it. Nothing was changed.
        HyperparameterError: a number is out of range, a row is at this step already, or hyperparameters have changed
            and there is no history that says when. Nothing was changed.

    Source: Kingma & Ba 2015 (arXiv 1412.6980), section 2. docs/rows.md says when to use which mode.
    """
    amsgrad = max_exp_avg_sq is not None
    hyperparameters = Hyperparameters(lr, betas, eps, weight_decay, decoupled_weight_decay, eps_mode, maximize, amsgrad)
    number, scale = step_number(step), real("grad_scale", grad_scale)
    _check_mode(mode, last_step, history)
    table = _table(param, exp_avg, exp_avg_sq, max_exp_avg_sq, last_step)
    numbers = _row_numbers(rows)
    grads = _grads(grad_rows, numbers, table)
    room = _rooms.take(ROOM * (numbers.size + 1))
    distinct, starts, order = _distinct(numbers, rows, table, room)
    job = _Job(table, distinct, starts, order, _address(grads), number, scale, has_grads=True)
    if mode == "lazy":
        schedule = Schedule(_FROM_THE_FIRST, np.array([settings(hyperparameters, table.dtype)]))
        _update_in_place(job, _constants(schedule, number, number + 1, job)[0])
    else:
        _exact([job], hyperparameters, history)
    _rooms.free = room if room.size <= _MOST_KEPT else _NOTHING


def adam_catch_up_rows(
    param: object,
    rows: object | None,
    exp_avg: object,
    exp_avg_sq: object,
    step: int,
    *,
    last_step: Array,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    decoupled_weight_decay: bool = False,
    eps_mode: EpsMode = "hat",
    maximize: bool = False,
    max_exp_avg_sq: object | None = None,
    history: History | None = None,
) -> None:
    """Bring rows of a table up to a step, in place, as if their gradients had been zero since their `last_step`.

        >>> import numpy as np
        >>> table, exp_avg, exp_avg_sq = np.ones((2, 1)), np.zeros((2, 1)), np.zeros((2, 1))
        >>> last_step = np.zeros(2, dtype=np.int64)
        >>> grads = np.ones((1, 1))
        >>> state = {"mode": "exact", "last_step": last_step, "lr": 0.5}
        >>> adam_update_rows(table, np.array([0]), grads, exp_avg, exp_avg_sq, step=1, **state)
        >>> adam_catch_up_rows(table, None, exp_avg, exp_avg_sq, step=3, last_step=last_step, lr=0.5)
        >>> last_step
        array([3, 3])

    Before a batch reads rows, and, with all rows, at the end of training.

    Args:
        param: the table, as for `adam_update_rows`.
        rows: (k,) integers; None: all rows.
        exp_avg: first moment.
        exp_avg_sq: second moment.
        step: the step that the rows are brought up to: the last that has been made. The hyperparameters are its own.
        last_step: (n,) int64: the step that each row was last brought up to; updated.
        lr: as for `adam_update_rows`, and so are all that follow.
        betas: decay rates of the two moving averages.
        eps: keeps the denominator away from zero.
        weight_decay: pull towards zero.
        decoupled_weight_decay: shrink the parameter itself (AdamW) instead of adding to the gradient (L2).
        eps_mode: "hat" or "algorithm1".
        maximize: climb instead of descending.
        max_exp_avg_sq: largest second moment so far (AMSGrad).
        history: the hyperparameters of the steps before.

    Raises:
        ArrayError: an array does not fit; the message names it. Nothing was changed.
        HyperparameterError: as for `adam_update_rows`. Nothing was changed.
    """
    amsgrad = max_exp_avg_sq is not None
    hyperparameters = Hyperparameters(lr, betas, eps, weight_decay, decoupled_weight_decay, eps_mode, maximize, amsgrad)
    number = step_number(step)
    _check_mode("exact", last_step, history)
    table = _table(param, exp_avg, exp_avg_sq, max_exp_avg_sq, last_step)
    if rows is None:
        parts = [
            np.arange(a, min(a + _MOST_ROWS, table.row_count)) for a in range(0, max(table.row_count, 1), _MOST_ROWS)
        ]
    else:
        numbers = _row_numbers(rows)
        parts = [_distinct(numbers, rows, table, np.empty(ROOM * (numbers.size + 1), dtype=np.int64))[0]]
    jobs = [_Job(table, part, _NOTHING, _NOTHING, 0, number, 1.0, has_grads=False) for part in parts]
    _exact(jobs, hyperparameters, history)
    if rows is None:
        forget_calls(table.last_step)


class _Rooms(threading.local):
    """Memory that a thread's next call may use: fresh memory takes as long as what is done in it."""

    free: Array = _NOTHING

    def take(self, size: int) -> Array:
        """Return room for so many numbers of 64 bits; nobody else has it until it is `free` again."""
        room, self.free = self.free, _NOTHING
        return room if size <= room.size else np.empty(size, dtype=np.int64)


_rooms = _Rooms()


class _Table(NamedTuple):
    """A table's arrays, checked."""

    arrays: list[Array]  # param, exp_avg, exp_avg_sq and perhaps max_exp_avg_sq
    last_step: Array  # empty where none was given
    names: list[str]  # of all these
    row_count: int
    width: int  # elements of a row
    dtype: str


class _Job(NamedTuple):
    """What is to be done to some rows of a table."""

    table: _Table
    rows: Array  # the distinct ones, ascending
    starts: Array  # where each one's places begin in `order`
    order: Array
    grads: int  # address of the gradients
    step: int
    grad_scale: float
    has_grads: bool  # whether the rows are updated at `step`, or brought up to it

    @property
    def end(self) -> int:
        """The step before which the replay ends."""
        return self.step if self.has_grads else self.step + 1


def _check_mode(mode: object, last_step: object, history: object) -> None:
    """Refuse what the mode has no use for, or lacks."""
    if mode not in ("lazy", "exact"):
        raise HyperparameterError(f"mode={mode!r}: it must be 'lazy' or 'exact'")
    if mode == "exact" and last_step is None:
        raise HyperparameterError(
            "last_step is missing: the exact mode needs to know up to which step each row is; "
            "make it np.zeros(len(param), dtype=np.int64) before the first step, and keep it with the moments"
        )
    for name, given in (("last_step", last_step), ("history", history)):
        if mode == "lazy" and given is not None:
            raise HyperparameterError(f"{name} is given with mode='lazy', which has no use for it: leave it out")


def _table(param: object, exp_avg: object, exp_avg_sq: object, largest: object | None, last_step: object) -> _Table:
    """Borrow a table's arrays, and check them."""
    names = ["param", "exp_avg", "exp_avg_sq", *([] if largest is None else ["max_exp_avg_sq"])]
    given = [param, exp_avg, exp_avg_sq, largest]
    arrays = [borrow(array, name=name, writable=True) for array, name in zip(given, names, strict=False)]
    table = arrays[0]
    if table.ndim == 0:
        raise ShapeError("param has shape (): it must have rows, which its first index picks")
    for array, name in zip(arrays[1:], names[1:], strict=True):
        check_like(array, name, table, "param")
    steps = _NOTHING if last_step is None else _last_step(last_step, len(table))
    names.append("last_step")
    _check_apart([*arrays, steps], names)
    return _Table(arrays, steps, names, len(table), table[:1].size, str(table.dtype))


def _check_apart(arrays: list[Array], names: list[str]) -> None:
    """Refuse arrays that share memory; of so few, Python's own sort is done before NumPy's has begun."""
    runs = sorted((_address(array), array.nbytes) for array in arrays if array.nbytes)
    if any(begin + size > following for (begin, size), (following, _) in itertools.pairwise(runs)):
        Extents(arrays, names)  # says which


def _last_step(given: object, count: int) -> Array:
    """Return a last_step array that can be updated where it lies."""
    if not isinstance(given, np.ndarray):
        raise UnsupportedArrayError(f"last_step is of type {type(given).__name__}: it must be a NumPy array of int64")
    if given.shape != (count,):
        raise ShapeError(f"last_step has shape {given.shape}: it must have one entry for each row of param, ({count},)")
    if given.dtype != np.int64:
        raise DtypeError(f"last_step has dtype {given.dtype}: it must be int64")
    if not given.dtype.isnative or not given.flags.c_contiguous or not given.flags.aligned:
        raise LayoutError("last_step must be C-contiguous, aligned and in native byte order: np.array(last_step)")
    if not given.flags.writeable:
        raise ReadOnlyError("last_step is read-only: it is updated in place; make a copy and keep that")
    return np.asarray(given)


def _row_numbers(rows: Any) -> Array:
    """Return rows as int64; numbers that are none of them become negative."""
    try:
        array = np.asarray(rows)
    except Exception as error:  # whatever a framework raises for an array on a device
        raise UnsupportedArrayError(f"rows ({type(rows).__name__}) cannot be read ({error}); give integers") from error
    if array.ndim != 1:
        raise ShapeError(f"rows has shape {array.shape}: it must have one dimension, (k,)")
    if array.dtype.kind not in "iu" and not (array.size == 0 and isinstance(rows, (list, tuple))):
        raise DtypeError(f"rows has dtype {array.dtype}: it must hold integers")
    return np.require(array, np.int64, ["C", "A", "W"]) if array.dtype.kind != "f" else _NOTHING


def _grads(given: object, rows: Array, table: _Table) -> Array:
    """Borrow the gradients, and check them."""
    grads, param = borrow(given, name="grad_rows"), table.arrays[0]
    needed = (rows.size, *param.shape[1:])
    if grads.shape != needed:
        raise ShapeError(f"grad_rows has shape {grads.shape}: it must have a row of param for each of rows, {needed}")
    if grads.dtype != param.dtype:
        raise DtypeError(f"grad_rows has dtype {grads.dtype}: it must have the dtype of param, {param.dtype}")
    _check_apart([*table.arrays, table.last_step, grads], [*table.names, "grad_rows"])
    return grads


def _distinct(numbers: Array, rows: Any, table: _Table, room: Array) -> tuple[Array, Array, Array]:
    """Return the distinct rows, where their places begin, and their places."""
    if numbers.size.bit_length() + table.row_count.bit_length() > 63:
        raise ShapeError(f"{numbers.size} rows of {table.row_count}: their product must be below 2**61")
    outside, distinct, starts, order = group(numbers, table.row_count, room)
    if outside >= 0:
        number = np.asarray(rows)[outside]
        raise ShapeError(
            f"rows[{outside}] is {number}: it must be from 0 to {table.row_count - 1}, the last row of param"
        )
    return distinct, starts, order


def _exact(jobs: list[_Job], hyperparameters: Hyperparameters, history: object) -> None:
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


def _oldest(job: _Job) -> int:
    """Return the first step that a row has missed; refuse rows that are too far."""
    last_step = job.table.last_step
    limit = job.step if job.has_grads else job.step + 1
    index = int(rows_plan.first_ahead(job.rows, last_step, limit))
    if index >= 0:
        row = int(job.rows[index])
        raise HyperparameterError(
            f"step={job.step}, and last_step[{row}] is {last_step[row]}: steps go on from 0, "
            f"and a row is updated once in each; it must be from 0 to {limit - 1}"
        )
    return int(last_step[job.rows].min(initial=limit - 1)) + 1


def _replay(job: _Job, schedule: Schedule) -> None:
    """Replay rows in portions of steps, and update them at last."""
    table, end, rests = job.table, job.end, _lets_rest(schedule)
    begins, places = np.empty_like(job.rows), _addresses(job)
    like = table.arrays[0].reshape(-1)[:0]
    first = int(rows_plan.find_missed(places, job.rows, table.last_step, end, table.width, rests, like, begins))
    while first + _MOST_STEPS < end:
        stop = first + _MOST_STEPS
        portion = job._replace(starts=_NOTHING)
        _launch(portion, begins, _constants(schedule, first, stop, job), first, stop, rests=rests)
        table.last_step[job.rows] = np.maximum(table.last_step[job.rows], stop - 1)
        np.maximum(begins, stop, out=begins)
        first = int(begins.min())
    last = end + 1 if job.has_grads else end
    _launch(job, begins, _constants(schedule, first, last, job), first, end, rests=rests)
    table.last_step[job.rows] = job.step


def _lets_rest(schedule: Schedule) -> bool:
    """Say whether all steps leave a parameter alone whose moments are zero: no decay, and no division of 0 by 0."""
    columns = schedule.settings.T
    lr, eps, decay = (columns[Settings._fields.index(name)] for name in ("lr", "eps", "weight_decay"))
    return bool((decay == 0).all() and (eps >= 1e-20).all() and (lr <= 1e10).all())


def _constants(schedule: Schedule, first: int, end: int, job: _Job) -> Array:
    """Return the constants of the steps from `first` to before `end`."""
    constants = np.empty((end - first, len(Constants._fields)), dtype=job.table.dtype)
    rows_plan.write_constants(schedule.first_steps, schedule.settings, first, job.grad_scale, constants)
    return constants


def _launch(job: _Job, begins: Array, constants: Array, first: int, end: int, *, rests: bool) -> None:
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


def _update_in_place(job: _Job, constants: Array) -> None:
    """Update rows that are not to make up for anything, on as many threads as the work is worth."""
    width = job.table.width
    if width == 0 or job.rows.size == 0:
        return
    tasks = threads.tasks_for(job.rows.size * width)
    sums = np.empty((tasks, rows_in_place.PIECE), dtype=job.table.dtype)
    what = (_addresses(job), job.rows, job.starts, job.order, constants, width, sums)
    if tasks == 1:
        rows_in_place.update_in_place_serial(*what)
        return
    with threads.launch_lock:
        rows_in_place.update_in_place_parallel(*what)


def _addresses(job: _Job) -> Array:
    """Return where param, exp_avg, exp_avg_sq, max_exp_avg_sq (0: none) and the gradients lie."""
    columns = [_address(array) for array in job.table.arrays]
    return np.array([*columns, *([0] * (4 - len(columns))), job.grads], dtype=np.uint64)


def _address(array: Array) -> int:
    return int(array.ctypes.data)
