"""The kernels of a server's updates, compiled or loaded before the first update needs them. Imports its neighbours."""

from __future__ import annotations

from typing import Any

import numpy as np

from numba_adam.cpu.kernels import threads
from numba_adam.cpu.kernels.finite import first_beyond
from numba_adam.cpu.kernels.norm import measure
from numba_adam.cpu.staged import StagedUpdate
from numba_adam.cpu.staged_formats import FormatsUpdate
from numba_adam.cpu.table import UpdateTable
from numba_adam.numerics.staging import staging_of
from numba_adam.settings.hyperparameters import Hyperparameters
from numba_adam.settings.options import Options
from numba_adam.settings.scaling import AS_THEY_ARE
from numba_adam.settings.step_arrays import StepArrays


def make_ready_to_measure(dtype: str) -> None:
    """Compile or load what measures the norm of plain arrays of a dtype, "float32" or "float64"."""
    arrays = np.zeros((4, 1), dtype)
    table = UpdateTable(*([array] for array in arrays[:3]), hyperparameters=[Hyperparameters()])
    plan = table.plan([arrays[3]], np.zeros(1, np.int64))
    measure(np.array([table.sum_of_squares(plan)]), 1.0, 1.0, 1.0)
    if dtype == "float64":
        table.look_again(plan, 1.0)


def make_ready(dtype: str, *, is_staged: bool = False) -> None:
    """Compile or load what updates of plain arrays of a dtype need, and the check of their gradients.

    Starts no threads: OpenMP keeps a set of threads for each thread that launches.

    Args:
        dtype: "float32" or "float64".
        is_staged: whether it is the update of `StagedUpdate`.
    """
    arrays = np.zeros((4, 1), dtype)
    first_beyond(arrays[0], arrays.dtype.type(np.inf))
    table = UpdateTable(*([array] for array in arrays[:3]), hyperparameters=[Hyperparameters()])
    steps = np.zeros(1, np.int64)
    plan = table.plan([arrays[3]], steps)
    if is_staged:
        table.replan(plan, steps, AS_THEY_ARE)  # for gradients that are not plain NumPy arrays, as those of the server
        words, staging = np.zeros(1, np.uint64), np.zeros(staging_of(1, 3), dtype)
        for _ in StagedUpdate(list(arrays[:3]), [1], Hyperparameters(), words, staging).steps([arrays[3]], [0], 1):
            pass
    else:
        for scaling in (AS_THEY_ARE, AS_THEY_ARE._replace(clip_value=1.0)):
            table.launch(table.replan(plan, steps, scaling), steps)
    threads.make_ready()


def make_formats_ready(dtype: str, computed: str) -> None:
    """Compile or load what `FormatsUpdate` needs, and the check of its gradients. Starts no threads.

    Args:
        dtype: of the parameters, "float32" or "float64".
        computed: the compute dtype, likewise.
    """
    param, grad, ema = np.zeros((3, 1), dtype)
    exp_avg, exp_avg_sq = np.zeros((2, 1), computed)
    first_beyond(grad, grad.dtype.type(np.inf))
    arrays = StepArrays([param], [exp_avg], [exp_avg_sq], [None], [ema.astype(computed)], [None])
    update = FormatsUpdate(arrays, Hyperparameters(), Options(ema_decay=0.5))
    given: tuple[Any, ...] = (grad, grad.data)  # those of the server are not plain NumPy arrays
    for gradient in given:
        for _ in update.steps([gradient], [0], 1):
            pass
    threads.make_ready()
