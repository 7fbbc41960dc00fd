"""A worker's session with a model: its epoch, its sequence numbers, and the model's state as last reported.

May import `connection`, `numba_adam.ps` and the errors.
"""

from __future__ import annotations

import logging
import secrets
import threading
from dataclasses import dataclass, replace

from numba_adam.client.info import durability_name
from numba_adam.client.transport.connection import Connection
from numba_adam.client.transport.retry import Deadline
from numba_adam.errors import ConfigurationError, RewoundError, ServiceError, SessionFencedError, SessionUnknownError
from numba_adam.ps.errors import detail_of
from numba_adam.ps.v1.model_pb2 import StatePoint
from numba_adam.ps.v1.parameter_service_pb2 import OpenSessionRequest, OpenSessionResponse

_LONGEST_WORKER_ID = 128
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Origin:
    """The parameters that a gradient was computed from."""

    state_id: str
    """Id of the line of history that they belong to."""

    version: int
    """Their version."""


@dataclass(frozen=True, slots=True)
class Opening:
    """One request to open a session. All its tries are equal, until there is an answer."""

    nonce: str
    """Id of the request."""

    state_id: str
    """Id of the state that the session is for."""

    seen_epoch: int
    """The newest epoch that this process knows. A session with a newer epoch belongs to another process."""

    may_take_over: bool
    """Whether the request may fence an unknown session. Only a process without a session may, and only once."""


class Session:
    """One worker's session with one model. All of a client's handles on the model share it.

    A push holds `push_lock` during all its tries, because the server takes a session's pushes strictly in order.
    The lock also guards the epoch and the sequence number. The model's state has a second lock, which is held only
    briefly, because pulls update the state too.
    """

    def __init__(self, connection: Connection, model: str, worker_id: str, state: StatePoint) -> None:
        self.model, self.worker_id = model, worker_id
        self.push_lock = threading.Lock()
        self.epoch = 0
        self.next_sequence = 0
        self.whole_push_bytes = 0
        """The largest push that the server takes as one message; 0: it takes streams only."""

        self._connection = connection
        self._epoch_state_id = ""  # the state that the epoch belongs to; empty: no epoch yet
        self._is_open = False
        self._opening: Opening | None = None  # sent, without an answer so far
        self._fenced = ""
        self._state_lock = threading.Lock()
        self._origin = Origin(state.state_id, state.version)
        self._gone: set[str] = set()
        self._rewinds: list[StatePoint] = []
        self._restored = state

    def of_another_worker(self, worker_id: str) -> Session:
        """Return a session of another worker with the same model, not opened yet."""
        origin = self.origin
        state = StatePoint(state_id=origin.state_id, version=origin.version, durability=self._restored.durability)
        return Session(self._connection, self.model, worker_id, state)

    # --- the session's numbers, under push_lock -----------------------------------------------------------------

    def ensure_open(self, deadline: Deadline) -> None:
        """Open a session for the model's current state, unless one is open.

        If the server reports another state, the session records the rewind and may stay closed.

        Raises:
            SessionFencedError: another process with this worker id took over.
            ServiceError: the call failed.
        """
        if self._fenced:
            raise SessionFencedError(self._fenced)
        state_id = self.origin.state_id
        if self._is_open and self._epoch_state_id == state_id:
            return
        try:
            answer = self._open(state_id, deadline)
        except RewoundError as error:
            detail = detail_of(error)
            if detail is not None:
                self.notice(detail.state)
            if self.origin.state_id == state_id:
                raise
            return
        self.notice(answer.state)
        self.epoch, self.next_sequence = answer.epoch, answer.first_sequence
        self.whole_push_bytes = answer.whole_push_bytes
        self._epoch_state_id = answer.state.state_id
        self._is_open, self._opening = True, None

    def _open(self, state_id: str, deadline: Deadline) -> OpenSessionResponse:
        """Send a request to open a session; repeat an unanswered request unchanged.

        A request fences only sessions up to the epoch that it carries: a late one cannot fence a session opened since.
        """
        if self._opening is None or self._opening.state_id != state_id:
            seen_epoch = self.epoch if self._epoch_state_id == state_id else 0
            self._opening = Opening(secrets.token_hex(16), state_id, seen_epoch, may_take_over=not seen_epoch)
        try:
            return self._send(self._opening, deadline)
        except (SessionFencedError, SessionUnknownError) as error:
            newest = _newest_epoch(error)
            is_ours_to_take = self._opening.may_take_over or isinstance(error, SessionUnknownError)
            if not newest or not is_ours_to_take:
                raise
            self._opening = replace(self._opening, seen_epoch=newest, may_take_over=False)
        return self._send(self._opening, deadline)

    def _send(self, opening: Opening, deadline: Deadline) -> OpenSessionResponse:
        request = OpenSessionRequest(
            model=self.model,
            worker_id=self.worker_id,
            nonce=opening.nonce,
            state_id=opening.state_id,
            seen_epoch=opening.seen_epoch,
            asks_whole_push_bytes=True,
        )
        return self._connection.unary("OpenSession", request, OpenSessionResponse, deadline.remaining_seconds())

    @property
    def open_epoch(self) -> tuple[int, str]:
        """The epoch of the open session, and the state that it belongs to; 0: none is open. From any thread."""
        return (self.epoch, self._epoch_state_id) if self._is_open else (0, "")

    def forget(self) -> None:
        """Discard the session. The next push opens a new one, which fences unfinished pushes of this one.

        This is necessary if the server may have used a sequence number: it would refuse another gradient with it.
        """
        self._is_open = False

    def fence(self, message: str) -> None:
        """Refuse all further pushes. Otherwise two processes with one worker id would fence each other forever."""
        self._fenced = message

    # --- the model's state, from any thread ---------------------------------------------------------------------

    @property
    def origin(self) -> Origin:
        """State and version of the parameters that the worker pulled last."""
        return self._origin

    @property
    def restored(self) -> StatePoint:
        """The model's state after its last rewind, as first reported."""
        return self._restored

    def pulled(self, state: StatePoint) -> None:
        """Record the state that came with parameters."""
        self.notice(state)
        with self._state_lock:
            if state.state_id == self._origin.state_id:
                self._origin = Origin(state.state_id, state.version)

    def notice(self, state: StatePoint) -> None:
        """Record the state in any answer. Another line of history means a rewind.

        Raises:
            ConfigurationError: this version does not know the state's durability.
        """
        durability_name(state.durability, f"the state of model {self.model!r}")
        with self._state_lock:
            if state.state_id == self._origin.state_id or state.state_id in self._gone:
                return
            self._gone.add(self._origin.state_id)
            _log.warning(
                "model %r went back from version %d to %d: the server lost what came after its last snapshot, "
                "or the model was created again",
                self.model,
                self._origin.version,
                state.first_version,
            )
            self._origin = Origin(state.state_id, state.version)
            self._restored = state
            self._rewinds.append(state)

    def take_rewinds(self) -> list[StatePoint]:
        """Return the rewinds that were not reported yet, each of them once."""
        with self._state_lock:
            rewinds, self._rewinds = self._rewinds, []
        return rewinds


def _newest_epoch(error: ServiceError) -> int:
    """Return the newest epoch that a refusal reports; 0: it reports none."""
    detail = detail_of(error)
    return detail.epoch if detail is not None else 0


def checked_worker_id(worker_id: str) -> str:
    """Return a worker's id.

    Raises:
        ConfigurationError: it is not text, too long, or has characters that cannot be printed.
    """
    if not isinstance(worker_id, str) or not 1 <= len(worker_id) <= _LONGEST_WORKER_ID or not worker_id.isprintable():
        raise ConfigurationError(
            f"worker_id: expected 1 to {_LONGEST_WORKER_ID} printable characters, got {worker_id!r}"
        )
    return worker_id
