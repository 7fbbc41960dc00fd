"""The same gradients in the same order give the same bits on any CPU, with any number of threads and arrays."""

from __future__ import annotations

import platform
from pathlib import Path

import numba
import numpy as np
import on_cpu
import pytest
import vector_features
from hypothesis import given, settings
from hypothesis import strategies as st
from step_constants import constants_of
from updates import HYPERPARAMETERS, SIZES, STEPS, cut, data, digest_of, digests, train

import numba_adam as na
from numba_adam.cpu.kernels.ranges import TILE
from numba_adam.cpu.kernels.threads import ELEMENTS_PER_TASK
from numba_adam.numerics import element
from numba_adam.numerics.constants import Constants

SCRIPT = Path(__file__).with_name("updates.py")
X86 = platform.machine().lower() in ("x86_64", "amd64")

# Where something changes: nothing at all, one element, the widths of SSE, AVX and AVX-512 code (also unrolled), the
# cut between threads, and the sizes from which two, three and four threads are taken; each with its neighbours.
CENTRES = (0, 1, 4, 8, 16, 32, TILE, 2 * TILE, 256, *(n * ELEMENTS_PER_TASK for n in (1, 2, 3, 4)))
BORDERS = sorted({max(0, centre + offset) for centre in CENTRES for offset in (-1, 0, 1)})
MANY = st.one_of(st.sampled_from(BORDERS), st.integers(0, 200), st.integers(0, 70_000))


@pytest.fixture(autouse=True)
def _threads_as_they_were():
    before = numba.get_num_threads()
    yield
    numba.set_num_threads(before)


@pytest.fixture(scope="module")
def expected():
    """Return the digests made on one thread of this process, by dtype."""
    before = numba.get_num_threads()
    numba.set_num_threads(1)
    yield {dtype: digests(SIZES, dtype) for dtype in ("float32", "float64")}
    numba.set_num_threads(before)


def test_one_two_and_four_threads_give_the_same_bits(run_python, dtype, expected):
    seen = {n: run_python(SCRIPT, dtype.name, *map(str, SIZES), str(n), NUMBA_NUM_THREADS="4") for n in (1, 2, 4)}
    assert seen == dict.fromkeys((1, 2, 4), expected[dtype.name])


@pytest.mark.skipif(not X86, reason="SSE2 and AVX2 are instruction sets of x86-64")
@pytest.mark.parametrize("cpu", ["x86-64", "haswell"])  # SSE2 alone; AVX2 and FMA
def test_code_for_older_cpus_gives_the_same_bits(run_python, dtype, expected, cpu):
    sizes = map(str, SIZES)
    assert (
        run_python(SCRIPT, dtype.name, *sizes, "0", NUMBA_CPU_NAME=cpu, NUMBA_CPU_FEATURES="") == expected[dtype.name]
    )


@pytest.mark.parametrize("bits", vector_features.WIDTHS)
def test_every_vector_width(run_python, dtype, expected, bits):
    """The kernels choose the width themselves; here LLVM uses one width in all of them."""
    environment = {"NUMBA_CPU_FEATURES": vector_features.preferring(bits)}
    assert run_python(SCRIPT, dtype.name, *map(str, SIZES), "0", **environment) == expected[dtype.name]


@pytest.mark.skipif(len(vector_features.WIDTHS) < 2, reason="only CPUs with AVX-512 estimate roots")
@pytest.mark.parametrize("cpu", [on_cpu.WITH_ESTIMATED_ROOTS, on_cpu.WITH_ROOTS])
def test_estimated_roots_give_the_same_bits(run_python, dtype, expected, cpu):
    arguments = cpu, str(SCRIPT), dtype.name, *map(str, SIZES), "0"
    assert run_python(Path(on_cpu.__file__), *arguments) == expected[dtype.name]


def plain_update(param, exp_avg, exp_avg_sq, max_exp_avg_sq, grad, amsgrad, c):
    """The element functions in plain Python."""
    exp_avg, exp_avg_sq = element.moments(param, grad, exp_avg, exp_avg_sq, c)
    if amsgrad:
        max_exp_avg_sq = element.largest(max_exp_avg_sq, exp_avg_sq)
    return (
        element.adapt(param, exp_avg, max_exp_avg_sq if amsgrad else exp_avg_sq, c),
        exp_avg,
        exp_avg_sq,
        max_exp_avg_sq,
    )


@pytest.mark.parametrize("name", HYPERPARAMETERS)
def test_plain_python_gives_the_same_bits(dtype, name):
    hyperparameters = HYPERPARAMETERS[name]
    optimizer = train([300], dtype, dict(hyperparameters))
    param, grads = data(300, dtype)
    state = [(p, dtype.type(0), dtype.type(0), dtype.type(0)) for p in param]
    amsgrad = hyperparameters.get("amsgrad", False)
    for step, grad in enumerate(grads, 1):
        folded = constants_of(na.Hyperparameters(**hyperparameters), step, dtype.name, 0.7)
        c = Constants(*map(dtype.type, folded))
        state = [plain_update(*row, g, amsgrad, c) for row, g in zip(state, grad, strict=True)]
    assert all(type(number) is dtype.type for row in state for number in row)
    own = optimizer.state[0]
    columns = [optimizer.param_groups[0]["params"][0], own["exp_avg"], own["exp_avg_sq"]]
    columns += [own["max_exp_avg_sq"]] if amsgrad else []
    for column, numbers in zip(columns, zip(*state, strict=True), strict=False):
        assert column.tobytes() == np.array(numbers, dtype).tobytes()


def test_the_function_and_the_class_give_the_same_bits(dtype):
    (param, grads), total = data(40_000, dtype), 40_000
    optimizer = train([total], dtype, {"lr": 0.01})
    moments = np.zeros((2, total), dtype)
    for step, grad in enumerate(grads, 1):
        na.adam_update(param, grad, *moments, step, lr=0.01, grad_scale=0.7)
    state = optimizer.state[0]
    assert param.tobytes() == optimizer.param_groups[0]["params"][0].tobytes()
    assert moments.tobytes() == state["exp_avg"].tobytes() + state["exp_avg_sq"].tobytes()


@pytest.mark.parametrize("amsgrad", [False, True])
@settings(max_examples=40)
@given(sizes=st.lists(MANY, min_size=1, max_size=8), threads=st.integers(1, numba.config.NUMBA_NUM_THREADS))
def test_dividing_the_elements_into_arrays_does_not_change_the_bits(sizes, threads, amsgrad):
    numba.set_num_threads(1)
    whole = digest_of(train([sum(sizes)], "float32", {"amsgrad": amsgrad}))
    numba.set_num_threads(threads)
    assert digest_of(train(sizes, "float32", {"amsgrad": amsgrad})) == whole


@pytest.mark.parametrize("size", BORDERS)
def test_sizes_around_every_boundary_give_the_same_bits(size, dtype):
    """Compares with the same elements within a larger array, where boundaries are elsewhere."""
    whole = train([size + 1_000], dtype, {})
    param, grads = data(size + 1_000, dtype)
    optimizer = na.Adam([param[:size]])
    for grad in grads:
        optimizer.step([grad[:size]], grad_scale=0.7)
    assert param[:size].tobytes() == whole.param_groups[0]["params"][0][:size].tobytes()
    assert (param[size:] == data(size + 1_000, dtype)[0][size:]).all(), "written behind the end"


def test_a_thousand_arrays_of_all_sizes_give_the_same_bits():
    rng = np.random.default_rng(11)
    sizes = rng.integers(0, 90, 1_000).tolist()
    sizes[500], sizes[-1] = 50_000, 0
    assert digest_of(train(sizes, "float32", {})) == digest_of(train([sum(sizes)], "float32", {}))


@pytest.mark.parametrize("shift", [1, 2, 3, 5])
def test_unaligned_arrays_give_the_same_bits(shift):
    total = 40_000
    param, grads = data(total, "float32")
    room = [np.full(total + 8, 77.0, np.float32) for _ in range(4)]
    views = [array[shift : shift + total] for array in room]
    views[0][:], views[2][:], views[3][:] = param, 0, 0
    for step, grad in enumerate(grads, 1):
        views[1][:] = grad
        na.adam_update(*views, step, grad_scale=0.7)
    assert views[0].tobytes() == train([total], "float32", {}).param_groups[0]["params"][0].tobytes()
    for array in room:
        assert (array[:shift] == 77).all()
        assert (array[shift + total :] == 77).all()


def test_shapes_do_not_change_the_bits():
    total = 6 * 7_000
    param, grads = data(total, "float32")
    shaped = param.reshape(2, 3, 1, 7_000).copy()
    optimizer = na.Adam(shaped)
    for grad in grads:
        optimizer.step(grad.reshape(shaped.shape), grad_scale=0.7)
    assert len(grads) == STEPS
    assert shaped.tobytes() == train([total], "float32", {}).param_groups[0]["params"][0].tobytes()
    assert optimizer.state[0]["exp_avg"].shape == shaped.shape


def test_gradients_are_not_written_to():
    pieces = cut(data(40_000, "float32")[1][0], (*SIZES[1:4], 6_999))
    before = [piece.tobytes() for piece in pieces]
    na.Adam([np.zeros_like(piece) for piece in pieces]).step(pieces)
    assert [piece.tobytes() for piece in pieces] == before
