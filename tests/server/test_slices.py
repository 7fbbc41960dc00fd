"""The update in slices: the same bits as one update, for any boundaries of slices and tensors."""

import itertools
import threading
from itertools import pairwise

import numpy as np
import pytest

import numba_adam as na
from numba_adam.server.model.arena import Arena
from numba_adam.server.model.spec import Spec
from numba_adam.server.model.tensors import Tensor
from numba_adam.server.runtime import slices
from numba_adam.server.runtime.launcher import Launcher
from numba_adam.server.runtime.slices import SlicedUpdate
from numba_adam.settings.hyperparameters import Hyperparameters

SIZES = (700, 0, 1, 2048, 5000, 3)  # the fifth lies in several slices, and one slice holds several tensors


@pytest.fixture
def launcher():
    running = Launcher(2)
    yield running
    running.stop()


@pytest.fixture
def small_slices(monkeypatch):
    monkeypatch.setattr(slices, "MOST_ELEMENTS", 1024)


def make(sizes=SIZES, *, dtype="float32", launcher=None, amsgrad=False):
    """Return a sliced update, its arena with nonzero parameters, and the parameters of each tensor."""
    tensors = tuple(Tensor(str(number), (size,)) for number, size in enumerate(sizes))
    spec = Spec("model", dtype, tensors, Hyperparameters(lr=0.01, weight_decay=0.1, amsgrad=amsgrad))
    arena = Arena(sizes, dtype, amsgrad=amsgrad)
    arena.param[:] = np.random.default_rng(1).standard_normal(arena.element_count)
    return SlicedUpdate(spec, arena, launcher), arena, [view.copy() for view in arena.views(arena.param)]


def expected(params, pushes, *, amsgrad=False):
    """Return the library's update of each tensor.

    Args:
        params: the tensors.
        pushes: for each push, the tensors' gradients or None.
        amsgrad: whether it is AMSGrad.
    """
    moments = [[np.zeros_like(param) for _ in range(3)] for param in params]
    steps = [0] * len(params)
    for gradients in pushes:
        for number, gradient in enumerate(gradients):
            if gradient is not None and gradient.size:
                steps[number] += 1
                exp_avg, exp_avg_sq, largest = moments[number]
                na.adam_update(
                    params[number],
                    gradient,
                    exp_avg,
                    exp_avg_sq,
                    steps[number],
                    lr=0.01,
                    weight_decay=0.1,
                    max_exp_avg_sq=largest if amsgrad else None,
                )
    return [np.concatenate(column) for column in ([*params], *([m[k] for m in moments] for k in range(2)))]


def gradients_of(present, dtype, seed):
    rng = np.random.default_rng(seed)
    return [
        rng.standard_normal(size).astype(dtype) if there else None for size, there in zip(SIZES, present, strict=True)
    ]


ALL, SOME, NONE = (True,) * 6, (False, True, True, False, True, False), (False,) * 6


@pytest.mark.usefixtures("small_slices")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize("presence", [(ALL, ALL), (SOME, SOME), (ALL, SOME, ALL, NONE, ALL)])
def test_slices_have_the_same_bits_as_updates_of_each_tensor(dtype, amsgrad, presence):
    update, arena, params = make(dtype=dtype, amsgrad=amsgrad)
    steps, pushes = [0] * len(SIZES), []
    for seed, present in enumerate(presence):
        pushes.append(gradients_of(present, dtype, seed))
        flat = [gradient for gradient in pushes[-1] if gradient is not None]
        update.run(present, np.concatenate(flat) if flat else np.empty(0, dtype), steps)
        steps = [step + there for step, there in zip(steps, present, strict=True)]
    for found, wanted in zip(
        (arena.param, arena.exp_avg, arena.exp_avg_sq), expected(params, pushes, amsgrad=amsgrad), strict=True
    ):
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("elements", [1, 511, 512, 513, 1024, 1025, 4097, 10_000, 1_048_577])
@pytest.mark.usefixtures("small_slices")
def test_slices_cover_every_element_once_and_have_equal_sizes(elements):
    cuts = list(slices._cuts(elements))
    assert cuts[0][0] == 0
    assert cuts[-1][1] == elements
    assert all(before[1] == after[0] for before, after in pairwise(cuts))
    assert all(end - begin <= slices.MOST_ELEMENTS for begin, end in cuts)
    assert all(begin % 512 == 0 for begin, _ in cuts)


def test_a_model_without_elements_can_be_updated():
    update, arena, _ = make(sizes=(0, 0))
    update.run((True, True), np.empty(0, np.float32), [0, 0])
    update.run((True, False), np.empty(0, np.float32), [1, 1])
    assert arena.param.size == 0


@pytest.mark.parametrize("elements", [40_000, slices.MOST_ELEMENTS + 1])
def test_the_launcher_does_not_change_the_bits(launcher, elements):
    """One slice and several, on two threads and on one, all equal to the library's update."""
    gradient = np.random.default_rng(2).standard_normal(elements, dtype=np.float32)
    launched, there, (param,) = make((elements,), launcher=launcher)
    alone, here, _ = make((elements,))
    for step in range(2):
        launched.run((True,), gradient, [step])
        alone.run((True,), gradient, [step])
    for name, array in there.state_arrays().items():
        np.testing.assert_array_equal(array, here.state_arrays()[name], err_msg=name)
    exp_avg, exp_avg_sq = np.zeros_like(param), np.zeros_like(param)
    for step in (1, 2):
        na.adam_update(param, gradient, exp_avg, exp_avg_sq, step, lr=0.01, weight_decay=0.1)
    np.testing.assert_array_equal(there.param, param)


def test_slices_with_fewer_threads_have_the_same_bits(monkeypatch):
    """Small calls begin and end between slices."""
    monkeypatch.setattr(slices, "MOST_ELEMENTS", 65_536)
    elements, seconds = 300_000, itertools.count()
    changing = Launcher(2, lambda: next(seconds) * 0.02)
    found = []

    def noting():
        found.append(threading.get_ident())
        if len(found) % 4 == 1:
            changing.note_small_call()

    update, arena, (param,) = make((elements,), launcher=changing)
    for each in update._slices:
        whole = each.update_whole
        each.update_whole = lambda *given, whole=whole: (noting(), whole(*given))
    gradient = np.random.default_rng(2).standard_normal(elements, dtype=np.float32)
    for step in range(3):
        update.run((True,), gradient, [step])
    changing.stop()
    assert len(set(found)) == 2
    exp_avg, exp_avg_sq = np.zeros_like(param), np.zeros_like(param)
    for step in (1, 2, 3):
        na.adam_update(param, gradient, exp_avg, exp_avg_sq, step, lr=0.01, weight_decay=0.1)
    for made, wanted in zip((arena.param, arena.exp_avg, arena.exp_avg_sq), (param, exp_avg, exp_avg_sq), strict=True):
        np.testing.assert_array_equal(made, wanted)
