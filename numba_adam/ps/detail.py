"""What an error tells a program beside its message, as plain values.

The server's lower layers set them; `numba_adam.ps.errors` writes them into the ErrorDetail message that travels.
Imports the error tree and the modes.
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeVar

from numba_adam.errors import ServiceError
from numba_adam.ps.modes import Durability

_E = TypeVar("_E", bound=ServiceError)


class StatePoint(NamedTuple):
    """Where a model's state stands."""

    state_id: str
    """Names one line of history; new after each rollback."""

    version: int
    """Number of pushes applied since the model was created."""

    first_version: int = 0
    """Version at which this line of history began."""

    snapshot_version: int = 0
    """Version that the newest snapshot holds."""

    durability: Durability | None = None
    """What acknowledgements promise. None: the model was deleted."""


class Detail(NamedTuple):
    """What travels with an error."""

    sequence_recorded: bool = False
    """Whether this answer uses up the push's sequence number."""

    retry_after_milliseconds: int = 0
    """Advice to wait; 0: none."""

    state: StatePoint | None = None
    """Where the model's state stands. None: the call named no model that exists."""

    epoch: int = 0
    """The newest epoch that the model gave to any worker; 0: the call opened no session."""


def with_detail(error: _E, **values: Any) -> _E:
    """Add values to what travels with an error, and return the error.

    Args:
        error: the exception to raise.
        values: fields of `Detail`; the others stay as they are.
    """
    before = error.detail if isinstance(error.detail, Detail) else Detail()
    error.detail = before._replace(**values)
    return error
