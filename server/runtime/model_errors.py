"""Adds a model's state to errors about it, so that programs can read it. Imports the models."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from numba_adam.errors import ServiceError, SessionFencedError, SessionUnknownError
from numba_adam.ps.detail import with_detail
from numba_adam.server.runtime.model import Model


@contextlib.contextmanager
def saying_epoch_of(model: Model) -> Iterator[None]:
    """Add the newest epoch to errors of opening a session."""
    try:
        yield
    except (SessionFencedError, SessionUnknownError) as error:
        with_detail(error, epoch=model.ledger.last_epoch)
        raise


@contextlib.contextmanager
def saying_state_of(model: Model) -> Iterator[None]:
    """Add the model's state to errors."""
    try:
        yield
    except ServiceError as error:
        with_detail(error, state=model.state())
        raise
