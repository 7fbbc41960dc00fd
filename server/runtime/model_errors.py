"""Errors that say, for programs, where the model stands that they are about. Imports the error table and the models."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from numba_adam.errors import NumbaAdamError, SessionFencedError, SessionUnknownError
from numba_adam.ps.errors import to_status
from numba_adam.server.runtime.model import Model


@contextlib.contextmanager
def saying_epoch_of(model: Model) -> Iterator[None]:
    """Have refusals of an opening carry the newest epoch."""
    try:
        yield
    except (SessionFencedError, SessionUnknownError) as error:
        detail = to_status(error)[2]
        detail.epoch = model.ledger.last_epoch
        error.detail = detail
        raise


@contextlib.contextmanager
def saying_state_of(model: Model) -> Iterator[None]:
    """Have errors carry where the model's state stands."""
    try:
        yield
    except NumbaAdamError as error:
        detail = to_status(error)[2]
        detail.state.CopyFrom(model.state())
        error.detail = detail  # type: ignore[attr-defined]  # only ServiceErrors declare it
        raise
