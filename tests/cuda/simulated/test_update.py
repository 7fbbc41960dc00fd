"""The update's kernels in the simulator: the CPU's bits at any address."""

from types import SimpleNamespace

import numpy as np
import pytest
from lending import ON_GPU, on_gpu

import numba_adam as na
from numba_adam import Hyperparameters
from numba_adam.cuda import seam
from numba_adam.cuda.table import CudaTable

VARIANTS = {
    "hat": {},
    "algorithm1": {"eps_mode": "algorithm1", "weight_decay": 0.1, "betas": (0.8, 0.97)},
    "adamw": {"decoupled_weight_decay": True, "weight_decay": 0.05, "maximize": True, "lr": 0.03},
    "amsgrad": {"amsgrad": True, "eps": 1e-3},
}
STEPS = 3


def room(size, dtype, skip=0):
    """Return an array of zeros that begins this many elements after a multiple of 64 bytes."""
    whole = np.zeros(size + skip + 64, dtype)
    begin = -whole.ctypes.data % 64 // whole.itemsize + skip
    return whole[begin : begin + size]


def draw(rng, size, dtype, skip=0):
    """Return an array whose magnitudes span many powers of two."""
    array = room(size, dtype, skip)
    array[:] = rng.normal(size=size) * np.exp(rng.uniform(-20, 5, size))
    return array


def state_of(params, hyperparameters, skips=(0, 0, 0)):
    """Return zero moments; each column begins this many elements after a multiple of 64 bytes."""
    exp_avgs, exp_avg_sqs, largest = ([room(p.size, p.dtype, skip) for p in params] for skip in skips)
    return SimpleNamespace(
        exp_avgs=exp_avgs, exp_avg_sqs=exp_avg_sqs, largest=largest if hyperparameters.get("amsgrad") else None
    )


def train(params, state, gradients, hyperparameters):
    """Update arrays in the simulator."""
    largest = None if state.largest is None else on_gpu(*state.largest)
    table = CudaTable(
        on_gpu(*params),
        on_gpu(*state.exp_avgs),
        on_gpu(*state.exp_avg_sqs),
        largest,
        hyperparameters=[Hyperparameters(**hyperparameters)],
    )
    for grads in gradients:
        table.step(on_gpu(*grads))
    return table


def bits(array):
    """Return an array's bits. All NaNs become equal, because their payloads differ between machines."""
    return np.where(np.isnan(array), array.dtype.type(np.nan), array).view(f"u{array.itemsize}").tolist()


def expect_the_cpus_bits(params, gradients, hyperparameters, skips=(0, 0, 0)):
    """Train the same on the CPU, and compare every bit."""
    copies = [param.copy() for param in params]
    state = state_of(params, hyperparameters, skips)
    table = train(params, state, gradients, hyperparameters)
    cpu = na.Adam(copies, **hyperparameters)
    for grads in gradients:
        cpu.step(grads)
    for k, (param, copy) in enumerate(zip(params, copies, strict=True)):
        entry = cpu.state_dict()["state"].get(k, {"step": 0})
        assert bits(param) == bits(copy)
        assert table.steps[k] == entry["step"]
        if entry["step"]:
            assert bits(state.exp_avgs[k]) == bits(entry["exp_avg"])
            assert bits(state.exp_avg_sqs[k]) == bits(entry["exp_avg_sq"])
        if "max_exp_avg_sq" in entry:
            assert bits(state.largest[k]) == bits(entry["max_exp_avg_sq"])


def test_the_tests_run_in_the_simulator_or_on_a_gpu():
    assert seam.SIMULATED != ON_GPU


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_one_array_has_the_cpus_bits(dtype, variant):
    rng = np.random.default_rng(1)
    gradients = [[draw(rng, 203, dtype)] for _ in range(STEPS)]
    expect_the_cpus_bits([draw(rng, 203, dtype)], gradients, VARIANTS[variant])


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_many_arrays_have_the_cpus_bits(dtype, variant):
    rng = np.random.default_rng(2)
    sizes = (40, 1, 0, 17, 103)
    gradients = [[draw(rng, size, dtype) for size in sizes] for _ in range(STEPS)]
    gradients[1][3] = None
    expect_the_cpus_bits([draw(rng, size, dtype) for size in sizes], gradients, VARIANTS[variant])


@pytest.mark.parametrize("skips", [(0, 0, 0), (1, 1, 1), (3, 3, 3), (1, 2, 3)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_bits_do_not_depend_on_addresses(dtype, skips):
    """Aligned, all with the same misalignment, and each with a different one."""
    rng = np.random.default_rng(3)
    sizes = (*range(1, 20), 67)
    gradients = [[draw(rng, size, dtype, skips[0]) for size in sizes]]
    expect_the_cpus_bits([draw(rng, size, dtype, skips[0]) for size in sizes], gradients, {"amsgrad": True}, skips)


def test_arrays_longer_than_a_thread_block_have_the_cpus_bits():
    rng = np.random.default_rng(4)
    sizes = (17_001, 16_384)
    gradients = [[draw(rng, size, "float32") for size in sizes]]
    expect_the_cpus_bits([draw(rng, size, "float32") for size in sizes], gradients, VARIANTS["adamw"])


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # Python's arithmetic warns of what a GPU just computes
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_special_values_have_the_cpus_bits(dtype):
    """Zeros of both signs, subnormal numbers, infinities; moments below their floors."""
    tiny = float(np.finfo(dtype).smallest_subnormal)
    values = np.array([0.0, -0.0, tiny, -tiny, np.inf, -np.inf, 1e-30, -1e30, 1.0], dtype)
    gradients = [[np.repeat(values, values.size)], [np.zeros(values.size**2, dtype)]]
    expect_the_cpus_bits([np.tile(values, values.size)], gradients, {"weight_decay": 0.1})


def test_changed_hyperparameters_apply_from_the_next_step():
    rng = np.random.default_rng(5)
    param, grad = draw(rng, 20, "float32"), draw(rng, 20, "float32")
    copy, state = param.copy(), state_of([param], {})
    table = train([param], state, [[grad]], {"lr": 0.1})
    table.set_hyperparameters(0, Hyperparameters(lr=0.01, betas=(0.5, 0.9)))
    table.step(on_gpu(grad))
    cpu = na.Adam([copy], lr=0.1)
    cpu.step([grad])
    cpu.param_groups[0].update(lr=0.01, betas=(0.5, 0.9))
    cpu.step([grad])
    assert bits(param) == bits(copy)
