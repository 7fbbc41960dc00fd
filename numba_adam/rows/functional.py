"""Adam on some rows of a table, such as the rows of an embedding that a batch uses. Imports no framework."""

from __future__ import annotations

from typing import Literal

import numpy as np

from numba_adam.errors import HyperparameterError
from numba_adam.interop import count_writes
from numba_adam.numerics.array import Array
from numba_adam.rows import scratch
from numba_adam.rows.history import RowHistory, forget_calls
from numba_adam.rows.tables import (
    NOTHING,
    Table,
    address,
    borrow_grads,
    borrow_table,
    distinct_rows,
    row_numbers,
    validate_rows,
)
from numba_adam.rows.update import RowUpdate, replay, update_in_place
from numba_adam.settings.hyperparameters import EpsMode, Hyperparameters, step_number
from numba_adam.settings.limits import check_factor, check_held
from numba_adam.settings.scalars import real

Mode = Literal["lazy", "exact"]
History = RowHistory | list[tuple[int, Hyperparameters]] | tuple[tuple[int, Hyperparameters], ...]

_MAX_ROWS = 1_000_000  # in one launch, when all rows are brought up to date


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
    """Make one Adam step on some rows of a table, in place; the gradient of all other rows is zero.

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

    A row that is named several times gets the sum of its gradients, added in their order.

    "lazy": rows that are not named stay unchanged, moments too, and do not decay. The cost grows with the rows named.
    "exact": each named row first replays the steps that it missed since its `last_step`. The result is, bit for bit,
    what `adam_update` makes of the whole table with gradients of zero. The cost also grows with the missed steps.
    Before rows are read, `adam_catch_up_rows` brings them up to date.

    Args:
        param: the table, (n, ...): float32 or float64, C-contiguous, writable; the first index selects a row.
        rows: (k,) integers from 0 to n - 1; no other thread may change them during the call.
        grad_rows: (k, ...): the gradient of each of these rows, of the table's dtype; not changed. An array that is not
            in C order is copied first.
        exp_avg: first moment, of the table's shape and dtype; zeros before the first step.
        exp_avg_sq: second moment, likewise.
        step: number of this update of the table, 1 for the first.
        mode: "lazy" or "exact".
        last_step: for "exact": (n,) int64, the step that each row was last brought up to, zeros at first; updated.
        lr: as for `adam_update`, like all arguments below except the last.
        betas: decay rates of the two moving averages.
        eps: keeps the denominator away from zero.
        weight_decay: pull towards zero.
        decoupled_weight_decay: shrink the parameter itself (AdamW) instead of adding to the gradient (L2).
        eps_mode: "hat" or "algorithm1".
        maximize: climb instead of descending.
        grad_scale: multiplies the gradients.
        max_exp_avg_sq: largest second moment so far (AMSGrad), of the table's shape and dtype.
        history: for "exact": the hyperparameters of the earlier steps: a `RowHistory`, which records those of this
            call, or pairs (first_step, Hyperparameters). None: they have not changed since the first step. It is an
            error if an earlier call with the same `last_step` array had other hyperparameters.

    Raises:
        ArrayError: an array does not fit; the message names it. Nothing was changed.
        HyperparameterError: a number is out of range, a row is at this step already, or hyperparameters have changed
            and there is no history of them. Nothing was changed.

    Source: Kingma & Ba 2015 (arXiv 1412.6980), section 2. docs/rows.md compares the modes.
    """
    amsgrad = max_exp_avg_sq is not None
    hyperparameters = Hyperparameters(lr, betas, eps, weight_decay, decoupled_weight_decay, eps_mode, maximize, amsgrad)
    number, scale = step_number(step), real("grad_scale", grad_scale)
    _check_mode(mode, last_step, history)
    table = borrow_table(param, exp_avg, exp_avg_sq, max_exp_avg_sq, last_step)
    check_held(hyperparameters, table.dtype)
    check_factor(scale, table.dtype, f"grad_scale={grad_scale!r}")
    numbers = row_numbers(rows, table)
    grads = borrow_grads(grad_rows, numbers, table)
    update = RowUpdate(table, numbers, NOTHING, NOTHING, address(grads), number, scale, has_grads=True)
    if mode == "lazy":
        validate_rows(update_in_place(update, hyperparameters), rows, table)
        count_writes([param, exp_avg, exp_avg_sq, max_exp_avg_sq])
        return
    buffer = scratch.take(numbers.size)
    distinct, starts, order = distinct_rows(numbers, rows, table, buffer)
    replay([update._replace(rows=distinct, starts=starts, order=order)], hyperparameters, history)
    scratch.give_back(buffer)
    count_writes([param, exp_avg, exp_avg_sq, max_exp_avg_sq])


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
    """Replay the steps that rows of a table missed since their `last_step`, in place, with gradients of zero.

        >>> import numpy as np
        >>> table, exp_avg, exp_avg_sq = np.ones((2, 1)), np.zeros((2, 1)), np.zeros((2, 1))
        >>> last_step = np.zeros(2, dtype=np.int64)
        >>> grads = np.ones((1, 1))
        >>> state = {"mode": "exact", "last_step": last_step, "lr": 0.5}
        >>> adam_update_rows(table, np.array([0]), grads, exp_avg, exp_avg_sq, step=1, **state)
        >>> adam_catch_up_rows(table, None, exp_avg, exp_avg_sq, step=3, last_step=last_step, lr=0.5)
        >>> last_step
        array([3, 3])

    Call it before a batch reads rows, and for all rows at the end of training.

    Args:
        param: the table, as for `adam_update_rows`.
        rows: (k,) integers; None: all rows.
        exp_avg: first moment.
        exp_avg_sq: second moment.
        step: the step that the rows are brought up to: the last one made. The hyperparameters are those of this step.
        last_step: (n,) int64: the step that each row was last brought up to; updated.
        lr: as for `adam_update_rows`, like all arguments below.
        betas: decay rates of the two moving averages.
        eps: keeps the denominator away from zero.
        weight_decay: pull towards zero.
        decoupled_weight_decay: shrink the parameter itself (AdamW) instead of adding to the gradient (L2).
        eps_mode: "hat" or "algorithm1".
        maximize: climb instead of descending.
        max_exp_avg_sq: largest second moment so far (AMSGrad).
        history: the hyperparameters of the earlier steps.

    Raises:
        ArrayError: an array does not fit; the message names it. Nothing was changed.
        HyperparameterError: as for `adam_update_rows`. Nothing was changed.
    """
    amsgrad = max_exp_avg_sq is not None
    hyperparameters = Hyperparameters(lr, betas, eps, weight_decay, decoupled_weight_decay, eps_mode, maximize, amsgrad)
    number = step_number(step)
    _check_mode("exact", last_step, history)
    table = borrow_table(param, exp_avg, exp_avg_sq, max_exp_avg_sq, last_step)
    check_held(hyperparameters, table.dtype)
    numbers = NOTHING if rows is None else row_numbers(rows, table)
    buffer = scratch.take(numbers.size)
    parts = _all_rows(table) if rows is None else [distinct_rows(numbers, rows, table, buffer)[0]]
    updates = [RowUpdate(table, part, NOTHING, NOTHING, 0, number, 1.0, has_grads=False) for part in parts]
    replay(updates, hyperparameters, history)
    scratch.give_back(buffer)
    count_writes([param, exp_avg, exp_avg_sq, max_exp_avg_sq])
    if rows is None:
        forget_calls(table.last_step)


def _all_rows(table: Table) -> list[Array]:
    """Return the rows of the table, in portions."""
    count = table.row_count
    return [np.arange(begin, min(begin + _MAX_ROWS, count)) for begin in range(0, max(count, 1), _MAX_ROWS)]


def _check_mode(mode: object, last_step: object, history: object) -> None:
    """Validate the mode, and the arguments that it needs or does not use."""
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
