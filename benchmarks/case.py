"""The definition of a case. May import the standard library only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import Enum


class MissingError(Exception):
    """A contestant cannot run here. The message says why."""


class Quantity(Enum):
    """The quantity that is computed from one pair of measurements, ours and the peer's."""

    RATIO = "ratio"
    """Ours divided by the peer's: below 1, ours is faster."""

    FRACTION = "fraction"
    """The peer's divided by ours: the fraction of the peer's speed that we reach."""

    DIFFERENCE = "difference"
    """Ours minus the peer's: our overhead."""

    VALUE = "value"
    """Ours alone. The report also shows the peer's."""

    def of(self, ours: float, peer: float | None) -> float:
        """Return the quantity of one pair."""
        if self is Quantity.VALUE:
            return ours
        assert peer is not None, "only a VALUE can do without a peer"
        if self is Quantity.DIFFERENCE:
            return ours - peer
        return ours / peer if self is Quantity.RATIO else peer / ours


class Unit(Enum):
    """The unit of the measurements."""

    SECONDS = "s"
    BYTES = "bytes"
    COUNT = "count"
    BYTES_EACH = "bytes per parameter"


@dataclass(frozen=True)
class Bar:
    """The bar: a limit for the median of a case."""

    limit: float
    """For a difference or a value, in the unit of the case. For a ratio or a fraction, without a unit."""

    at_least: bool = False
    """True: the median must be at least the limit. False: at most the limit."""

    def met(self, median: float) -> bool:
        """Return whether a median meets the bar."""
        return median >= self.limit if self.at_least else median <= self.limit


@dataclass(frozen=True)
class Settings:
    """The settings of a run."""

    threads: int = 2
    """Number of threads per contestant, and of CPUs that its process may use."""

    seconds: float = 10.0
    """Target time of one case, without its preparation."""

    fewest_pairs: int = 11
    """Minimum number of pairs, even if they take longer than that."""

    largest_elements: int = 0
    """Maximum size of an array in a quick run. 0: no maximum."""

    def elements(self, wanted: int) -> int:
        """Return the number of elements to use for a case with `wanted` elements."""
        return min(wanted, self.largest_elements) if self.largest_elements else wanted


Curves = dict[str, list[tuple[float, float]]]
"""Points of the plot, by contestant: (elements, median seconds of a step)."""


@dataclass(frozen=True)
class Measurement:
    """The measurements of a case."""

    pairs: list[tuple[float, float | None]]
    """(ours, the peer's) in the case's unit, in order of time."""

    notes: dict[str, str] = field(default_factory=dict)
    """Sizes and other facts that readers need to judge the figures."""

    curves: Curves = field(default_factory=dict)
    """The points of the case for the plot."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One comparison."""

    name: str
    """Theme, subject and peer: "flat/1m/torch"."""

    title: str
    """Title in the table."""

    peer: str = ""
    """Name of the peer in the table. Empty without a peer."""

    quantity: Quantity = Quantity.RATIO
    """The quantity that is computed from a pair."""

    unit: Unit = Unit.SECONDS
    """The unit of the measurements."""

    bar: Bar | None = None
    """The bar for the median. None: the comparison is for information only."""

    threads: int | None = None
    """Number of threads, if the case fixes it. None: as in the settings of the run."""

    is_long: bool = False
    """True: only `--only` runs it."""

    run: Callable[[Settings], Measurement]
    """The function that measures, in a separate process. It raises `MissingError` if a contestant cannot run."""

    @property
    def theme(self) -> str:
        """The first part of the name."""
        return self.name.partition("/")[0]

    def settings(self, settings: Settings) -> Settings:
        """Return the settings of a run for this case."""
        return settings if self.threads is None else replace(settings, threads=self.threads)
