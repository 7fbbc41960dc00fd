"""Compile the kernels ahead of the first step, or load them from the cache.

May import the standard library, NumPy and numba_adam.errors; everything else inside the functions.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from numba_adam.errors import HyperparameterError

if TYPE_CHECKING:
    from numba_adam.optimizer import Adam

_SIZES = {"small": 2_000, "large": 70_000}  # elements: for one thread, and for all threads
_ON_GPU = 64  # elements: CUDA kernels are the same for every size
_CUDA_STATES: tuple[tuple[str, dict[str, Any]], ...] = (
    *((dtype, {}) for dtype in ("float32", "float64", "bfloat16", "float16")),
    *((dtype, {"state_dtype": "8bit"}) for dtype in ("float32", "bfloat16")),
)
_TABLES = {"small": ((2, 16),), "large": ((2, 70_000), (8_750, 8))}  # one thread; several, with few rows and with many


def warmup(
    *kinds: str, sizes: Collection[str] = ("small", "large"), progress: Callable[[str, float], None] | None = None
) -> dict[str, float]:
    """Compile kernels by making steps on small arrays, and cache them on disk.

    The first call on a machine takes seconds for each kind. Later processes load the kernels from the cache in tenths
    of a second. Without this call, the first step that needs a kernel compiles it.

        >>> import numba_adam as na
        >>> sorted(na.warmup("float32"))
        ['float32']

    Args:
        kinds: the kernels to compile. Default: "float32", "float64", "formats" and "rows".
            "float32", "float64": plain arrays of one dtype, with clipping and norms; a parameter server's models.
            "bfloat16", "float16", "8bit": parameters of this dtype, or float32 with moments in 8 bits; moving
            averages, copies and accumulation. These three share most kernels.
            "formats": these three, and mixtures with float64.
            "rows": `adam_update_rows`.
            "cuda": arrays on the current GPU. All GPUs of its compute capability can load the cached kernels.
        sizes: "small": steps of fewer than 32,768 elements, which one thread makes. "large": steps of more.
        progress: a function that is called after each kind, with its name and its seconds.

    Returns:
        the seconds of each kind.

    Raises:
        HyperparameterError: a kind or a size is unknown.
        CudaUnavailableError: the kind is "cuda", and there is no CUDA package or no GPU.
    """
    _check("kinds", kinds, _KINDS)
    _check("sizes", sizes, _SIZES)
    seconds = {}
    for kind in kinds or _UNASKED:
        start = time.perf_counter()
        for size in [None] if kind == "cuda" else [each for each in _SIZES if each in sizes]:
            _KINDS[kind](size)
        seconds[kind] = time.perf_counter() - start
        if progress is not None:
            progress(kind, seconds[kind])
    return seconds


def _check(name: str, given: Collection[str], known: Mapping[str, object]) -> None:
    """Refuse what is not known, and a string instead of several, before anything is compiled."""
    for each in given:
        if isinstance(given, str) or each not in tuple(known):
            raise HyperparameterError(f"{name}: expected some of {', '.join(map(repr, known))}, got {each!r}")


def _plain(dtype: str, size: str) -> None:
    from numba_adam.cpu import ahead
    from numba_adam.functional import adam_update

    ahead.make_ready(dtype, is_staged=True)  # the server's
    optimizer, grads = _train(_SIZES[size], dtype, dtype)
    optimizer.step(grads, clip_value=1.0)
    param, grad, exp_avg, exp_avg_sq = np.zeros((4, _SIZES[size]), dtype)
    adam_update(param, grad, exp_avg, exp_avg_sq, 1)


def _mixed(size: str, param: str, grad: str, **options: Any) -> None:
    """Make the steps of parameters and gradients of two dtypes, with all that a step can do besides."""
    extras = {"ema_decay": 0.9, "low_precision_copy": "bfloat16"} if param.startswith("float") else {}
    optimizer, grads = _train(_SIZES[size], param, grad, **extras, **options)
    optimizer.accumulate(grads)
    optimizer.step(max_grad_norm=1.0)


def _served(*computed: str) -> None:
    """Compile what a server needs for models with options, by their compute dtypes."""
    from numba_adam.cpu import ahead

    for each in computed:
        ahead.make_formats_ready(each, each)


def _bfloat16(size: str) -> None:
    _served("float32")
    _mixed(size, "bfloat16", "float32")


def _eight_bit(size: str) -> None:
    _served("float32")
    _mixed(size, "float32", "float32", state_dtype="8bit")


def _formats(size: str) -> None:
    _served("float32", "float64")
    _mixed(size, "float32", "float16", state_dtype="8bit")
    _mixed(size, "float64", "float32")


def _rows(size: str) -> None:
    from numba_adam.rows.functional import adam_update_rows

    for dtype, shape in itertools.product(("float32", "float64"), _TABLES[size]):
        table, exp_avg, exp_avg_sq = (np.zeros(shape, dtype) for _ in range(3))
        rows, grads, last_step = np.arange(shape[0]), np.zeros(shape, dtype), np.zeros(shape[0], np.int64)
        adam_update_rows(table, rows, grads, exp_avg, exp_avg_sq, 2)
        adam_update_rows(table, rows, grads, exp_avg, exp_avg_sq, 3, mode="exact", last_step=last_step)


def _train(size: int, param: str, grad: str, **options: Any) -> tuple[Adam, Any]:
    """Make a step that measures and clips its gradients. Return the optimizer and the gradients."""
    from numba_adam.optimizer import Adam

    optimizer, grads = Adam([np.ones(size, _DTYPES.get(param, param))], **options), [np.ones(size, grad)]
    optimizer.step(grads, loss_scale=1.0, max_grad_norm=1.0)
    optimizer.load_state_dict(optimizer.state_dict())
    return optimizer, grads


def _cuda() -> None:
    """Make steps in every format on the current GPU: with one array and with two, with and without clipping."""
    from numba_adam.cuda import seam  # needs a CUDA package
    from numba_adam.cuda.memory import zeros
    from numba_adam.cuda.seam import current_device
    from numba_adam.cuda.streams import LEGACY
    from numba_adam.numerics.formats import Format
    from numba_adam.optimizer import Adam

    seam.require_gpu()
    place = current_device(), LEGACY
    for (dtype, options), count in itertools.product(_CUDA_STATES, (1, 2)):
        params, grads = ([zeros((_ON_GPU,), Format.named(dtype), *place) for _ in range(count)] for _ in range(2))
        optimizer = Adam(params, **options)
        optimizer.step(grads)
        assert optimizer.step(grads, max_grad_norm=1.0).applied  # waits for the GPU


_DTYPES = {"bfloat16": "uint16"}  # NumPy has no bfloat16; its bits are the same to the kernels
_KINDS: dict[str, Callable[[Any], None]] = {
    "float32": lambda size: _plain("float32", size),
    "float64": lambda size: _plain("float64", size),
    "formats": _formats,
    "rows": _rows,
    "bfloat16": _bfloat16,
    "float16": lambda size: _mixed(size, "float16", "float32"),
    "8bit": _eight_bit,
    "cuda": lambda _: _cuda(),
}
_UNASKED = ("float32", "float64", "formats", "rows")
