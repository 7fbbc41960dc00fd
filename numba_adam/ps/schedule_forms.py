"""Converts schedules to the protocol's message and back. May import the schedules and the generated messages."""

from __future__ import annotations

from typing import Any

from numba_adam.errors import InvalidRequestError
from numba_adam.ps.schedule_records import FIELDS, NAMES
from numba_adam.ps.schedules import MOST_LEVELS, Chain, Schedule
from numba_adam.ps.v1 import model_pb2


def schedule_to_proto(schedule: Schedule) -> model_pb2.Schedule:
    """Return the message of a schedule."""
    message = model_pb2.Schedule()
    part: Any = getattr(message, NAMES[type(schedule)])
    part.SetInParent()
    if isinstance(schedule, Chain):
        part.schedules.extend(schedule_to_proto(each) for each in schedule.schedules)
        part.boundaries.extend(schedule.boundaries)
        return message
    for name in schedule.__dataclass_fields__:
        value = getattr(schedule, name)
        if isinstance(value, tuple):
            getattr(part, name).extend(value)
        else:
            setattr(part, name, value)
    return message


def schedule_from_proto(message: model_pb2.Schedule, level: int = 1) -> Schedule:
    """Return the checked schedule of a message.

    Args:
        message: the message.
        level: 1, and 1 more for each chain around it.

    Raises:
        InvalidRequestError: this version does not know its kind, none is set, or it has too many levels.
        HyperparameterError: a rate or a boundary is not allowed.
    """
    field = message.WhichOneof("kind")
    if field is None or level > MOST_LEVELS:
        raise InvalidRequestError(
            f"schedule: its kind must be one of {', '.join(FIELDS)}, with at most {MOST_LEVELS} within each other"
        )
    part: Any = getattr(message, field)
    kind: Any = FIELDS[field]
    values = {name: getattr(part, name) for name in kind.__dataclass_fields__}
    if kind is Chain:
        values["schedules"] = [schedule_from_proto(each, level + 1) for each in part.schedules]
    checked: Schedule = kind(
        **{name: value if isinstance(value, (int, float)) else tuple(value) for name, value in values.items()}
    )
    return checked
