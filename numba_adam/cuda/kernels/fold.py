"""The constants of a step, folded on the GPU from its own step numbers, settings and the gradients' norm.

So the host can queue the update without waiting for the GPU, and a captured CUDA graph counts its own steps. This is
float64 arithmetic, for one row per array, that the update kernels do not contain.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from numba_adam.cuda import seam
from numba_adam.cuda.kernels import access
from numba_adam.cuda.kernels.layout import CONSTANTS, KEYS_BYTES, Keys
from numba_adam.cuda.kernels.mathematics import codec, compiled
from numba_adam.cuda.kernels.norm import LARGEST, SCALE, SUM
from numba_adam.numerics.constants import Settings, bias_correction, correct
from numba_adam.numerics.eight_bit_codecs import DITHER_TURN
from numba_adam.numerics.norm import is_too_large, measured

cuda = seam.cuda

SETTINGS = len(Settings._fields)  # float64, in a row of settings

# 8-bit moments with their own dither, as `stream_key` numbers their columns.
DITHERED = (2, 3)
_DITHER = Keys._fields.index("dither")
_STREAMS = _DITHER  # param, exp_avg, exp_avg_sq, max_exp_avg_sq: columns 0 to 3 of `stream_key`
_WORD = np.uint64(0xFFFFFFFF)

# Indices into the treatment of a step's gradients, float64.
FACTOR, CLIP_VALUE, MAX_NORM, LIMIT = range(4)  # LIMIT: of numerics.norm.LARGEST_GRADIENT
TREATMENT = 4

# Indices into a step's record, of 8 bytes each.
SKIP, NORM = range(2)
RECORD = 2

_load_int64, _store_int64 = access.scalar("int64")
_load_float64, _store_float64 = access.scalar("float64")
_load_float32 = access.scalar("float32")[0]
_load_uint32, _store_uint32 = access.scalar("uint32")


class Step(NamedTuple):
    """The addresses of a step's parts."""

    settings: Any  # (groups, SETTINGS) float64
    groups: Any  # (count,) int64: an array's row of the settings
    steps: Any  # (count,) int64: updates made so far; incremented
    grads: Any  # (count,) int64: the addresses of the gradients, 0 without one
    constants: Any  # (count, CONSTANTS) of the compute dtype: written
    keys: Any  # (count, KEYS) uint32: written where random rounding or dithers need them
    treatment: Any  # (TREATMENT,) float64
    totals: Any  # norm.TOTALS float64: the gradients' sum of squares and largest magnitude; 0: not measured
    loss_scale: Any  # float32: divides the gradients; 0: none
    record: Any  # SKIP, int64, set to 1 when the step is left out, else to 0; NORM, float64, -1 where not measured
    indices: Any  # (count,) int64: each array's index among the optimizer's parameters
    is_stochastic: Any  # not 0 when bfloat16 arrays are rounded stochastically
    dithers: Any  # (count, 2) uint32: of 8-bit moments before the first step, see DITHERED; 0: none


@seam.device
def _settings_at(address):  # type: ignore[no-untyped-def]
    """Return the row of settings at an address."""
    return Settings(
        _load_float64(address),
        _load_float64(address + 8),
        _load_float64(address + 16),
        _load_float64(address + 24),
        _load_float64(address + 32),
        _load_float64(address + 40),
        _load_float64(address + 48),
        _load_float64(address + 56),
        _load_float64(address + 64),
        _load_float64(address + 72),
        _load_float64(address + 80),
    )


_INFINITY = math.inf
_measured, _is_too_large, _bias_correction, _correct = (
    compiled(function, product=seam.product64) for function in (measured, is_too_large, bias_correction, correct)
)
_stream_key = codec("stream_key")


@seam.device
def _treated(step):  # type: ignore[no-untyped-def]
    """Return the factor of the gradients, their norm, and whether to skip the step."""
    factor = _load_float64(step.treatment + FACTOR * 8)
    if step.loss_scale != 0:
        factor = factor / np.float64(_load_float32(step.loss_scale))
    norm, clipped, is_left_out = np.float64(-1.0), factor, False
    if step.totals != 0:
        max_norm = float(_load_float64(step.treatment + MAX_NORM * 8))  # NumPy's float64, in the simulator, would warn
        total, largest = float(_load_float64(step.totals + SUM * 8)), float(_load_float64(step.totals + LARGEST * 8))
        norm, clipped = _measured(total, float(factor), max_norm, float(_load_float64(step.totals + SCALE * 8)))
        clip_value = float(_load_float64(step.treatment + CLIP_VALUE * 8))
        limit = float(_load_float64(step.treatment + LIMIT * 8))
        is_left_out = not total < _INFINITY or _is_too_large(largest, clipped, clip_value, limit)
    return clipped, norm, is_left_out


@seam.device
def _store_keys(step, row, number, seed):  # type: ignore[no-untyped-def]
    """Store the keys of an array's random numbers in update `number`."""
    address = step.keys + row * KEYS_BYTES
    if step.is_stochastic != 0:
        index = _load_int64(step.indices + row * 8)
        for column in range(_STREAMS):
            _store_uint32(address + column * 4, _stream_key(seed, number, index, column))
    if step.dithers != 0:
        for column in range(len(DITHERED)):
            first = _load_uint32(step.dithers + row * (4 * len(DITHERED)) + column * 4)
            turned = np.uint64(first) + np.uint64(number) * np.uint64(DITHER_TURN)
            _store_uint32(address + (_DITHER + column) * 4, np.uint32(turned & _WORD))


def _store_constants(real: str) -> Any:
    store, item_bytes = access.scalar(real)[1], np.dtype(real).itemsize

    @seam.device
    def store_constants(address, c):  # type: ignore[no-untyped-def]
        """Store the constants at an address, one by one: numba-cuda-mlir cannot iterate over a named tuple."""
        store(address, c[0])
        store(address + item_bytes, c[1])
        store(address + item_bytes * 2, c[2])
        store(address + item_bytes * 3, c[3])
        store(address + item_bytes * 4, c[4])
        store(address + item_bytes * 5, c[5])
        store(address + item_bytes * 6, c[6])
        store(address + item_bytes * 7, c[7])
        store(address + item_bytes * 8, c[8])
        store(address + item_bytes * 9, c[9])
        store(address + item_bytes * 10, c[10])
        store(address + item_bytes * 11, c[11])
        store(address + item_bytes * 12, c[12])
        store(address + item_bytes * 13, c[13])
        store(address + item_bytes * 14, c[14])
        store(address + item_bytes * 15, c[15])

    return store_constants


@seam.kernel_builder("fold")
def kernel(real: str) -> Any:
    """Return the kernel that folds for updates computed in `real`, "float32" or "float64"."""
    store_constants, item_bytes = _store_constants(real), np.dtype(real).itemsize

    def fold(parts, count, seed):  # type: ignore[no-untyped-def]
        """Store the constants of every array that has a gradient, and count its step; one thread for each array.

        Args:
            parts: the addresses of Step's parts, in their order.
            count: number of arrays.
            seed: of the random numbers.
        """
        step = Step(
            parts[0], parts[1], parts[2], parts[3], parts[4], parts[5],
            parts[6], parts[7], parts[8], parts[9], parts[10], parts[11], parts[12],
        )  # fmt: skip
        row = np.int64(cuda.blockIdx.x) * np.int64(cuda.blockDim.x) + np.int64(cuda.threadIdx.x)
        factor, norm, is_left_out = _treated(step)
        if row == 0:
            _store_float64(step.record + NORM * 8, norm)
            _store_int64(step.record + SKIP * 8, np.int64(1) if is_left_out else np.int64(0))
        if row < count and not is_left_out and _load_int64(step.grads + row * 8) != 0:
            number = _load_int64(step.steps + row * 8) + 1
            s = _settings_at(step.settings + _load_int64(step.groups + row * 8) * (SETTINGS * 8))
            corrections = (_bias_correction(s.beta1, number), _bias_correction(s.beta2, number))
            clip_value = _load_float64(step.treatment + CLIP_VALUE * 8)
            address = step.constants + row * (CONSTANTS * item_bytes)
            store_constants(address, _correct(s, corrections[0], corrections[1], factor, clip_value))
            _store_keys(step, row, number, seed)
            _store_int64(step.steps + row * 8, number)

    return fold


ARGUMENTS = ("13 int64", "int64", "int64")
