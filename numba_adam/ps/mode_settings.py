"""A mode with what belongs to it. May import the modes, the rounds and the error tree."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from numba_adam.errors import HyperparameterError
from numba_adam.ps.modes import Mode
from numba_adam.ps.round_settings import RoundSettings, positive_seconds, whole_number

MOST_STALENESS = (1 << 31) - 1
"""Largest number of clocks that a worker may be ahead."""

DEFAULT_LEASE_SECONDS = 600.0
"""Time after a worker's last call until nobody waits for it any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModeSettings:
    """How the server makes steps out of the pushes of several workers.

    Raises:
        HyperparameterError: a setting is missing, out of range, or belongs to another mode.
    """

    mode: Mode = Mode.ASYNC
    """The mode."""

    rounds: RoundSettings | None = None
    """Its rounds; None unless it is SYNC."""

    staleness: int | None = None
    """How many clocks a worker may be ahead of the slowest; None unless it is SSP."""

    def __post_init__(self) -> None:
        """Check what belongs to the mode."""
        if (self.mode is Mode.SYNC) is not (self.rounds is not None):
            raise HyperparameterError(
                f'workers: only mode="sync" has rounds, and it needs the number of workers; mode={str(self.mode)!r}'
            )
        if (self.mode is Mode.SSP) is not (self.staleness is not None):
            raise HyperparameterError(
                'staleness: only mode="ssp" has it, and it needs it: the number of clocks that a worker may be ahead '
                f"of the slowest; the mode is {str(self.mode)!r}, and staleness={self.staleness!r}"
            )
        if self.staleness is not None:
            object.__setattr__(self, "staleness", whole_number("staleness", self.staleness, 1, MOST_STALENESS))

    def to_record(self) -> dict[str, Any]:
        """Return plain values that JSON can hold."""
        return {
            "mode": self.mode.value,
            **({} if self.rounds is None else {"rounds": asdict(self.rounds)}),
            **({} if self.staleness is None else {"staleness": self.staleness}),
        }

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> ModeSettings:
        """Return the settings that `to_record` wrote.

        Raises:
            HyperparameterError, KeyError, TypeError, ValueError: the record has a key or a value that is not known.
        """
        values = {**record, "mode": Mode(record.get("mode", Mode.ASYNC))}
        if "rounds" in record:
            values["rounds"] = RoundSettings(**record["rounds"])
        return cls(**values)


ASYNC = ModeSettings()
"""Each push is one step."""


def lease_seconds_of(value: object) -> float:
    """Return the seconds of a lease.

    Raises:
        HyperparameterError: it is not a finite number above 0.
    """
    return positive_seconds("lease_seconds", value)
