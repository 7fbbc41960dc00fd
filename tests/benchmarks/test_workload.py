"""What is timed: ResNet-50's real shapes, ordinary numbers, and copies for everybody."""

import numpy as np
import pytest

from benchmarks.workload import UnusualError, check_usual, equal_arrays, one_array, resnet50


def test_resnet50_has_its_161_arrays_and_25557032_parameters() -> None:
    workload = resnet50()
    assert len(workload.shapes) == 161
    assert workload.elements == 25_557_032
    assert workload.shapes[0] == (64, 3, 7, 7)
    assert workload.shapes[-2:] == ((1000, 2048), (1000,))


def test_arrays_are_float32_of_the_shapes_wanted() -> None:
    workload = equal_arrays(count=3, elements=5)
    for arrays in (workload.params(), workload.grads()):
        assert [(array.shape, array.dtype) for array in arrays] == [((5,), np.float32)] * 3


def test_everybody_gets_equal_numbers_in_memory_of_their_own() -> None:
    workload = one_array(1000)
    (one,), (other,) = workload.params(), workload.params()
    np.testing.assert_array_equal(one, other)
    assert not np.shares_memory(one, other)


def test_the_numbers_are_ordinary() -> None:
    workload = one_array(100_000)
    check_usual([*workload.params(), *workload.grads()], "workload")
    assert 0.009 < np.std(workload.grads()[0]) < 0.011


@pytest.mark.parametrize("strange", [0.0, 1e-40, np.nan, np.inf, -np.inf])
def test_zeros_subnormal_numbers_and_infinities_are_noticed(strange: float) -> None:
    array = np.ones(1000, dtype=np.float32)
    array[::10] = strange
    with pytest.raises(UnusualError, match="of 1000 numbers"):
        check_usual([array], "grads")
