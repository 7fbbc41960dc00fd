"""Steps with 8-bit state: they match the oracle on any number of threads, and non-finite values stay in their block."""

from __future__ import annotations

import platform

import eight_bit_reference as reference
import numba
import numpy as np
import pytest

import numba_adam as na
from numba_adam.cpu.kernels.threads import ELEMENTS_PER_TASK
from numba_adam.errors import DtypeError

SIZES = (1, 127, 129, 1000, 1025, 2500)
HYPERPARAMETERS = {
    "adam": {},
    "L2": {"weight_decay": 0.1, "eps_mode": "algorithm1"},
    "decoupled": {"weight_decay": 0.1, "decoupled_weight_decay": True, "betas": (0.8, 0.97)},
    "amsgrad": {"amsgrad": True},
    "amsgrad, L2": {"amsgrad": True, "weight_decay": 0.1},
    "maximize": {"maximize": True, "lr": 0.1},
    "no momentum": {"betas": (0.0, 0.9)},
}
SCALINGS = {"as they are": {}, "scaled": {"grad_scale": 0.3}, "clipped": {"grad_scale": 2.0, "clip_value": 0.5}}
STEPS = 5
X86 = platform.machine().lower() in ("x86_64", "amd64")


def bfloat16(values: np.ndarray) -> np.ndarray:
    """Return the bits of the nearest bfloat16; ties go to the even one."""
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def widened(array: np.ndarray) -> np.ndarray:
    """Return an array as float32; uint16 holds the bits of bfloat16."""
    if array.dtype == np.uint16:
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array.astype(np.float32)


def narrowed(values: np.ndarray, name: str) -> np.ndarray:
    """Return float32 values in another format."""
    return bfloat16(values) if name == "bfloat16" else values.astype(name)


def draw(size: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng([seed, size])
    values = rng.normal(size=size) * np.exp(rng.uniform(-7, 2, size))
    return np.where(rng.random(size) < 0.2, 0, values).astype(np.float32)


def arrays_of(optimizer: na.Adam, index: int) -> list[np.ndarray]:
    state = optimizer.state_dict()["state"][index]
    names = [name for name in ("exp_avg", "exp_avg_sq", "max_exp_avg_sq") if name in state]
    return [array for name in names for array in (state[name], state[f"{name}_scale"])]


def assert_oracles_bits(hyperparameters, sizes=SIZES, param="float32", grad="float32", scaling=None, seed=0) -> None:
    """Train arrays of these sizes in one optimizer, and each by the oracle; compare every bit after every step."""
    params = [narrowed(draw(size, 0), param) for size in sizes]
    optimizer = na.Adam(params, state_dtype="8bit", seed=seed, **hyperparameters)
    settings = na.Hyperparameters(**hyperparameters)
    expected = [(widened(p), reference.empty(p.size, settings.amsgrad)) for p in params]
    for number in range(1, STEPS + 1):
        grads = [narrowed(draw(size, number), grad) for size in sizes]
        optimizer.step(grads, **(scaling or {}))
        for place, (own, given) in enumerate(zip(params, grads, strict=True)):
            value, state = expected[place]
            value, state = reference.step(
                value, widened(given), state, settings, number, seed=seed, place=place, **(scaling or {})
            )
            rounded = narrowed(value, param)
            expected[place] = widened(rounded), state
            assert own.tobytes() == rounded.tobytes()
            wanted = [array for moment in state if moment is not None for array in moment]
            assert [array.tobytes() for array in arrays_of(optimizer, place)] == [array.tobytes() for array in wanted]


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("name", HYPERPARAMETERS)
def test_a_step_matches_the_oracle(name, scaling):
    assert_oracles_bits(HYPERPARAMETERS[name], scaling=SCALINGS[scaling])


@pytest.mark.parametrize("name", ["adam", "decoupled", "amsgrad"])
@pytest.mark.parametrize("grad", ["float32", "bfloat16", "float16", "float64"])
@pytest.mark.parametrize("param", ["float32", "bfloat16", "float16"])
def test_any_parameter_and_gradient_match_the_oracle(param, grad, name):
    assert_oracles_bits(HYPERPARAMETERS[name], (129, 1025), param, grad)


@pytest.mark.parametrize("name", ["adam", "amsgrad"])
def test_another_seed_matches_the_oracle(name):
    assert_oracles_bits(HYPERPARAMETERS[name], seed=2**40 + 7)


def test_arrays_of_any_shape_have_the_same_bits_as_flat_arrays():
    flat, deep = draw(600, 0), draw(600, 0).reshape(5, 3, 40)
    grad = draw(600, 1)
    one, other = (na.Adam(param, state_dtype="8bit") for param in (flat, deep))
    one.step(grad)
    other.step(grad.reshape(5, 3, 40))
    assert flat.tobytes() == deep.tobytes()
    assert other.state[0]["exp_avg"].shape == (5, 3, 40)
    assert [a.tobytes() for a in arrays_of(one, 0)] == [a.tobytes() for a in arrays_of(other, 0)]


def test_empty_arrays_are_skipped():
    params = [np.zeros(0, np.float32), np.ones((2, 0), np.float32), np.ones(3, np.float32)]
    optimizer = na.Adam(params, state_dtype="8bit", lr=0.5)
    optimizer.step([np.ones_like(param) for param in params])
    np.testing.assert_allclose(params[2], 0.5, rtol=1e-6)
    assert optimizer.state[0]["exp_avg_scale"].shape == (0,)


# --- what the bits depend on ---

PROGRAM = (
    f"""
ELEMENTS_PER_TASK = {ELEMENTS_PER_TASK}
"""
    + """
import hashlib
import sys
import numba
import numpy as np
import numba_adam as na
numba.set_num_threads(int(sys.argv[1]))
rng = np.random.default_rng(3)
sizes = 3 * ELEMENTS_PER_TASK + 77, 1, 2 * ELEMENTS_PER_TASK + 1, 1025
for options in ({}, {"amsgrad": True}, {"weight_decay": 0.1, "ema_decay": 0.9, "low_precision_copy": "bfloat16"}):
    params = [rng.normal(size=size).astype(np.float32) for size in sizes]
    optimizer = na.Adam(params, state_dtype="8bit", **options)
    for _ in range(3):
        optimizer.step([rng.normal(size=size).astype(np.float32) for size in sizes])
    states = [value for state in optimizer.state.values() for value in state.values() if hasattr(value, "nbytes")]
    print(hashlib.sha256(b"".join(array.tobytes() for array in (*params, *states))).hexdigest())
"""
)


def test_one_two_and_four_threads_give_the_same_bits(run_python):
    seen = [run_python(PROGRAM, threads, NUMBA_NUM_THREADS="4") for threads in "124"]
    assert len(set(seen[0].split())) == 3
    assert seen[1:] == seen[:1] * 2


@pytest.mark.skipif(not X86, reason="SSE2 and AVX2 are instruction sets of x86-64")
def test_code_for_older_cpus_gives_the_same_bits(run_python):
    """One thread, so that a single kernel is compiled anew."""
    expected = run_python(PROGRAM, "1", NUMBA_NUM_THREADS="1")
    assert run_python(PROGRAM, "1", NUMBA_NUM_THREADS="1", NUMBA_CPU_NAME="x86-64", NUMBA_CPU_FEATURES="") == expected


def test_an_array_divided_among_threads_matches_the_oracle():
    before = numba.get_num_threads()
    numba.set_num_threads(min(2, before))
    try:
        assert_oracles_bits({}, (2 * ELEMENTS_PER_TASK + 300,))
    finally:
        numba.set_num_threads(before)


def after_steps(param: np.ndarray, neighbours: list[np.ndarray], **options) -> list[bytes]:
    """Return the bits of a parameter and its state after three steps beside others that come after it."""
    optimizer = na.Adam([param, *neighbours], state_dtype="8bit", **options)
    for number in range(3):
        optimizer.step([draw(param.size, number + 1), *(draw(array.size, 9) for array in neighbours)])
    return [array.tobytes() for array in (param, *arrays_of(optimizer, 0))]


def test_bits_do_not_depend_on_addresses_or_neighbouring_arrays():
    alone = after_steps(draw(1500, 0), [])
    for skip in range(1, 17, 5):
        room = np.zeros(1500 + skip, np.float32)
        room[skip:] = draw(1500, 0)
        assert after_steps(room[skip:], [draw(skip * 100, 0)]) == alone


def test_the_seed_changes_only_the_dither():
    """After one step the parameters are equal, and codes differ by one at most."""
    params, states = [], []
    for seed in (0, 1):
        params.append(draw(4000, 0))
        optimizer = na.Adam(params[-1], state_dtype="8bit", seed=seed)
        optimizer.step(draw(4000, 1))
        states.append(arrays_of(optimizer, 0))
    assert params[0].tobytes() == params[1].tobytes()
    for one, other in zip(*states, strict=True):
        if one.dtype == np.float32:
            assert one.tobytes() == other.tobytes()
        else:
            apart = np.abs((one & 127).astype(int) - (other & 127).astype(int)) % 127
            assert apart.max() == 1


def test_extra_fused_work_does_not_change_8_bit_state():
    """With an average, a low-precision copy, zeroed gradients, and master copies."""
    param, image = widened(bfloat16(draw(1500, 0))), bfloat16(draw(1500, 0))
    alone = na.Adam(param, state_dtype="8bit")
    beside = na.Adam(image, state_dtype="8bit", master_weights=True, ema_decay=0.9)
    for number in range(3):
        grad = draw(1500, number + 1)
        alone.step(grad)
        beside.step(grad, zero_grad=True)
        assert not grad.any()
    assert beside.state[0]["master_param"].tobytes() == param.tobytes()
    assert image.tobytes() == bfloat16(param).tobytes()
    assert [array.tobytes() for array in arrays_of(beside, 0)] == [array.tobytes() for array in arrays_of(alone, 0)]


def test_a_parameter_without_a_gradient_keeps_its_codes_and_dither():
    params = [draw(300, 0), draw(300, 0)]
    optimizer = na.Adam(params, state_dtype="8bit")
    optimizer.step([draw(300, 1), None])
    assert 1 not in optimizer.state
    kept = [array.tobytes() for array in arrays_of(optimizer, 0)]
    optimizer.step([None, draw(300, 1)])
    assert [array.tobytes() for array in arrays_of(optimizer, 0)] == kept
    _, expected = reference.step(draw(300, 0), draw(300, 1), reference.empty(300), na.Hyperparameters(), 1, place=1)
    wanted = [array for moment in expected[:2] for array in moment]
    assert [array.tobytes() for array in arrays_of(optimizer, 1)] == [array.tobytes() for array in wanted]


def test_the_rounding_option_does_not_change_8_bit_state():
    assert after_steps(draw(1500, 0), [], rounding="stochastic") == after_steps(draw(1500, 0), [])


# --- what vanishes ---

DEAD = {"zero": 0.0, "1e-20": 1e-20, "1e-30": 1e-30}


@pytest.mark.parametrize("gradient", DEAD)
@pytest.mark.parametrize("alive", [1, 64, 127])
@pytest.mark.parametrize("options", [{}, {"amsgrad": True}, {"betas": (0.95, 0.99)}], ids=str)
def test_parameters_with_vanished_gradients_stop_changing(options, alive, gradient):
    """Momentum moves them for a while; after 300 steps they no longer change."""
    rng = np.random.default_rng(alive)
    is_dead = np.arange(1280) % 128 >= alive
    param = (1 + rng.random(1280)).astype(np.float32)
    optimizer = na.Adam(param, state_dtype="8bit", **options)
    for step in range(20 + 300 + 200):
        grad = rng.normal(size=1280).astype(np.float32)
        if step >= 20:
            grad[is_dead] = DEAD[gradient]
        if step == 320:
            before = param.copy()
        optimizer.step(grad)
    assert param[is_dead].tobytes() == before[is_dead].tobytes()
    assert (param != before)[~is_dead].all()


def test_zero_gradients_change_no_parameter():
    param = draw(1000, 0)
    before = param.copy()
    optimizer = na.Adam(param, state_dtype="8bit", betas=(0.9, 0.9), eps=0.0 + 1e-30)
    for _ in range(50):
        optimizer.step(np.zeros(1000, np.float32))
    assert param.tobytes() == before.tobytes()
    assert not any(array.any() for array in arrays_of(optimizer, 0))


def test_without_further_gradients_the_state_decays_to_zero():
    param = draw(1000, 0)
    optimizer = na.Adam(param, state_dtype="8bit", betas=(0.5, 0.5))
    optimizer.step(draw(1000, 1))
    for _ in range(300):
        before = param.copy()
        optimizer.step(np.zeros(1000, np.float32))
    assert param.tobytes() == before.tobytes()
    assert not optimizer.state[0]["exp_avg_scale"].any()
    assert not optimizer.state[0]["exp_avg_sq_scale"].any()


# --- what is not finite ---


def poisoned(value: float, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Return parameters after some steps, with and without one gradient of `value` in the first step."""
    params = [draw(1000, 0), draw(1000, 0)]
    for param, first in zip(params, (value, None), strict=True):
        optimizer = na.Adam(param, state_dtype="8bit")
        for number in range(steps):
            grad = draw(1000, number + 1)
            if first is not None and number == 0:
                grad[300] = first
            optimizer.step(grad)
    return params[0], params[1]


@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf, -np.inf, 1e30])
def test_a_non_finite_gradient_affects_only_its_own_block(value):
    """The same for a gradient with an overflowing square. Neighbouring elements are updated normally."""
    param, clean = poisoned(value, 1)
    others = np.arange(1000) != 300
    assert param[others].tobytes() == clean[others].tobytes()
    param, clean = poisoned(value, 3)
    block = np.arange(1000) // reference.BLOCK == 300 // reference.BLOCK
    assert np.isnan(param[block]).all()
    assert param[~block].tobytes() == clean[~block].tobytes()


@pytest.mark.parametrize("treatment", [{"loss_scale": 8.0}, {"max_grad_norm": 1.0}])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_measured_step_with_a_non_finite_gradient_is_skipped(value, treatment):
    param = draw(1000, 0)
    optimizer = na.Adam(param, state_dtype="8bit")
    optimizer.step(draw(1000, 1), **treatment)
    before = [array.tobytes() for array in (param, *arrays_of(optimizer, 0))]
    grad = draw(1000, 2)
    grad[999] = value
    assert not optimizer.step(grad, **treatment).applied
    assert [array.tobytes() for array in (param, *arrays_of(optimizer, 0))] == before
    assert optimizer.state[0]["step"] == 1


@pytest.mark.parametrize("treatment", [{"clip_value": 1.0}, {"max_grad_norm": 1.0}])
def test_clipping_keeps_large_gradients_from_spoiling_a_block(treatment):
    param = draw(1000, 0)
    optimizer = na.Adam(param, state_dtype="8bit")
    for number in range(3):
        grad = draw(1000, number + 1)
        grad[300] = 1e30
        assert optimizer.step(grad, **treatment).applied
    assert np.isfinite(param).all()


# --- large and small ---


@pytest.mark.parametrize("scale", [1e18, 1e9, 1.0, 1e-9])
def test_blocks_of_very_different_gradients_each_keep_their_own_scale(scale):
    """Each block behaves like a separate array; without eps, Adam is invariant to the scale of gradients."""
    hyperparameters = {"eps": 1e-30, "lr": 0.01}
    param, exact = np.ones(1024, np.float32), np.ones(1024, np.float32)
    optimizers = [na.Adam(param, state_dtype="8bit", **hyperparameters), na.Adam(exact, **hyperparameters)]
    factors = np.repeat(np.array([scale, 1.0] * 4, np.float32), 128)
    for number in range(10):
        grad = draw(1024, number) * factors
        for optimizer in optimizers:
            optimizer.step(grad)
    assert np.abs(param - exact).max() < 0.03
    assert np.abs(param - exact).mean() < 0.003
    assert np.abs(param - 1).mean() > 0.02


def test_gradients_with_squares_that_underflow_change_no_parameter():
    param = draw(1000, 0)
    before = param.copy()
    optimizer = na.Adam(param, state_dtype="8bit")
    for _ in range(20):
        optimizer.step(np.full(1000, 1e-30, np.float32))
    assert np.array_equal(param[before != 0], before[before != 0])
    assert np.isfinite(param).all()


# --- what it takes, and what it does not ---


def test_the_state_takes_two_and_a_sixteenth_bytes_per_parameter():
    param = np.ones(2**20, np.float32)
    optimizer = na.Adam(param, state_dtype="8bit")
    optimizer.step(np.ones_like(param))
    assert sum(array.nbytes for array in arrays_of(optimizer, 0)) == 2.0625 * param.size


def test_float64_parameters_are_refused():
    with pytest.raises(DtypeError, match=r"params\['w'\] is float64, state_dtype='8bit'.*float64 or\s+float32"):
        na.Adam({"w": np.ones(3)}, state_dtype="8bit")


def test_8_bit_training_stays_close_to_float32_state():
    """After fifty steps the mean error is a small fraction of the change."""
    params = [np.zeros(5000, np.float32) for _ in range(2)]
    optimizers = [na.Adam(params[0]), na.Adam(params[1], state_dtype="8bit")]
    for number in range(50):
        grad = draw(5000, number + 1)
        for optimizer in optimizers:
            optimizer.step(grad)
    error = np.abs(params[0] - params[1])
    assert error.mean() < 0.05 * np.abs(params[0]).mean()


@pytest.mark.parametrize(
    "options", [{}, {"decoupled_weight_decay": True, "weight_decay": 0.1}, {"amsgrad": True}], ids=str
)
@pytest.mark.parametrize("size", [1, 100, 127])
def test_a_short_non_finite_block_has_the_scales_of_a_full_block(size, options):
    """The missing elements of the last block must not contribute, not even a NaN."""
    found = []
    for elements in (size, 128):
        optimizer = na.Adam(np.ones(elements, np.float32), state_dtype="8bit", **options)
        for _ in range(2):
            optimizer.step(np.full(elements, 1e30, np.float32))  # its square is infinite
        state = optimizer.state[0]
        found.append([state[key].tobytes() for key in state if key.endswith("_scale")])
    assert found[0] == found[1]


def test_a_finite_first_moment_without_a_second_is_lost():
    optimizer = na.Adam(np.ones(256, np.float32))
    optimizer.step(np.ones(256, np.float32))
    state = optimizer.state_dict()
    state["state"][0]["exp_avg_sq"][5] = state["state"][0]["exp_avg_sq"][200] = 0
    state["state"][0]["exp_avg"][200] = np.inf
    narrow = na.Adam(np.ones(256, np.float32), state_dtype="8bit")
    narrow.load_state_dict(state)
    scales = narrow.state[0]["exp_avg_scale"]
    assert narrow.state[0]["exp_avg"][5] == 0
    assert np.isfinite(scales).tolist() == [True, False]
