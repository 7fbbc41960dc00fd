"""Errors that say, for programs, where the model stands that they are about. Imports the models."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from numba_adam.errors import ServiceError, SessionFencedError, SessionUnknownError
from numba_adam.ps.detail import with_detail
from numba_adam.server.runtime.model import Model


@contextlib.contextmanager
def saying_epoch_of(model: Model) -> Iterator[None]:
    """Have refusals of an opening carry the newest epoch."""
    try:
        yield
    except (SessionFencedError, SessionUnknownError) as error:
        with_detail(error, epoch=model.ledger.last_epoch)
        raise


@contextlib.contextmanager
def saying_state_of(model: Model) -> Iterator[None]:
    """Have errors carry where the model's state stands."""
    try:
        yield
    except ServiceError as error:
        with_detail(error, state=model.state())
        raise
