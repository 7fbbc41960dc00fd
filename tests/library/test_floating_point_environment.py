"""Subnormal numbers: no state holds them, and the bits do not depend on what the CPU was told to do with them."""

from __future__ import annotations

import ctypes
import platform
import sys

import numba
import numpy as np
import pytest

import numba_adam as na
from numba_adam.folding import FLOORS

MACHINE = platform.machine().lower()
# Where the control word stands in glibc's fenv_t, and the bits that flush subnormals: FTZ and DAZ, or FZ.
FENV = {"x86_64": (28, 0x8040), "aarch64": (0, 1 << 24)}
ROUNDING = {"x86_64": (0x0, 0x400, 0x800, 0xC00), "aarch64": (0x0, 0x800000, 0x400000, 0xC00000)}
SIZE = 64  # bytes: room for an fenv_t
needs_glibc = pytest.mark.skipif(
    sys.platform != "linux" or MACHINE not in FENV, reason="reaches the control word through glibc's fenv_t"
)


def smallest_normal(dtype):
    return np.finfo(dtype).smallest_normal


def subnormals(array):
    return int(((array != 0) & (np.abs(array) < smallest_normal(array.dtype))).sum())


@pytest.mark.parametrize("amsgrad", [False, True])
def test_a_state_without_gradients_decays_to_zero_and_is_never_subnormal(dtype, amsgrad):
    rng = np.random.default_rng(4)
    param = rng.normal(size=64).astype(dtype)
    beta2 = 0.95 if dtype == np.float32 else 0.6
    optimizer = na.Adam(param, betas=(0.6, beta2), amsgrad=amsgrad)
    optimizer.step((rng.normal(size=64) * np.exp(rng.uniform(-30, 10, 64))).astype(dtype))
    nothing, state = np.zeros(64, dtype), optimizer.state[0]
    exp_avg, exp_avg_sq = state["exp_avg"], state["exp_avg_sq"]
    for _ in range(3_000):
        optimizer.step(nothing)
        assert subnormals(exp_avg) == subnormals(exp_avg_sq) == 0
    assert not exp_avg.any()
    assert not exp_avg_sq.any()
    at_rest = param.copy()
    optimizer.step(nothing)
    assert (param == at_rest).all()


def test_gradients_too_small_to_square(dtype):
    tiny = np.sqrt(smallest_normal(dtype), dtype=dtype) * dtype.type(0.5)
    optimizer = na.Adam(np.ones(8, dtype))
    for _ in range(50):
        optimizer.step(np.full(8, tiny, dtype))
    assert not optimizer.state[0]["exp_avg_sq"].any()
    assert subnormals(optimizer.state[0]["exp_avg"]) == 0


def test_the_floor_is_the_first_number_that_is_kept(dtype):
    floors = FLOORS[dtype.name]
    one = dtype.type(1)
    first = np.array([floors.exp_avg, np.nextafter(dtype.type(floors.exp_avg), 0 * one)] * 2, dtype) * [1, 1, -1, -1]
    second = np.array([floors.exp_avg_sq, np.nextafter(dtype.type(floors.exp_avg_sq), one * 0)] * 2, dtype)
    exp_avg, exp_avg_sq = (2 * first).astype(dtype), (2 * second).astype(dtype)
    na.adam_update(np.ones(4, dtype), np.zeros(4, dtype), exp_avg, exp_avg_sq, 9, betas=(0.5, 0.5))
    assert exp_avg.tolist() == [floors.exp_avg, 0, -floors.exp_avg, 0]
    assert exp_avg_sq.tolist() == [floors.exp_avg_sq, 0, floors.exp_avg_sq, 0]


def test_a_loaded_state_of_subnormals_is_zero_after_one_step(dtype):
    optimizer = na.Adam(np.ones(3, dtype))
    optimizer.step(np.ones(3, dtype))
    loaded = optimizer.state_dict()
    loaded["state"][0] = {"step": 1, "exp_avg": np.full(3, 1e-310, dtype), "exp_avg_sq": np.full(3, 1e-310, dtype)}
    optimizer.load_state_dict(loaded)
    optimizer.step(np.zeros(3, dtype))
    assert not any(optimizer.state[0][key].any() for key in ("exp_avg", "exp_avg_sq"))


# --- what other libraries do to the CPU ---


def library():
    functions = ctypes.CDLL("libm.so.6")
    functions.fegetenv.argtypes = functions.fesetenv.argtypes = [ctypes.c_void_p]
    return functions


def control_of(raw):
    """Return the control word within the bytes of an fenv_t, without the flags that arithmetic leaves behind."""
    word = int.from_bytes(raw[FENV[MACHINE][0] :][:4], "little")
    return word & ~0x3F if MACHINE == "x86_64" else word


class Environment:
    """The floating-point environment of a thread, as glibc hands it over."""

    def __init__(self):
        self.buffer = ctypes.create_string_buffer(SIZE)
        library().fegetenv(self.buffer)

    @property
    def control(self):
        return control_of(self.buffer.raw)

    def with_changes(self, *, flush, rounding):
        """Return a copy that flushes subnormals, or not, and rounds in that direction."""
        changed, offset = Environment(), FENV[MACHINE][0]
        word = self.control | (FENV[MACHINE][1] if flush else 0)
        word |= rounding << 3 if MACHINE == "x86_64" else rounding
        changed.buffer[offset : offset + 4] = word.to_bytes(4, "little")
        return changed

    def set(self):
        library().fesetenv(self.buffer)


def make_setter():
    """Return a kernel that sets the environment of every thread of Numba's pool, and one that copies theirs."""
    functions = library()
    fesetenv, fegetenv = functions.fesetenv, functions.fegetenv

    @numba.njit(parallel=True)
    def set_all(address, threads):
        for _ in numba.prange(threads):
            fesetenv(address)

    @numba.njit(parallel=True)
    def read_all(address, threads):
        for thread in numba.prange(threads):
            fegetenv(address + thread * SIZE)

    return set_all, read_all


@pytest.fixture(scope="module")
def pool():
    return make_setter()


@pytest.fixture
def ordinary():
    """Return this thread's environment, and set it again after the test."""
    environment = Environment()
    yield environment
    environment.set()


def digest(size, dtype, around_step):
    """Return every byte after four steps from values of which many become subnormal, each step made `around_step`."""
    rng = np.random.default_rng(9)

    def draw(low):
        return (rng.normal(size=size) * np.exp2(rng.uniform(low, 3, size))).astype(dtype)

    lowest = np.finfo(dtype).minexp - 8
    param, grads = draw(lowest), [draw(lowest) for _ in range(4)]
    optimizer = na.AdamW([param, param[: size // 3].copy()], lr=0.0123, betas=(0.7, 0.9), weight_decay=0.3)
    moments = np.zeros((2, size), dtype)
    alone = param.copy()
    for step, grad in enumerate(grads, 1):
        with around_step():
            optimizer.step([grad, None if step == 2 else grad[: size // 3]], grad_scale=0.7)
            na.adam_update(alone, grad, *moments, step, lr=0.0123, eps_mode="algorithm1")
    states = optimizer.state_dict()["state"].values()
    parts = [param, alone, moments, *(state[key] for state in states for key in ("exp_avg", "exp_avg_sq"))]
    return b"".join(part.tobytes() for part in parts)


@needs_glibc
@pytest.mark.parametrize("flush", [False, True], ids=["keep", "flush"])
@pytest.mark.parametrize("direction", range(4), ids=["nearest", "second", "third", "fourth"])
@pytest.mark.parametrize("size", [1_000, 100_000])  # on the calling thread alone, and on all
def test_the_bits_do_not_depend_on_the_cpus_settings(size, dtype, direction, flush, pool, ordinary):
    set_all, read_all = pool
    rounding = ROUNDING[MACHINE][direction]
    threads = numba.get_num_threads()

    class Unchanged:
        def __enter__(self):
            return self

        def __exit__(self, *_):
            return None

    class Changed(Unchanged):
        """Sets the environment for the step, on this thread and on the pool's, and looks that it is still set after."""

        def __enter__(self):
            changed = ordinary.with_changes(flush=flush, rounding=rounding)
            set_all(ctypes.addressof(changed.buffer), threads)
            changed.set()
            self.control = changed.control

        def __exit__(self, *_):
            after, found = Environment(), ctypes.create_string_buffer(threads * SIZE)
            read_all(ctypes.addressof(found), threads)
            set_all(ctypes.addressof(ordinary.buffer), threads)
            ordinary.set()
            assert after.control == self.control
            assert {control_of(found.raw[k * SIZE :]) for k in range(threads)} == {self.control}

    assert digest(size, dtype, Changed) == digest(size, dtype, Unchanged)


@needs_glibc
def test_the_settings_of_this_test_are_felt(ordinary):
    """Otherwise the test above would prove nothing."""
    tiny, minus_one = np.array([1e-40], np.float32), np.array([-1.0], np.float32)
    ordinary.with_changes(flush=True, rounding=ROUNDING[MACHINE][2]).set()
    flushed, upwards = tiny * np.float32(0.5), minus_one / np.float32(3)
    ordinary.set()
    assert flushed[0] == 0 != (tiny * np.float32(0.5))[0]
    assert upwards[0] > (minus_one / np.float32(3))[0]
