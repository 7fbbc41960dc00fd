"""Schedules: exact values, the same bits everywhere, and every form they travel in."""

import math
from decimal import Decimal, getcontext
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from numba_adam.errors import HyperparameterError, InvalidRequestError
from numba_adam.ps.cosine import half_wave
from numba_adam.ps.schedule_forms import schedule_from_proto, schedule_to_proto
from numba_adam.ps.schedule_records import schedule_of, schedule_record
from numba_adam.ps.schedules import Chain, Constant, Cosine, InverseSquareRoot, Linear, Piecewise

PI = Decimal("3.14159265358979323846264338327950288419716939937510582097494459230781640628620899862803482534211706798")
EVERY_KIND = Chain(
    (
        Linear(0.0, 1e-3, 500),
        Constant(1e-3),
        Cosine(1e-3, 1e-5, 9_500),
        InverseSquareRoot(1e-5, 100),
        Piecewise((1e-5, 1e-6), (7,)),
        Chain((Constant(1.0), Constant(0.5)), (3,)),
    ),
    (500, 600, 10_100, 11_000, 12_000),
)


def exact_half_wave(step, steps):
    """(1 + cos(pi * step / steps)) / 2 with 90 digits, from the power series."""
    getcontext().prec = 90
    x = PI * step / steps
    term = total = Decimal(1)
    for k in range(1, 200):
        term *= -x * x / ((2 * k - 1) * (2 * k))
        total += term
    return (1 + total) / 2


@settings(deadline=None, max_examples=300)
@given(st.integers(1, 2**53).flatmap(lambda steps: st.tuples(st.integers(0, steps - 1), st.just(steps))))
def test_half_a_wave_is_the_nearest_float64(case):
    step, steps = case
    exact, found = Fraction(exact_half_wave(step, steps)), half_wave(step, steps)
    error = abs(Fraction(found) - exact)
    assert error <= Fraction(math.ulp(found)) / 2 + Fraction(1, 10**85)
    for neighbour in (math.nextafter(found, 0), math.nextafter(found, 2)):
        assert error <= abs(Fraction(neighbour) - exact) + Fraction(1, 10**85)


def test_half_a_wave_begins_at_1_and_ends_at_0():
    assert [half_wave(step, 4) for step in (0, 2, 4, 5)] == [1.0, 0.5, 0.0, 0.0]
    assert half_wave(1, 3) == 0.75


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        (Constant(0.5), {0: 0.5, 10**9: 0.5}),
        (Linear(0.0, 1.0, 4), {0: 0.0, 1: 0.25, 4: 1.0, 100: 1.0}),
        (Linear(1.0, 0.5, 2), {0: 1.0, 1: 0.75, 2: 0.5, 3: 0.5}),
        (Cosine(1.0, 0.0, 2), {0: 1.0, 1: 0.5, 2: 0.0, 3: 0.0}),
        (InverseSquareRoot(1.0, 1), {0: 1.0, 3: 0.5, 15: 0.25}),
        (Piecewise((1.0, 0.5, 0.25), (2, 5)), {0: 1.0, 1: 1.0, 2: 0.5, 4: 0.5, 5: 0.25, 99: 0.25}),
        (Chain((Linear(0.0, 1.0, 2), Linear(1.0, 0.0, 2)), (2,)), {0: 0.0, 1: 0.5, 2: 1.0, 3: 0.5, 4: 0.0}),
    ],
    ids=repr,
)
def test_the_rate_of_each_version(schedule, rates):
    assert {version: schedule.lr_at(version) for version in rates} == rates


@pytest.mark.parametrize("schedule", [*EVERY_KIND.schedules, EVERY_KIND], ids=repr)
def test_a_schedule_is_the_same_after_its_message_and_its_record(schedule):
    assert schedule_from_proto(schedule_to_proto(schedule)) == schedule
    assert schedule_of(schedule_record(schedule)) == schedule
    assert all(schedule.lr_at(version) <= schedule.largest() for version in range(0, 13_000, 7))


@pytest.mark.parametrize(
    "make",
    [
        lambda: Constant(-1.0),
        lambda: Constant(math.nan),
        lambda: Constant(math.inf),
        lambda: Linear(0.0, 1.0, 0),
        lambda: Linear(0.0, 1.0, 1.5),
        lambda: Linear(0.0, 1.0, 2**53 + 1),
        lambda: Cosine(0.0, -1.0, 5),
        lambda: InverseSquareRoot(1.0, 0),
        lambda: Piecewise((), ()),
        lambda: Piecewise((1.0, 2.0), ()),
        lambda: Piecewise((1.0, 2.0, 3.0), (5, 5)),
        lambda: Piecewise((1.0, 2.0), (0,)),
        lambda: Piecewise([1.0] * 300, range(1, 300)),
        lambda: Chain((), ()),
        lambda: Chain((0.1,), ()),
        lambda: Chain([Piecewise([1.0] * 200, list(range(1, 200)))] * 2, (5,)),
    ],
)
def test_a_schedule_that_means_nothing_is_refused(make):
    with pytest.raises(HyperparameterError):
        make()


def test_chains_may_be_in_each_other_up_to_eight_levels():
    schedule = Constant(1.0)
    for _ in range(7):
        schedule = Chain((schedule,), ())
    assert schedule.lr_at(5) == 1.0
    with pytest.raises(HyperparameterError, match="within each other"):
        Chain((schedule,), ())
    message = schedule_to_proto(schedule)
    for _ in range(3):
        message = type(message)(chained={"schedules": [message]})
    with pytest.raises((HyperparameterError, InvalidRequestError)):
        schedule_from_proto(message)
