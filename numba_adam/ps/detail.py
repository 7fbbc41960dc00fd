"""The details of an error for programs, as plain values.

The server's lower layers set them. `numba_adam.ps.errors` encodes them as the ErrorDetail message.
May import the error tree and the modes.
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeVar

from numba_adam.errors import ServiceError
from numba_adam.ps.modes import Durability

_E = TypeVar("_E", bound=ServiceError)


class StatePoint(NamedTuple):
    """The id and version of a model's state, and its snapshot."""

    state_id: str
    """Id of the line of history. It changes with each rollback."""

    version: int
    """Number of pushes applied since the model was created."""

    first_version: int = 0
    """First version of this line of history."""

    snapshot_version: int = 0
    """Version of the newest snapshot."""

    durability: Durability | None = None
    """The promise of acknowledgements. None: the model was deleted."""


class Detail(NamedTuple):
    """The details of one error."""

    sequence_recorded: bool = False
    """Whether the server recorded this answer under the push's sequence number."""

    retry_after_milliseconds: int = 0
    """How long the client should wait before a retry. 0: no advice."""

    state: StatePoint | None = None
    """The model's state. None: the model of the call does not exist."""

    epoch: int = 0
    """The newest epoch of any worker of the model. 0: the call did not open a session."""

    change: int = 0
    """Number of the newest change of the model's settings. 0: the call did not change them."""


def with_detail(error: _E, **values: Any) -> _E:
    """Set fields of an error's details and return the error.

    Args:
        error: the exception to raise.
        values: fields of `Detail`; other fields do not change.
    """
    before = error.detail if isinstance(error.detail, Detail) else Detail()
    error.detail = before._replace(**values)
    return error
