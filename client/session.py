"""Where one worker stands with one model: epoch, sequence number, and the state it believes the model is in.

May import grpc's errors through `connection`, and what both ends share.
"""

from __future__ import annotations

import logging
import secrets
import threading
from dataclasses import dataclass, replace

from numba_adam.client.info import durability_name
from numba_adam.client.transport.connection import Connection
from numba_adam.client.transport.retry import Deadline
from numba_adam.errors import RewoundError, ServiceError, SessionFencedError, SessionUnknownError
from numba_adam.ps.errors import detail_of
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


@dataclass(frozen=True, slots=True)
class Opening:
    """An opening of a session, the same for all its tries, until there is an answer."""

    nonce: str
    """Names it."""

    state_id: str
    """The state that the session is for."""

    seen_epoch: int
    """The newest epoch that is known here: a newer session of this worker is another process's."""

    may_take_over: bool
    """Whether a session that is not known here may be fenced: by a process that has had none, and looks once."""


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
        self._epoch_state_id = ""  # the state that the epoch was given for; empty: none was given
        self._is_open = False
        self._opening: Opening | None = None  # under way, or without an answer
        self._fenced = ""
        self._state_lock = threading.Lock()
        self._origin = Origin(state.state_id, state.version)
        self._gone: set[str] = set()
        self._rewinds: list[StatePoint] = []
        self._restored = state

    # --- the session's numbers, under push_lock -----------------------------------------------------------------

    def ensure_open(self, deadline: Deadline) -> None:
        """Open a session unless one is open for the state the model is in.

        Where the model turns out to be in another state, that is noticed, and the session may still be closed.

        Raises:
            SessionFencedError: another process with this worker id has taken over.
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
        self._epoch_state_id = answer.state.state_id
        self._is_open, self._opening = True, None

    def _open(self, state_id: str, deadline: Deadline) -> OpenSessionResponse:
        """Send an opening, the one that has no answer yet if there is one; take over only from what was seen.

        A message that is late says what was known when it was sent: it cannot fence what was opened since.
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
        )
        return self._connection.unary("OpenSession", request, OpenSessionResponse, deadline.remaining_seconds())

    def forget(self) -> None:
        """Give the session up: the next push opens a new one, which fences whatever of this one is still under way.

        Needed wherever it is unknown whether a sequence number was used, because the next gradient must not travel
        under it: the server would refuse it for the sake of the one that was given up.
        """
        self._is_open = False

    def fence(self, message: str) -> None:
        """Refuse all further pushes: two processes that share a worker id would fence each other for ever."""
        self._fenced = message

    # --- the model's state, from any thread ---------------------------------------------------------------------

    @property
    def origin(self) -> Origin:
        """What the worker's parameters are: the last ones it pulled."""
        return self._origin

    @property
    def restored(self) -> StatePoint:
        """Where the model stood when its last rewind was noticed."""
        return self._restored

    def pulled(self, state: StatePoint) -> None:
        """Take the state that came with parameters."""
        self.notice(state)
        with self._state_lock:
            if state.state_id == self._origin.state_id:
                self._origin = Origin(state.state_id, state.version)

    def notice(self, state: StatePoint) -> None:
        """Take a state that came with any answer; one of another line of history means a rewind.

        Raises:
            ConfigurationError: it has a durability that this version does not know.
        """
        durability_name(state.durability, f"the state of model {self.model!r}")
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


def _newest_epoch(error: ServiceError) -> int:
    """Return the epoch that a refused opening may take over from; 0: none was said."""
    detail = detail_of(error)
    return detail.epoch if detail is not None else 0
