"""Compile the kernels ahead of the first step, or load them from the cache.

May import the standard library, NumPy and numba_adam.errors; everything else inside the functions.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from numba_adam.errors import HyperparameterError

if TYPE_CHECKING:
    from numba_adam.optimizer import Adam

_SMALL, _LARGE = 2_000, 70_000  # elements: for one thread, and for all threads
_ON_GPU = 64  # elements: CUDA kernels are the same for every size
_CUDA_STATES: tuple[tuple[str, dict[str, Any]], ...] = (
    *((dtype, {}) for dtype in ("float32", "float64", "bfloat16", "float16")),
    *((dtype, {"state_dtype": "8bit"}) for dtype in ("float32", "bfloat16")),
)
_TABLES = ((2, 16), (2, _LARGE), (_LARGE // 8, 8))  # one thread; several, with few rows and with many


def warmup(*kinds: str, progress: Callable[[str, float], None] | None = None) -> dict[str, float]:
    """Compile kernels by making steps on small arrays, and cache them on disk.

    The first call on a machine takes seconds for each kind. Later processes load the kernels from the cache in tenths
    of a second. Without this call, the first step that needs a kernel compiles it.

        >>> import numba_adam as na
        >>> sorted(na.warmup("float32"))
        ['float32']

    Args:
        kinds: the kernels to compile. Default: all but "cuda".
            "float32", "float64": plain arrays of one dtype, with clipping and norms.
            "formats": bfloat16, float16, mixed dtypes, 8-bit state, moving averages, copies, accumulation.
            "rows": `adam_update_rows`.
            "cuda": arrays on the current GPU. All GPUs of its compute capability can load the cached kernels.
        progress: a function that is called after each kind, with its name and its seconds.

    Returns:
        the seconds of each kind.

    Raises:
        HyperparameterError: a kind is unknown.
        CudaUnavailableError: the kind is "cuda", and there is no CUDA package or no GPU.
    """
    unknown = [kind for kind in kinds if kind not in tuple(_KINDS)]
    if unknown:
        raise HyperparameterError(f"kinds: expected some of {', '.join(map(repr, _KINDS))}, got {unknown[0]!r}")
    seconds = {}
    for kind in kinds or _UNASKED:
        start = time.perf_counter()
        _KINDS[kind]()
        seconds[kind] = time.perf_counter() - start
        if progress is not None:
            progress(kind, seconds[kind])
    return seconds


def _plain(dtype: str) -> None:
    from numba_adam.functional import adam_update

    for size in (_SMALL, _LARGE):
        _train(size, dtype, dtype)
        param, grad, exp_avg, exp_avg_sq = np.zeros((4, size), dtype)
        adam_update(param, grad, exp_avg, exp_avg_sq, 1)


def _formats() -> None:
    for size in (_SMALL, _LARGE):
        extras: dict[str, Any] = {"ema_decay": 0.9, "low_precision_copy": "bfloat16"}
        for optimizer, grads in (
            _train(size, "float32", "float16", state_dtype="8bit", **extras),
            _train(size, "float64", "float32", **extras),
        ):
            optimizer.accumulate(grads)
            optimizer.step(max_grad_norm=1.0)


def _rows() -> None:
    from numba_adam.rows.functional import adam_update_rows

    for dtype, shape in itertools.product(("float32", "float64"), _TABLES):
        table, exp_avg, exp_avg_sq = (np.zeros(shape, dtype) for _ in range(3))
        rows, grads, last_step = np.arange(shape[0]), np.zeros(shape, dtype), np.zeros(shape[0], np.int64)
        adam_update_rows(table, rows, grads, exp_avg, exp_avg_sq, 2)
        adam_update_rows(table, rows, grads, exp_avg, exp_avg_sq, 3, mode="exact", last_step=last_step)


def _train(size: int, param: str, grad: str, **options: Any) -> tuple[Adam, Any]:
    """Make a step that measures and clips its gradients. Return the optimizer and the gradients."""
    from numba_adam.optimizer import Adam

    optimizer, grads = Adam([np.ones(size, param)], **options), [np.ones(size, grad)]
    optimizer.step(grads, loss_scale=1.0, max_grad_norm=1.0)
    optimizer.load_state_dict(optimizer.state_dict())
    return optimizer, grads


def _cuda() -> None:
    """Make steps in every format on the current GPU: with one array and with two, with and without clipping."""
    from numba_adam.cuda import seam  # needs a CUDA package
    from numba_adam.cuda.memory import zeros
    from numba_adam.cuda.seam import current_device
    from numba_adam.cuda.streams import LEGACY
    from numba_adam.optimizer import Adam

    seam.require_gpu()
    place = current_device(), LEGACY
    for (dtype, options), count in itertools.product(_CUDA_STATES, (1, 2)):
        params, grads = ([zeros((_ON_GPU,), dtype, *place) for _ in range(count)] for _ in range(2))
        optimizer = Adam(params, **options)
        optimizer.step(grads)
        assert optimizer.step(grads, max_grad_norm=1.0).applied  # waits for the GPU


_KINDS: dict[str, Callable[[], None]] = {
    "float32": lambda: _plain("float32"),
    "float64": lambda: _plain("float64"),
    "formats": _formats,
    "rows": _rows,
    "cuda": _cuda,
}
_UNASKED = tuple(kind for kind in _KINDS if kind != "cuda")
