"""Workloads: ResNet-50's real shapes, normal numbers, and a copy for each contestant."""

import numpy as np
import pytest

from benchmarks.contestants.on_rows import SETS, TableWorkload
from benchmarks.themes.denormals import Vanishing
from benchmarks.workload import (
    Repeated,
    UnusualError,
    bfloat16_bits,
    check_usual,
    equal_arrays,
    one_array,
    resnet50,
    widened,
)


def test_resnet50_has_its_161_arrays_and_25557032_parameters() -> None:
    workload = resnet50()
    assert len(workload.shapes) == 161
    assert workload.elements == 25_557_032
    assert workload.shapes[0] == (64, 3, 7, 7)
    assert workload.shapes[-2:] == ((1000, 2048), (1000,))


def test_arrays_are_float32_with_the_given_shapes() -> None:
    workload = equal_arrays(count=3, elements=5)
    for arrays in (workload.params(), workload.grads()):
        assert [(array.shape, array.dtype) for array in arrays] == [((5,), np.float32)] * 3


def test_contestants_get_equal_values_in_separate_memory() -> None:
    workload = one_array(1000)
    (one,), (other,) = workload.params(), workload.params()
    np.testing.assert_array_equal(one, other)
    assert not np.shares_memory(one, other)


def test_the_values_are_normal_numbers() -> None:
    workload = one_array(100_000)
    check_usual([*workload.params(), *workload.grads()], "workload")
    assert 0.009 < np.std(workload.grads()[0]) < 0.011


@pytest.mark.parametrize("strange", [0.0, 1e-40, np.nan, np.inf, -np.inf])
def test_zeros_subnormal_numbers_and_infinities_are_detected(strange: float) -> None:
    array = np.ones(1000, dtype=np.float32)
    array[::10] = strange
    with pytest.raises(UnusualError, match="of 1000 numbers"):
        check_usual([array], "grads")


def test_large_workloads_repeat_a_million_normal_numbers() -> None:
    (array,) = Repeated(((1000, 2500),)).params()
    numbers = array.reshape(-1)
    check_usual([numbers], "workload")
    np.testing.assert_array_equal(numbers[:1_000_000], numbers[1_000_000:2_000_000])
    np.testing.assert_array_equal(numbers[:500_000], numbers[2_000_000:])


def test_bfloat16_keeps_eight_bits_of_precision() -> None:
    (array,) = one_array(10_000).params()
    bits = bfloat16_bits(array)
    assert bits.dtype == np.uint16
    np.testing.assert_allclose(widened(bits), array, rtol=2**-7)
    np.testing.assert_array_equal(bfloat16_bits(widened(bits)), bits)
    assert np.shares_memory(widened(array), array)


def test_sets_of_rows_are_disjoint() -> None:
    workload = TableWorkload(rows=2000, width=4, touched=50)
    sets = workload.sets()
    assert [rows.shape for rows in sets] == [(50,)] * SETS
    assert len(np.unique(np.concatenate(sets))) == SETS * 50
    assert [grad.shape for grad in workload.grads()] == [(50, 4)] * SETS


def test_vanishing_gradients_make_subnormal_second_moments() -> None:
    (grad,) = Vanishing(((10_000,),)).grads()
    second = np.float32(0.001) * grad * grad
    share = np.mean((second > 0) & (second < np.finfo(np.float32).tiny))
    assert 0.1 < share < 0.5
    assert np.max(np.abs(grad)) < 1e-10
