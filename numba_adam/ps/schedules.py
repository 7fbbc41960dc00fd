"""Learning rates by version, as data: the server evaluates them, so all workers and every restart see the same rates.

    lr = Chain((Linear(0.0, 1e-3, steps=500), Cosine(1e-3, 1e-5, steps=9_500)), boundaries=(500,))
    lr.lr_at(250)                                                                      # 0.0005

The push that makes version v + 1 has the rate of version v. So `lr_at(0)` is the rate of the first push, as in PyTorch
and optax. All arithmetic is that of float64 with + - * / and roots, and a cosine of our own, so every machine computes
the same bits. Imports the error tree, `numba_adam.settings` and the cosine.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from numba_adam.errors import HyperparameterError
from numba_adam.ps.cosine import half_wave
from numba_adam.settings.scalars import real, whole

MOST_PARTS = 256
"""Largest number of schedules, rates and boundaries in one schedule."""

MOST_LEVELS = 8
"""Largest number of chains within each other, plus 1."""

_LAST_VERSION = 2**53


@dataclass(frozen=True, slots=True)
class Constant:
    """The same rate for every version."""

    lr: float
    """The learning rate, at least 0."""

    def __post_init__(self) -> None:
        _check(self, rates=("lr",))

    def lr_at(self, version: int) -> float:  # noqa: ARG002
        """Return the learning rate of the push that makes version `version` + 1."""
        return self.lr

    def largest(self) -> float:
        """Return a rate that no version exceeds."""
        return self.lr


@dataclass(frozen=True, slots=True)
class Linear:
    """A straight line from `begin` to `end`, for warm-up or decay; then `end`."""

    begin: float
    """The rate of version 0, at least 0."""

    end: float
    """The rate from version `steps` on, at least 0."""

    steps: int
    """Versions from begin to end, at least 1."""

    def __post_init__(self) -> None:
        _check(self, rates=("begin", "end"), counts=("steps",))

    def lr_at(self, version: int) -> float:
        """Return the learning rate of the push that makes version `version` + 1."""
        if version >= self.steps:
            return self.end
        return self.begin + (self.end - self.begin) * (version / self.steps)

    def largest(self) -> float:
        """Return a rate that no version exceeds."""
        return max(self.begin, self.end)


@dataclass(frozen=True, slots=True)
class Cosine:
    """Half a wave of the cosine from `begin` to `end`; then `end`."""

    begin: float
    """The rate of version 0, at least 0."""

    end: float
    """The rate from version `steps` on, at least 0."""

    steps: int
    """Versions from begin to end, at least 1."""

    def __post_init__(self) -> None:
        _check(self, rates=("begin", "end"), counts=("steps",))

    def lr_at(self, version: int) -> float:
        """Return the learning rate of the push that makes version `version` + 1."""
        return self.end + (self.begin - self.end) * half_wave(version, self.steps)

    def largest(self) -> float:
        """Return a rate that no version exceeds."""
        return max(self.begin, self.end)


@dataclass(frozen=True, slots=True)
class InverseSquareRoot:
    """A rate that falls with the inverse square root: `lr * sqrt(timescale / (timescale + version))`.

    After a linear warm-up of `timescale` versions, in a `Chain`, this is the schedule of the first Transformer.
    """

    lr: float
    """The rate of version 0, at least 0."""

    timescale: int
    """The version at which the rate has fallen to 0.71 of it, at least 1."""

    def __post_init__(self) -> None:
        _check(self, rates=("lr",), counts=("timescale",))

    def lr_at(self, version: int) -> float:
        """Return the learning rate of the push that makes version `version` + 1."""
        return self.lr * math.sqrt(self.timescale / (self.timescale + version))

    def largest(self) -> float:
        """Return a rate that no version exceeds."""
        return self.lr


@dataclass(frozen=True, slots=True)
class Piecewise:
    """Rates in steps: `rates[0]` before version `boundaries[0]`, `rates[1]` from it on, and so on."""

    rates: tuple[float, ...]
    """The rates, at least 0: one more than boundaries."""

    boundaries: tuple[int, ...] = ()
    """The versions at which the next rate begins, ascending."""

    def __post_init__(self) -> None:
        """Check the rates and the boundaries."""
        rates = _sequence("rates", self.rates)
        checked = tuple(_rate(f"rates[{index}]", rate) for index, rate in enumerate(rates))
        object.__setattr__(self, "rates", checked)
        object.__setattr__(self, "boundaries", _boundaries(self.boundaries, "rates", len(checked)))

    def lr_at(self, version: int) -> float:
        """Return the learning rate of the push that makes version `version` + 1."""
        return self.rates[bisect_right(self.boundaries, version)]

    def largest(self) -> float:
        """Return a rate that no version exceeds."""
        return max(self.rates)


@dataclass(frozen=True, slots=True)
class Chain:
    """Schedules one after the other. Each counts versions from its own beginning."""

    schedules: tuple[Schedule, ...]
    """The schedules: one more than boundaries."""

    boundaries: tuple[int, ...] = ()
    """The versions at which the next schedule begins, ascending."""

    def __post_init__(self) -> None:
        """Check the schedules and the boundaries."""
        schedules = _sequence("schedules", self.schedules)
        for index, schedule in enumerate(schedules):
            if not isinstance(schedule, KINDS):
                raise HyperparameterError(f"schedules[{index}]={schedule!r}: it must be {_CHOICES}")
        object.__setattr__(self, "schedules", tuple(schedules))
        object.__setattr__(self, "boundaries", _boundaries(self.boundaries, "schedules", len(schedules)))
        if parts(self) > MOST_PARTS:
            raise HyperparameterError(f"schedules: {parts(self)} parts in all, and at most {MOST_PARTS} are allowed")
        if levels(self) > MOST_LEVELS:
            raise HyperparameterError(f"schedules: at most {MOST_LEVELS} may be within each other; join the chains")

    def lr_at(self, version: int) -> float:
        """Return the learning rate of the push that makes version `version` + 1."""
        index = bisect_right(self.boundaries, version)
        begin = self.boundaries[index - 1] if index else 0
        return self.schedules[index].lr_at(version - begin)

    def largest(self) -> float:
        """Return a rate that no version exceeds."""
        return max(schedule.largest() for schedule in self.schedules)


Schedule = Constant | Linear | Cosine | InverseSquareRoot | Piecewise | Chain
KINDS = (Constant, Linear, Cosine, InverseSquareRoot, Piecewise, Chain)
"""The classes of schedules."""

_CHOICES = "a schedule: Constant, Linear, Cosine, InverseSquareRoot, Piecewise or Chain"


def parts(schedule: Schedule) -> int:
    """Return the number of schedules and rates in a schedule."""
    if isinstance(schedule, Chain):
        return 1 + sum(map(parts, schedule.schedules))
    return len(schedule.rates) if isinstance(schedule, Piecewise) else 1


def levels(schedule: Schedule) -> int:
    """Return the number of schedules within each other, 1 for one without others in it."""
    return 1 + max(map(levels, schedule.schedules)) if isinstance(schedule, Chain) else 1


def _check(schedule: object, rates: Sequence[str] = (), counts: Sequence[str] = ()) -> None:
    """Check the fields of a schedule, and turn other types of numbers into Python's."""
    for name in rates:
        object.__setattr__(schedule, name, _rate(name, getattr(schedule, name)))
    for name in counts:
        object.__setattr__(schedule, name, _count(name, getattr(schedule, name)))


def _rate(name: str, value: object) -> float:
    rate = real(name, value)
    if rate < 0:
        raise HyperparameterError(f"{name}={value!r}: a learning rate must be at least 0")
    return rate


def _count(name: str, value: object) -> int:
    count = whole(name, value)
    if not 1 <= count <= _LAST_VERSION:
        raise HyperparameterError(f"{name}={count}: it must be a number of versions, from 1 to 2**53")
    return count


def _sequence(name: str, value: object) -> Sequence[object]:
    """Return a list or tuple with at least one item, and not too many."""
    if not isinstance(value, (list, tuple)) or not value:
        raise HyperparameterError(f"{name}={value!r}: it must be a tuple with at least one item")
    if len(value) > MOST_PARTS:
        raise HyperparameterError(f"{name}: {len(value)} are given, and at most {MOST_PARTS} are allowed")
    return value


def _boundaries(value: object, of: str, count: int) -> tuple[int, ...]:
    """Return checked boundaries between `count` items."""
    if not isinstance(value, (list, tuple)):
        raise HyperparameterError(f"boundaries={value!r}: it must be a tuple of versions")
    if len(value) != count - 1:
        raise HyperparameterError(f"boundaries: {count} {of} need {count - 1}, and {len(value)} are given")
    checked = tuple(_count(f"boundaries[{index}]", each) for index, each in enumerate(value))
    if any(first >= second for first, second in pairwise(checked)):
        raise HyperparameterError(f"boundaries={value!r}: they must ascend")
    return checked
