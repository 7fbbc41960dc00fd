"""The workers of a model: their leases. May import `connection`, `numba_adam.ps` and the errors."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from numba_adam.client.session import Session
from numba_adam.client.transport.connection import Connection
from numba_adam.errors import ServiceError, SessionUnknownError
from numba_adam.ps.v1 import parameter_service_pb2 as pb

_log = logging.getLogger(__name__)
_LEAVING_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    """A worker that has a session with a model."""

    worker_id: str
    """The worker. On a server with tokens, the name of its token and a slash stand before its own id."""

    epoch: int
    """The epoch of its session."""

    pushes: int
    """Number of its pushes in this session that have an answer."""

    clock: int | None
    """Its clock, with the mode "ssp"; None: it has none, so nobody waits for it."""

    idle_seconds: float
    """Time since its last call, or since the server started."""

    lease_seconds: float
    """Time until its lease ends; 0: it has ended."""

    round: int | None
    """The round in which its push waits; None: in none."""


def workers_of(connection: Connection, name: str) -> list[WorkerInfo]:
    """Return the workers that have a session with a model, by id."""
    return [_info(worker) for worker in _listed(connection, name).workers]


def evict(connection: Connection, name: str, worker_id: str) -> None:
    """End the lease of a worker.

    Raises:
        SessionUnknownError: the model has no such worker.
        ServiceError: the call failed.
    """
    listed = _listed(connection, name)
    epochs = {worker.worker_id: worker.epoch for worker in listed.workers}
    if worker_id not in epochs:
        raise SessionUnknownError(f"model {name!r} has no worker {worker_id!r}; numba-adam workers lists them")
    request = pb.EvictWorkerRequest(
        model=name, state_id=listed.state.state_id, worker_id=worker_id, epoch=epochs[worker_id]
    )
    connection.call("EvictWorker", request, pb.EvictWorkerResponse, what=f"evict {worker_id!r} from model {name!r}")


def heartbeat(connection: Connection, session: Session, *, leaving: bool) -> None:
    """Renew the lease of a session, or end it; nothing happens without a session.

    Raises:
        ServiceError: the call failed.
    """
    epoch, state_id = session.open_epoch
    if not epoch:
        return
    request = pb.HeartbeatRequest(
        model=session.model, state_id=state_id, worker_id=session.worker_id, epoch=epoch, leaving=leaving
    )
    what = f"{'leave' if leaving else 'heartbeat of'} model {session.model!r}"
    connection.call("Heartbeat", request, pb.HeartbeatResponse, what=what)


def leave_at_once(connection: Connection, session: Session) -> None:
    """End the lease of a session, if the server answers soon; else it ends by itself."""
    epoch, state_id = session.open_epoch
    if not epoch:
        return
    request = pb.HeartbeatRequest(
        model=session.model, state_id=state_id, worker_id=session.worker_id, epoch=epoch, leaving=True
    )
    try:
        connection.unary("Heartbeat", request, pb.HeartbeatResponse, _LEAVING_SECONDS)
    except ServiceError as error:
        _log.info("model %r: leaving failed (%s); the lease ends by itself", session.model, error)


def _listed(connection: Connection, name: str) -> pb.ListWorkersResponse:
    request, what = pb.ListWorkersRequest(model=name), f"workers of model {name!r}"
    answer: pb.ListWorkersResponse = connection.call("ListWorkers", request, pb.ListWorkersResponse, what=what)
    return answer


def _info(worker: pb.Worker) -> WorkerInfo:
    return WorkerInfo(
        worker_id=worker.worker_id,
        epoch=worker.epoch,
        pushes=worker.pushes,
        clock=worker.clock if worker.HasField("clock") else None,
        idle_seconds=worker.idle_seconds,
        lease_seconds=worker.lease_seconds,
        round=worker.round or None,
    )
