"""Where one worker stands with one model: epoch, sequence number, and the state it believes the model is in.

May import grpc's errors through `connection`, and what both ends share.
"""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass

from numba_adam.client.connection import Connection
from numba_adam.errors import SessionFencedError
from numba_adam.ps.v1.model_pb2 import StatePoint
from numba_adam.ps.v1.parameter_service_pb2 import OpenSessionRequest, OpenSessionResponse

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Origin:
    """The parameters that a gradient was computed from."""

    state_id: str
    """The line of history they belong to."""

    version: int
    """Their version in it."""


class Session:
    """Shared by all handles that a client gives out for one model.

    `push_lock` is held for the whole of a push, tries included: the server takes the pushes of a session strictly in
    order. The numbers of the session are only touched under it. What is known of the model's state has a lock of its
    own, held for moments, because pulls learn of it too.
    """

    def __init__(self, connection: Connection, model: str, worker_id: str, state: StatePoint) -> None:
        self.model, self.worker_id = model, worker_id
        self.push_lock = threading.Lock()
        self.epoch = 0
        self.next_sequence = 0
        self._connection = connection
        self._epoch_state_id = ""  # the state that the epoch was given for; empty: no session is open
        self._fenced = ""
        self._state_lock = threading.Lock()
        self._origin = Origin(state.state_id, state.version)
        self._gone: set[str] = set()
        self._rewinds: list[StatePoint] = []
        self._restored = state

    # --- the session's numbers, under push_lock -----------------------------------------------------------------

    def ensure_open(self, timeout_seconds: float) -> None:
        """Open a session unless one is open for the state the model is in.

        Raises:
            SessionFencedError: another process with this worker id has taken over.
            ServiceError: the call failed.
        """
        if self._fenced:
            raise SessionFencedError(self._fenced)
        if self._epoch_state_id == self.origin.state_id:
            return
        request = OpenSessionRequest(model=self.model, worker_id=self.worker_id)
        answer = self._connection.unary("OpenSession", request, OpenSessionResponse, timeout_seconds)
        self.notice(answer.state)
        self.epoch, self.next_sequence = answer.epoch, answer.first_sequence
        self._epoch_state_id = answer.state.state_id

    def forget(self) -> None:
        """Give the session up: the next push opens a new one, which fences whatever of this one is still under way.

        Needed wherever it is unknown whether a sequence number was used, because the next gradient must not travel
        under it: the server would take it for the same push again and drop it.
        """
        self._epoch_state_id = ""

    def fence(self, message: str) -> None:
        """Refuse all further pushes: two processes that share a worker id would fence each other for ever."""
        self._fenced = message

    # --- the model's state, from any thread ---------------------------------------------------------------------

    @property
    def origin(self) -> Origin:
        """What the worker's parameters are: the last ones it pulled."""
        with self._state_lock:
            return self._origin

    @property
    def restored(self) -> StatePoint:
        """Where the model stood when its last rewind was noticed."""
        with self._state_lock:
            return self._restored

    def pulled(self, state: StatePoint) -> None:
        """Take the state that came with parameters."""
        self.notice(state)
        with self._state_lock:
            if state.state_id == self._origin.state_id:
                self._origin = Origin(state.state_id, state.version)

    def notice(self, state: StatePoint) -> None:
        """Take a state that came with any answer; one of another line of history means a rewind."""
        with self._state_lock:
            if state.state_id == self._origin.state_id or state.state_id in self._gone:
                return
            self._gone.add(self._origin.state_id)
            _log.warning(
                "model %r went back from version %d to %d: the server lost what came after its last snapshot, "
                "or the model was created anew",
                self.model,
                self._origin.version,
                state.first_version,
            )
            self._origin = Origin(state.state_id, state.version)
            self._restored = state
            self._rewinds.append(state)

    def take_rewinds(self) -> list[StatePoint]:
        """Return the rewinds that nobody has been told of yet; each is returned once."""
        with self._state_lock:
            rewinds, self._rewinds = self._rewinds, []
        return rewinds
