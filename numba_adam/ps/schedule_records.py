"""Schedules as plain values that JSON can hold. Imports the schedules."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from numba_adam.ps.schedules import Chain, Constant, Cosine, InverseSquareRoot, Linear, Piecewise, Schedule

FIELDS: dict[str, type[Schedule]] = {
    "constant": Constant,
    "linear": Linear,
    "cosine": Cosine,
    "inverse_square_root": InverseSquareRoot,
    "piecewise": Piecewise,
    "chained": Chain,
}
"""Name of each kind -> its class. Records and the protocol use the same names."""

NAMES = {kind: name for name, kind in FIELDS.items()}


def schedule_record(schedule: Schedule) -> dict[str, Any]:
    """Return the record of a schedule: {"constant": {"lr": 0.001}}, for example."""
    values = {name: getattr(schedule, name) for name in schedule.__dataclass_fields__}
    if isinstance(schedule, Chain):
        values["schedules"] = [schedule_record(each) for each in schedule.schedules]
    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
    return {NAMES[type(schedule)]: plain}


def schedule_of(record: Mapping[str, Any]) -> Schedule:
    """Return the schedule that `schedule_record` wrote.

    Raises:
        KeyError, TypeError, ValueError: it is not such a record.
    """
    ((name, values),) = record.items()
    kind: Any = FIELDS[name]
    if kind is Chain:
        values = {**values, "schedules": [schedule_of(each) for each in values["schedules"]]}
    schedule: Schedule = kind(**values)
    return schedule
