"""The deletion of one model: of the state that was seen, so that a request that is late deletes nothing else.

May import what both ends share, and its neighbours here.
"""

from __future__ import annotations

from numba_adam.client.transport.connection import Connection
from numba_adam.client.transport.retry import Deadline
from numba_adam.errors import ModelNotFoundError, RewoundError, ServiceError
from numba_adam.ps.errors import detail_of
from numba_adam.ps.v1 import parameter_service_pb2 as pb


class Deletion:
    """One call of delete_model, with all its tries."""

    def __init__(self, connection: Connection, name: str) -> None:
        self._connection, self._name = connection, name
        self._in_doubt = ""  # the state that an earlier try may have deleted without our hearing of it

    def attempt(self, deadline: Deadline) -> None:
        """Try once.

        Raises:
            ModelNotFoundError: there is no such model, and no try of ours deleted it.
            RewoundError: the model is in another state than the one that an earlier try may have deleted.
            ServiceError: the call failed.
        """
        try:
            self._delete(self._look(deadline), deadline)
        except ModelNotFoundError:
            if not self._in_doubt:  # else: an earlier try had deleted it, and only its answer was lost
                raise
        except RewoundError:  # it went back, or was created anew, since it was looked at
            if self._in_doubt:
                raise
            self._delete(self._look(deadline), deadline)

    def _look(self, deadline: Deadline) -> str:
        """Return the id of the state that is to be deleted."""
        request = pb.GetModelRequest(model=self._name)
        answer = self._connection.unary("GetModel", request, pb.GetModelResponse, deadline.remaining_seconds())
        state_id = answer.model.state.state_id
        if self._in_doubt not in ("", state_id):
            raise RewoundError(
                f"model {self._name!r}: an earlier try may have deleted it, and its state is another one now: it was "
                "created anew, or the server lost what came after its last snapshot; look, and delete it again"
            )
        return state_id

    def _delete(self, state_id: str, deadline: Deadline) -> None:
        request = pb.DeleteModelRequest(model=self._name, state_id=state_id)
        try:
            self._connection.unary("DeleteModel", request, pb.DeleteModelResponse, deadline.remaining_seconds())
        except ServiceError as error:
            if detail_of(error) is None:
                self._in_doubt = state_id
            raise
