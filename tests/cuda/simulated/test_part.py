"""The parts of an optimizer on GPUs: by device and compute dtype, and after a move of parameters."""

import numpy as np
import pytest
from lending import Interface

import numba_adam as na
from numba_adam import Hyperparameters
from numba_adam.cuda import borrow_cuda
from numba_adam.errors import UnsupportedArrayError
from numba_adam.optim.backends import check_same_device, parts_of
from numba_adam.settings.members import Member
from numba_adam.settings.options import Options
from numba_adam.settings.param_groups import ParamGroup


def members_of(*lent):
    group = ParamGroup(list(lent), None, Hyperparameters(lr=0.1), None)
    return [
        Member(k, f"[{k}]", array if isinstance(array, np.ndarray) else borrow_cuda(array, name="w"), group, array)
        for k, array in enumerate(lent)
    ]


def test_parameters_are_divided_by_gpu_and_precision():
    places = [(0, "f4"), (1, "f4"), (0, "u2"), (0, "f8"), (1, "f2"), (None, "f4")]
    arrays = [np.zeros(3, dtype) if device is None else (np.zeros(3, dtype), device) for device, dtype in places]
    lent = [each if isinstance(each, np.ndarray) else Interface(each[0], device=each[1]) for each in arrays]
    assert [part.roster.places for part in parts_of(members_of(*lent), Options())] == [[5], [0, 2], [1, 4], [3]]
    every = parts_of(members_of(*lent[:2], lent[5]), Options(state_dtype="float64"))
    assert [part.roster.places for part in every] == [[2], [0], [1]]


@pytest.mark.parametrize("value_changes", [False, True])
def test_a_parameter_with_replaced_storage_is_followed(value_changes):
    """As with `tensor.data = ...`; a master weight is kept if it still rounds to its parameter."""
    numbers, grad = np.full(4, 0x3F80, "u2"), np.full(4, 1e-3, "f4")
    twins = []
    for moves in (False, True):
        lent = Interface(numbers.copy())
        optimizer = na.Adam([lent], lr=0.1, master_weights=True, ema_decay=0.5)
        optimizer.step([Interface(grad)])
        if value_changes:
            lent.array[0] = 0x4000
        if moves or value_changes:
            before, lent.array = lent.array, lent.array.copy()
            before[...] = 0
        optimizer.step([Interface(grad)])
        twins.append((lent.array, optimizer.state[0]))
    (one, one_state), (other, other_state) = twins
    assert one.tolist() == other.tolist()
    assert one_state["step"] == other_state["step"] == 2
    assert all(np.array_equal(one_state[key], other_state[key]) for key in one_state)
    np.testing.assert_allclose(one_state["master_param"][1:], 0.8, rtol=1e-3)
    np.testing.assert_allclose(one_state["master_param"][0], 1.9 if value_changes else 0.8, rtol=1e-3)


def test_a_parameter_that_moved_to_another_device_is_refused():
    here, there, elsewhere = np.ones(3), Interface(np.ones(3)), Interface(np.ones(3), device=1)
    there, elsewhere = (borrow_cuda(lent, name="w") for lent in (there, elsewhere))
    check_same_device(there, "w", borrow_cuda(Interface(np.ones(3)), name="w"))
    for new, old, message in (
        (there, here, "w is on GPU 0, and was in this host's memory when"),
        (here, there, "w is in this host's memory, and was on GPU 0 when"),
        (elsewhere, there, "w is on GPU 1, and was on GPU 0 when .*: make another optimizer"),
    ):
        with pytest.raises(UnsupportedArrayError, match=message):
            check_same_device(new, "w", old)
