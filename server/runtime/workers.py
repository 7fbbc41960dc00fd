"""The workers of a model: lists them, renews their leases, and ends them. Imports the models."""

from __future__ import annotations

import logging
from typing import NamedTuple

from numba_adam.errors import InvalidRequestError
from numba_adam.server.runtime.model import Model
from numba_adam.server.runtime.model_errors import saying_state_of

_log = logging.getLogger(__name__)


class WorkerState(NamedTuple):
    """A worker that has a session."""

    worker_id: str
    """The worker."""

    epoch: int
    """The epoch of its session."""

    pushes: int
    """Number of its pushes in this session that have an answer."""

    clock: int | None
    """Its clock; None: it has none."""

    idle_seconds: float
    """Time since its last call, or since the server started."""

    lease_seconds: float
    """Time until its lease ends; 0: it has ended."""

    round: int
    """The round in which its push waits; 0: in none."""


def list_workers(model: Model) -> list[WorkerState]:
    """Return the workers that have a session, by id."""
    return model.apply_queue.call(_list, model)


def _list(model: Model) -> list[WorkerState]:
    model.check_alive()
    ledger, leases = model.ledger, model.leases
    return [
        WorkerState(
            worker_id,
            session.epoch,
            session.last_sequence,
            ledger.clocks.of(worker_id),
            leases.idle_seconds(worker_id),
            leases.left_seconds(worker_id),
            0 if ledger.round.of(worker_id) is None else model.version + 1,
        )
        for worker_id, session in sorted(ledger.sessions.items())
    ]


def renew_lease(model: Model, state_id: str, worker_id: str, epoch: int) -> float:
    """Renew the lease of a worker; return its seconds.

    Raises:
        RewoundError, SessionUnknownError, SessionFencedError: the session is not open.
    """
    with saying_state_of(model):
        model.check_alive()
        model.ledger.check_session(state_id, worker_id, epoch)
        model.leases.renew(worker_id, epoch)
        return model.leases.seconds


def end_lease(model: Model, state_id: str, worker_id: str, epoch: int, why: str) -> None:
    """Let nobody wait for a worker any more; return once that is kept.

    Raises:
        InvalidRequestError: the state id is missing.
        RewoundError, SessionUnknownError, SessionFencedError: the session is not open.
    """
    with saying_state_of(model):
        if not state_id:
            raise InvalidRequestError("state_id is empty: give the state of the session")
        model.apply_queue.call(_end, model, state_id, worker_id, epoch)
        model.settle()
    _log.info(
        "model %s: worker %r %s at version %d",
        model.spec.name,
        worker_id,
        why,
        model.version,
        extra={"worker": worker_id, "version": model.version},
    )


def _end(model: Model, state_id: str, worker_id: str, epoch: int) -> None:
    model.ledger.check_session(state_id, worker_id, epoch)
    model.depart(worker_id)
