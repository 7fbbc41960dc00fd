"""The fast path of `adam_update`: one step of one parameter whose arrays are plain NumPy arrays.

Each thread has one job for each dtype, which every step fills again. `UpdateTable` serves all other arrays.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from numba_adam.cpu.kernels.fast_path import prepare_one
from numba_adam.cpu.kernels.gather import kinds, usable
from numba_adam.cpu.kernels.launch_plan import COLUMNS, OPTIONS, OWNER, LaunchPlan, empty_step, pack
from numba_adam.cpu.table import run
from numba_adam.numerics.array import Array
from numba_adam.numerics.constants import FLOORS, Settings
from numba_adam.settings.folding import settings
from numba_adam.settings.hyperparameters import Hyperparameters
from numba_adam.settings.limits import check_factor, check_held


class _Slot(NamedTuple):
    """The launch plan of one parameter, whose arrays each step fills in."""

    dtype: str
    plan: LaunchPlan
    packed: Array
    steps: Array


class _Slots(threading.local):
    """A thread's own slots, by dtype."""

    def __init__(self) -> None:
        self.by_dtype: dict[object, _Slot] = {np.dtype(name): _slot(name) for name in FLOORS}


def update_one(arrays: Sequence[object], hyperparameters: Hyperparameters, step: int, grad_scale: float) -> bool:
    """Make one step of one parameter, if its arrays are plain NumPy arrays that fit; else change nothing.

    Args:
        arrays: grad, param, exp_avg, exp_avg_sq and, with AMSGrad, max_exp_avg_sq.
        hyperparameters: those of this step.
        step: 1 for the first.
        grad_scale: multiplies the gradient.

    Returns:
        whether the step was made. Where it was not, an `UpdateTable` makes it, or says what is wrong.

    Raises:
        HyperparameterError: the arrays' dtype cannot hold a number. Nothing was changed.
    """
    slot = _slots.by_dtype.get(arrays[0].dtype) if type(arrays[0]) is np.ndarray else None
    if slot is None or not usable():
        return False
    check_held(hyperparameters, slot.dtype)
    if grad_scale != 1.0:
        check_factor(grad_scale, slot.dtype, f"grad_scale={grad_scale!r}")
    plan = slot.plan
    plan.settings[0] = settings(hyperparameters, slot.dtype)
    slot.steps[0] = step - 1
    objects = np.array([id(array) for array in arrays], dtype=np.uint64)
    if not prepare_one(slot.packed, plan.constants, objects, slot.steps, grad_scale):
        return False
    run(plan, slot.packed, slot.steps, 1)
    return True


def _slot(dtype: str) -> _Slot:
    nothing = np.zeros(0, dtype=np.uint64)
    plan = LaunchPlan(
        addresses=np.zeros((1, COLUMNS), dtype=np.uint64),
        formats=np.zeros((1, COLUMNS), dtype=np.int64),
        plain=np.ones(1, dtype=np.int64),
        numbers=np.zeros(1, dtype=np.int64),
        options=np.zeros(OPTIONS, dtype=np.int64),
        lengths=np.zeros(1, dtype=np.int64),
        groups=np.zeros(1, dtype=np.int64),
        settings=np.zeros((1, len(Settings._fields))),
        kinds=kinds(),
        shapes=np.zeros(0, dtype=np.int64),
        strides=np.zeros(0, dtype=np.int64),
        starts=np.zeros(2, dtype=np.int64),
        begins=nothing,
        ends=nothing,
        owners=np.zeros((1, OWNER), dtype=np.uint64),
        copies=np.zeros((0, OWNER), dtype=np.uint64),
        **empty_step(np.zeros(1, dtype=np.int64), dtype),
    )
    return _Slot(dtype, plan, pack(plan), np.zeros(1, dtype=np.int64))


_slots = _Slots()
