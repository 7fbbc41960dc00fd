"""Median and quartiles, by hand."""

import pytest

from benchmarks.case import Bar, Quantity
from benchmarks.statistics import Summary, percentile, summarise


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([7.0], Summary(7.0, 7.0, 7.0)),
        ([3.0, 1.0, 2.0, 5.0, 4.0], Summary(median=3.0, lower=2.0, upper=4.0)),
        ([1.0, 2.0, 3.0, 4.0], Summary(median=2.5, lower=1.75, upper=3.25)),
        ([1.0, 1.0, 1.0, 1.0, 1000.0], Summary(1.0, 1.0, 1.0)),  # one outlier moves nothing
    ],
)
def test_the_summary_has_median_and_quartiles(values: list[float], expected: Summary) -> None:
    assert summarise(values) == expected


@pytest.mark.parametrize(
    ("share", "expected"), [(0.0, 1.0), (0.5, 50.0), (0.501, 51.0), (0.99, 99.0), (0.991, 100.0), (1.0, 100.0)]
)
def test_a_percentile_is_one_of_the_values(share: float, expected: float) -> None:
    assert percentile([float(value) for value in range(100, 0, -1)], share) == expected


def test_a_median_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="no values"):
        summarise([])


@pytest.mark.parametrize(
    ("quantity", "expected"),
    [(Quantity.RATIO, 0.5), (Quantity.FRACTION, 2.0), (Quantity.DIFFERENCE, -3.0), (Quantity.VALUE, 3.0)],
)
def test_quantities_of_a_pair_match_a_calculation_by_hand(quantity: Quantity, expected: float) -> None:
    assert quantity.of(3.0, 6.0) == expected


@pytest.mark.parametrize(
    ("bar", "median", "met"),
    [
        (Bar(0.35), 0.35, True),
        (Bar(0.35), 0.3501, False),
        (Bar(0.9, at_least=True), 0.9, True),
        (Bar(0.9, at_least=True), 0.8999, False),
    ],
)
def test_a_bar_is_met_up_to_its_limit(bar: Bar, median: float, met: bool) -> None:
    assert bar.met(median) is met
