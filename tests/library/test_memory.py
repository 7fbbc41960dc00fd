"""Kernels use addresses: they must stay within their arrays, and not use freed or replaced memory."""

from __future__ import annotations

import itertools
import weakref

import ml_dtypes
import numba
import numpy as np
import pytest

import numba_adam as na
from numba_adam.cpu.table import UpdateTable
from numba_adam.numerics.eight_bit import EightBit, blocks_of
from numba_adam.settings.hyperparameters import Hyperparameters
from numba_adam.settings.scaling import Scaling
from numba_adam.settings.step_arrays import Extras

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
GUARD_BYTES = 256
PATTERN = 0xA5
SIZES = [*range(300), *(near + k for near in (1024, 8192, 16_384, 32_768, 65_536) for k in (-1, 0, 1, 127))]

CROWD = """
import hashlib
import numba
import numpy as np
import numba_adam as na


def digest(threads):
    numba.set_num_threads(threads)
    rng = np.random.default_rng(0)
    params = [np.ones(2_000, np.float32) for _ in range(100)]
    grads = [rng.standard_normal(2_000).astype(np.float16) for _ in params]
    optimizer = na.Adam(params, state_dtype="bfloat16", amsgrad=True, lr=0.1)
    for _ in range(30):
        optimizer.step(grads)
    return hashlib.sha256(b"".join(param.tobytes() for param in params)).hexdigest()


alone = digest(1)
print(all(digest(4) == alone for _ in range(25)))
"""


def test_scratch_buffers_of_threads_do_not_overlap_in_a_shared_heap(run_python):
    """A scratch buffer was freed before its tile was finished; separate heaps for threads hid the error."""
    environment = {"MALLOC_ARENA_MAX": "1", "NUMBA_NUM_THREADS": "4", "OMP_WAIT_POLICY": "passive"}
    assert run_python(CROWD, **environment) == "True"


class Guarded:
    """Arrays in the middle of larger buffers, whose other bytes are a pattern."""

    def __init__(self):
        self.buffers = []

    def array(self, size, dtype, fill=0.0, shift=0):
        """Return an array of `size` elements that begins `shift` elements after a cache line's start."""
        dtype = np.dtype(dtype)
        before = GUARD_BYTES + shift * dtype.itemsize
        room = np.full(before + size * dtype.itemsize + GUARD_BYTES + 64, PATTERN, np.uint8)
        start = before + -room.ctypes.data % 64
        array = room[start : start + size * dtype.itemsize].view(dtype)
        array[:] = fill
        self.buffers.append((room, start, start + array.nbytes))
        return array

    def eight_bit(self, size):
        return EightBit(self.array(size, np.uint8), self.array(blocks_of(size), np.float32))

    def are_whole(self):
        """Return whether all bytes before and after the arrays are unchanged."""
        return all(
            (room[:start] == PATTERN).all() and (room[end:] == PATTERN).all() for room, start, end in self.buffers
        )


MIXTURES = {  # param, gradient, state, average, copy, AMSGrad, rounding, scaling
    "plain float32": ("f4", "f4", "f4", None, None, False, False, {}),
    "plain float64": ("f8", "f8", "f8", None, None, True, False, {}),
    "pairs": (BFLOAT16, BFLOAT16, BFLOAT16, None, None, False, False, {}),
    "pairs that cannot be": (BFLOAT16, BFLOAT16, BFLOAT16, None, None, False, False, {"zero_grad": True}),
    "at random": ("u2", BFLOAT16, BFLOAT16, "f4", "f2", True, True, {"zero_grad": True, "clip_value": 0.5}),
    "float16": ("f2", "f2", BFLOAT16, "f4", BFLOAT16, False, False, {"zero_grad": True}),
    "float16 in float64": ("f8", "f2", "f4", "f8", "f2", True, False, {"zero_grad": True}),
    "wide state": ("f4", "f8", "f8", "f8", BFLOAT16, False, False, {"zero_grad": True}),
    "8 bits": ("f4", "f4", "8bit", None, None, False, False, {}),
    "8 bits and all": ("f2", "f8", "8bit", "f4", BFLOAT16, True, False, {"zero_grad": True, "clip_value": 0.5}),
}


def stays_within(sizes, name, shift=0, weight_decay=0.0):
    """Make steps over guarded arrays; return whether the memory around them is unchanged."""
    param, grad, state, ema, low, amsgrad, is_random, treatment = MIXTURES[name]
    guarded = Guarded()

    def arrays(dtype, fill=0.0):
        if dtype == "8bit":
            return [guarded.eight_bit(size) for size in sizes]
        return [guarded.array(size, dtype, fill, shift) for size in sizes]

    fill = 0x3F80 if param == "u2" else 1.0
    columns = [arrays(param, fill), arrays(state), arrays(state), arrays(state) if amsgrad else None]
    extras = Extras(arrays(ema, 1.0) if ema else None, arrays(low) if low else None, 0.5, is_random)
    grads = arrays(grad, 0.5)
    sums = arrays("f8" if "f8" in (param, state) else "f4")
    steps = np.zeros(len(sizes), np.int64)
    hyperparameters = [Hyperparameters(weight_decay=weight_decay, amsgrad=amsgrad)]
    table = UpdateTable(*columns, hyperparameters=hyperparameters, extras=extras)
    table.accumulate(table.plan(grads, steps), np.array([array.ctypes.data for array in sums], np.uint64))
    for _ in range(2):
        plan = table.plan(grads, steps, Scaling(**treatment))
        table.sum_of_squares(plan)
        table.launch(plan, steps)
    assert steps.tolist() == [2] * len(sizes)
    for total, gradient in zip(sums, grads, strict=True):
        assert (total == 0.5).all()
        assert (np.asarray(gradient, "f8") == (0 if "zero_grad" in treatment else 0.5)).all()
    for before, array in zip(sizes, columns[0], strict=True):
        values = array.view(BFLOAT16) if array.dtype == np.uint16 else array
        assert len(values) == before
        assert (np.asarray(values, "f8") < 1).all() or param in ("u2", BFLOAT16)
    return guarded.are_whole()


@pytest.fixture(params=range(1, numba.config.NUMBA_NUM_THREADS + 1))
def threads(request):
    before = numba.get_num_threads()
    numba.set_num_threads(request.param)
    yield request.param
    numba.set_num_threads(before)


@pytest.mark.parametrize("name", MIXTURES)
def test_a_step_writes_only_within_arrays_of_any_length(name):
    for size, weight_decay in itertools.product(SIZES, (0.0, 0.1)):
        assert stays_within([size], name, weight_decay=weight_decay)


@pytest.mark.parametrize("name", MIXTURES)
@pytest.mark.parametrize("shift", [1, 3])
def test_a_step_writes_only_within_arrays_at_any_address(name, shift):
    for size in (*range(70), 127, 128, 129, 1023, 1024, 1025, 40_001):
        assert stays_within([size], name, shift)


@pytest.mark.parametrize("name", MIXTURES)
def test_a_step_on_several_threads_writes_only_within_its_arrays(name, threads):
    for sizes in ([32_768], [32_769, 1, 0, 127, 65_535], [1_023] * 70, [0, 0, 200_001]):
        assert stays_within(sizes, name)


class Lender:
    """Exposes an array's memory by the array interface, without being a NumPy array."""

    def __init__(self, array: np.ndarray) -> None:
        self._array = array
        self.__array_interface__ = array.__array_interface__


def test_a_step_keeps_no_gradient_alive() -> None:
    """Borrowed gradients are released at the end of the step, not at the next one."""
    optimizer = na.Adam([np.zeros(10, np.float32), np.zeros(7, np.float32)])
    grads = [Lender(np.ones(10, np.float32)), Lender(np.ones(7, np.float32))]
    alive = [weakref.ref(grad) for grad in grads]
    optimizer.step(grads)
    del grads
    assert [each() for each in alive] == [None, None]
