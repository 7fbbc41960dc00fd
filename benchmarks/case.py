"""What a case is. Imports the standard library alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import Enum


class MissingError(Exception):
    """A contestant cannot run here; the message says why."""


class Quantity(Enum):
    """What is computed from one pair of measurements, ours and the peer's."""

    RATIO = "ratio"
    """Ours divided by the peer's: below 1, ours is faster."""

    FRACTION = "fraction"
    """The peer's divided by ours: how much of the peer's speed we reach."""

    DIFFERENCE = "difference"
    """Ours minus the peer's: what we add."""

    VALUE = "value"
    """Ours alone; a peer's is shown beside it."""

    def of(self, ours: float, peer: float | None) -> float:
        """Return the quantity of one pair."""
        if self is Quantity.VALUE:
            return ours
        assert peer is not None, "only a VALUE can do without a peer"
        if self is Quantity.DIFFERENCE:
            return ours - peer
        return ours / peer if self is Quantity.RATIO else peer / ours


class Unit(Enum):
    """What the measurements are counted in."""

    SECONDS = "s"
    BYTES = "bytes"
    COUNT = "count"
    BYTES_EACH = "bytes per parameter"


@dataclass(frozen=True)
class Bar:
    """What is asked of a case's median."""

    limit: float
    """In the case's unit for a difference or a value; a pure number for a ratio or a fraction."""

    at_least: bool = False
    """True: the median must not be below the limit. False: not above it."""

    def met(self, median: float) -> bool:
        """Say whether a median reaches the bar."""
        return median >= self.limit if self.at_least else median <= self.limit


@dataclass(frozen=True)
class Settings:
    """How a run is made."""

    threads: int = 2
    """Threads that every contestant may use; also the number of CPUs that its process is confined to."""

    seconds: float = 10.0
    """Time that one case should take, its preparation not counted."""

    fewest_pairs: int = 11
    """Pairs that are measured even if they take longer than that."""

    largest_elements: int = 0
    """Arrays are cut to this many elements for a quick try; 0 leaves them as they are."""

    def elements(self, wanted: int) -> int:
        """Return the number of elements to use where a case wants `wanted`."""
        return min(wanted, self.largest_elements) if self.largest_elements else wanted


Curves = dict[str, list[tuple[float, float]]]
"""Points of the plot, by whose they are: (elements, median seconds of a step)."""


@dataclass(frozen=True)
class Measurement:
    """What a case has measured."""

    pairs: list[tuple[float, float | None]]
    """(ours, the peer's) in the case's unit, in the order in which they were measured."""

    notes: dict[str, str] = field(default_factory=dict)
    """Sizes and whatever else a reader needs to judge the figures."""

    curves: Curves = field(default_factory=dict)
    """What the case has to show in the plot."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One comparison."""

    name: str
    """Theme, what, against whom: "flat/1m/torch"."""

    title: str
    """What the table calls it."""

    peer: str = ""
    """What the table calls the other contestant; empty when there is none."""

    quantity: Quantity = Quantity.RATIO
    """What is computed from a pair."""

    unit: Unit = Unit.SECONDS
    """What is measured."""

    bar: Bar | None = None
    """What is asked of the median; None where the comparison is for information."""

    threads: int | None = None
    """Threads where the case is about their number; None: as many as the run's settings say."""

    run: Callable[[Settings], Measurement]
    """Measures, in a process of its own. Raises `MissingError` if a contestant cannot run."""

    @property
    def theme(self) -> str:
        """The first part of the name."""
        return self.name.partition("/")[0]

    def settings(self, settings: Settings) -> Settings:
        """Return a run's settings as they are for this case."""
        return settings if self.threads is None else replace(settings, threads=self.threads)
