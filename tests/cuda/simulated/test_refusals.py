"""Unsuitable arguments of a table over GPU arrays are refused by name, and nothing is changed."""

import numpy as np
import pytest
from lending import Interface, on_gpu

from numba_adam import Hyperparameters
from numba_adam.cuda.table import CudaTable
from numba_adam.errors import DtypeError, OverlapError, ReadOnlyError, ShapeError, UnsupportedArrayError


def ones(**changes):
    columns = {name: [np.ones(12, "f4"), np.ones((3, 4), "f4")] for name in ("params", "exp_avgs", "exp_avg_sqs")}
    for name, array in changes.items():
        columns[name][1] = array
    return [on_gpu(*column) for column in columns.values()]


def table(columns):
    return CudaTable(*columns, hyperparameters=[Hyperparameters()], names=["['a']", "['b']"])


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"exp_avgs": np.ones(12, "f4")}, ShapeError, r"exp_avg\['b'\] has shape \(12,\).*params\['b'\], \(3, 4\)"),
        ({"exp_avg_sqs": np.ones((3, 4), "i4")}, DtypeError, r"exp_avg_sq\['b'\] .* expected float32.* got dtype <i4"),
        (
            {"params": np.ones((3, 4))},
            DtypeError,
            "params: expected one compute dtype.* got parameters of float32, float64",
        ),
    ],
)
def test_an_unsuitable_array_is_refused_by_name(changes, error, message):
    with pytest.raises(error, match=message):
        table(ones(**changes))


def test_a_read_only_parameter_is_refused():
    frozen = np.ones((3, 4), "f4")
    frozen.flags.writeable = False
    with pytest.raises(ReadOnlyError, match=r"params\['b'\].*read-only"):
        table(ones(params=frozen))


def test_arrays_that_share_memory_are_refused():
    both = np.ones(24, "f4")
    columns = ones(params=both[:12].reshape(3, 4), exp_avgs=both[6:18].reshape(3, 4))
    with pytest.raises(OverlapError, match=r"params\['b'\] and exp_avg\['b'\] share memory"):
        table(columns)


def test_arrays_of_two_gpus_are_refused():
    columns = ones()
    columns[1][1] = Interface(np.ones((3, 4), "f4"), device=1)
    with pytest.raises(UnsupportedArrayError, match=r"exp_avg\['b'\]: expected GPU 0, .* got GPU 1"):
        table(columns)


@pytest.mark.parametrize(
    ("grad", "error", "message"),
    [
        (Interface(np.ones(12, "f4")), ShapeError, r"grads\['b'\] has shape \(12,\).*params\['b'\]"),
        (Interface(np.ones((3, 4))), DtypeError, r"grads\['b'\] has dtype float64"),
        (Interface(np.ones((4, 3), "f4").T), ValueError, r"grads\['b'\].*strides"),
        (Interface(np.ones((3, 4), "f4"), device=1), UnsupportedArrayError, r"grads\['b'\] is on GPU 1"),
        (np.ones((3, 4), "f4"), UnsupportedArrayError, r"grads\['b'\].*not in the memory of a CUDA GPU"),
    ],
)
def test_an_unsuitable_gradient_changes_nothing(grad, error, message):
    columns = ones()
    made = table(columns)
    with pytest.raises(error, match=message):
        made.step([Interface(np.ones(12, "f4")), grad])
    assert all((lent.array == 1).all() for column in columns for lent in column)
    assert made.steps.tolist() == [0, 0]


def test_a_gradient_that_shares_memory_with_the_state_is_refused():
    columns = ones()
    made = table(columns)
    with pytest.raises(OverlapError, match=r"grads\['b'\] and exp_avg\['b'\] share memory"):
        made.step([Interface(np.ones(12, "f4")), columns[1][1]])
