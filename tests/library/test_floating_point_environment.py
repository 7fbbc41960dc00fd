"""Subnormal numbers: no state has them, and the bits do not depend on the CPU's settings for them."""

from __future__ import annotations

import ctypes
import platform
import sys

import ml_dtypes
import numba
import numpy as np
import pytest

import numba_adam as na
from numba_adam.numerics.constants import FLOORS

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


def test_gradients_with_squares_that_underflow_make_no_huge_update(dtype):
    """The second moment stays above its floor, so that the first one is not divided by zero."""
    tiny = np.sqrt(smallest_normal(dtype), dtype=dtype) * dtype.type(0.5)
    optimizer = na.Adam(np.ones(8, dtype))
    for _ in range(50):
        optimizer.step(np.full(8, tiny, dtype))
        assert (optimizer.state[0]["exp_avg_sq"] == 4 * smallest_normal(dtype)).all()
        assert subnormals(optimizer.state[0]["exp_avg"]) == 0


def test_the_floor_is_the_smallest_number_that_is_kept(dtype):
    floors = FLOORS[dtype.name]
    one = dtype.type(1)
    first = np.array([floors.exp_avg, np.nextafter(dtype.type(floors.exp_avg), 0 * one)] * 2, dtype) * [1, 1, -1, -1]
    second = np.array([floors.exp_avg_sq, np.nextafter(dtype.type(floors.exp_avg_sq), one * 0)] * 2, dtype)
    exp_avg, exp_avg_sq = (2 * first).astype(dtype), (2 * second).astype(dtype)
    na.adam_update(np.ones(4, dtype), np.zeros(4, dtype), exp_avg, exp_avg_sq, 9, betas=(0.5, 0.5))
    assert exp_avg.tolist() == [floors.exp_avg, 0, -floors.exp_avg, 0]
    # As long as there is a first moment, the second one is held at four times its floor.
    assert exp_avg_sq.tolist() == [4 * floors.exp_avg_sq, 0, 4 * floors.exp_avg_sq, 0]
    nothing, exp_avg_sq = np.zeros(4, dtype), (2 * second).astype(dtype)
    na.adam_update(np.ones(4, dtype), nothing, nothing.copy(), exp_avg_sq, 9, betas=(0.5, 0.5))
    assert exp_avg_sq.tolist() == [floors.exp_avg_sq, 0, floors.exp_avg_sq, 0]


def test_a_loaded_subnormal_state_is_zero_after_one_step(dtype):
    optimizer = na.Adam(np.ones(3, dtype))
    optimizer.step(np.ones(3, dtype))
    loaded = optimizer.state_dict()
    loaded["state"][0] = {"step": 1, "exp_avg": np.full(3, 1e-310, dtype), "exp_avg_sq": np.full(3, 1e-310, dtype)}
    optimizer.load_state_dict(loaded)
    optimizer.step(np.zeros(3, dtype))
    assert not any(optimizer.state[0][key].any() for key in ("exp_avg", "exp_avg_sq"))


FORMATS = {  # dtype of the parameter, format of the state, how it is rounded
    "bfloat16": (ml_dtypes.bfloat16, "bfloat16", "nearest"),
    "bfloat16 at random": (ml_dtypes.bfloat16, "bfloat16", "stochastic"),
    "float16": (np.float16, "float32", "nearest"),
    "float32 with bfloat16": (np.float32, "bfloat16", "nearest"),
    "float32 with float64": (np.float32, "float64", "nearest"),
    "float64 with float32": (np.float64, "float32", "nearest"),
    "8 bits": (np.float32, "8bit", "nearest"),
}


def as_numbers(array):
    """Return an array that NumPy can compare with a smallest normal number."""
    return array.astype(np.float32) if array.dtype == ml_dtypes.bfloat16 else array


@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize("name", FORMATS)
def test_a_state_of_any_format_decays_to_zero_and_is_never_subnormal(name, amsgrad):
    """One array uses pairs or its dtype's own kernel, the other uses tiles."""
    dtype, state, rounding = FORMATS[name]
    rng = np.random.default_rng(4)
    params = [rng.normal(size=64).astype(dtype), rng.normal(size=63).astype(dtype)]
    optimizer = na.Adam(params, betas=(0.6, 0.6), state_dtype=state, rounding=rounding, amsgrad=amsgrad)
    optimizer.step([(rng.normal(size=p.size) * np.exp(rng.uniform(-12, 6, p.size))).astype(dtype) for p in params])
    nothing = [np.zeros_like(param) for param in params]
    for _ in range(2_000 if state == "float64" else 400):
        optimizer.step(nothing)
        arrays = [entry[key] for entry in optimizer.state.values() for key in entry if key != "step"]
        floats = [as_numbers(array) for array in arrays if array.dtype != np.uint8]
        assert sum(map(subnormals, floats)) == 0
    for entry in optimizer.state.values():
        assert not entry["exp_avg"].any()
        if state != "8bit":  # whose roots never become zero by rounding, but by their block's floor
            assert not entry["exp_avg_sq"].any()
    at_rest = [param.copy() for param in params]
    optimizer.step(nothing)
    assert [param.tobytes() for param in params] == [param.tobytes() for param in at_rest]


@pytest.mark.parametrize("name", ["bfloat16", "float64 with float32"])
def test_gradients_with_squares_that_underflow_the_states_format(name):
    dtype, state, _ = FORMATS[name]
    grad = np.full(8, 2.0**-70).astype(dtype)
    optimizer = na.Adam([np.ones(8, dtype)], state_dtype=state, amsgrad=True)
    for _ in range(50):
        optimizer.step([grad])
    for key in ("exp_avg_sq", "max_exp_avg_sq"):
        assert (optimizer.state[0][key].astype(float) == 2.0**-124).all()


# --- what other libraries do to the CPU ---


def library():
    functions = ctypes.CDLL("libm.so.6")
    functions.fegetenv.argtypes = functions.fesetenv.argtypes = [ctypes.c_void_p]
    return functions


def control_of(raw):
    """Return the control word of an fenv_t without the exception flags."""
    word = int.from_bytes(raw[FENV[MACHINE][0] :][:4], "little")
    return word & ~0x3F if MACHINE == "x86_64" else word


class Environment:
    """The floating-point environment of a thread, as glibc stores it."""

    def __init__(self):
        self.buffer = ctypes.create_string_buffer(SIZE)
        library().fegetenv(self.buffer)

    @property
    def control(self):
        return control_of(self.buffer.raw)

    def with_changes(self, *, flush, rounding):
        """Return a copy with these flush and rounding modes."""
        changed, offset = Environment(), FENV[MACHINE][0]
        word = self.control | (FENV[MACHINE][1] if flush else 0)
        word |= rounding << 3 if MACHINE == "x86_64" else rounding
        changed.buffer[offset : offset + 4] = word.to_bytes(4, "little")
        return changed

    def set(self):
        library().fesetenv(self.buffer)


def make_setter():
    """Return two kernels: one sets the environment of every pool thread, the other reads it."""
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
    """Return this thread's environment, and restore it after the test."""
    environment = Environment()
    yield environment
    environment.set()


def digest(size, dtype, around_step):
    """Return all bytes after four steps from values that become subnormal, each step within `around_step`."""
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


class Unchanged:
    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None


def changing(pool, ordinary, direction, flush):
    """Return a context in which all pool threads and this one have these modes; it checks them."""
    set_all, read_all = pool
    rounding = ROUNDING[MACHINE][direction]
    threads = numba.get_num_threads()

    class Changed(Unchanged):
        """Sets the environment of all threads for the step, and checks it afterwards."""

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

    return Changed


@needs_glibc
@pytest.mark.parametrize("flush", [False, True], ids=["keep", "flush"])
@pytest.mark.parametrize("direction", range(4), ids=["nearest", "second", "third", "fourth"])
@pytest.mark.parametrize("size", [1_000, 100_000])  # on the calling thread alone, and on all
def test_the_bits_do_not_depend_on_the_cpus_settings(size, dtype, direction, flush, pool, ordinary):
    changed = changing(pool, ordinary, direction, flush)
    assert digest(size, dtype, changed) == digest(size, dtype, Unchanged)


EXTRAS = {
    "bfloat16": {},
    "bfloat16 at random": {"master_weights": True, "ema_decay": 0.7},
    "float16": {"ema_decay": 0.7, "low_precision_copy": "bfloat16"},
    "float32 with bfloat16": {"low_precision_copy": "float16"},
    "float64 with float32": {"ema_decay": 0.7},
    "8 bits": {"amsgrad": True},
}


def digest_of(name, size, around):
    """Return all bytes of an optimizer that was made, stepped and loaded within `around`."""
    dtype, state, rounding = FORMATS[name]
    rng = np.random.default_rng(9)

    def draw():
        return (rng.normal(size=size) * np.exp2(rng.uniform(-140, 3, size))).astype(np.float32).astype(dtype)

    param, grads, options = draw(), [draw() for _ in range(3)], {"state_dtype": state, "rounding": rounding}
    options |= EXTRAS[name]
    with around():
        optimizer = na.Adam([param], lr=0.0123, betas=(0.7, 0.9), **options)
    for grad in grads:
        with around():
            result = optimizer.step([grad], loss_scale=3.0, max_grad_norm=1.7, clip_value=0.3)
    other = na.Adam([param], **{**options, "state_dtype": "float32"})
    with around():
        other.load_state_dict(optimizer.state_dict())
    arrays = [param, *optimizer.state[0].values(), *other.state[0].values()]
    arrays += optimizer.low_precision if "low_precision_copy" in options else []
    return result.grad_norm, [array.tobytes() for array in arrays if not isinstance(array, int)]


@needs_glibc
@pytest.mark.parametrize("direction", range(4), ids=["nearest", "second", "third", "fourth"])
@pytest.mark.parametrize("size", [1_000, 100_000])
@pytest.mark.parametrize("name", EXTRAS)
def test_the_bits_of_no_format_depend_on_the_cpus_settings(name, size, direction, pool, ordinary):
    changed = changing(pool, ordinary, direction, flush=True)
    assert digest_of(name, size, changed) == digest_of(name, size, Unchanged)


@needs_glibc
def test_the_test_really_changes_the_environment(ordinary):
    """Otherwise the test above would prove nothing."""
    tiny, minus_one = np.array([1e-40], np.float32), np.array([-1.0], np.float32)
    ordinary.with_changes(flush=True, rounding=ROUNDING[MACHINE][2]).set()
    flushed, upwards = tiny * np.float32(0.5), minus_one / np.float32(3)
    ordinary.set()
    assert flushed[0] == 0 != (tiny * np.float32(0.5))[0]
    assert upwards[0] > (minus_one / np.float32(3))[0]
