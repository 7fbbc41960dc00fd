"""The deletion of one model. The request names the state to delete, so a late request deletes nothing else.

May import `numba_adam.ps` and its neighbours here.
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
        self._in_doubt = ""  # the state that an earlier try may have deleted, if its answer was lost

    def attempt(self, deadline: Deadline) -> None:
        """Try once.

        Raises:
            ModelNotFoundError: the model does not exist, and no earlier try deleted it.
            RewoundError: the model's state is not the one that an earlier try may have deleted.
            ServiceError: the call failed.
        """
        try:
            self._delete(self._look(deadline), deadline)
        except ModelNotFoundError:
            if not self._in_doubt:  # else: an earlier try deleted it, and only its answer was lost
                raise
        except RewoundError:  # it was restored or created again since `_look`
            if self._in_doubt:
                raise
            self._delete(self._look(deadline), deadline)

    def _look(self, deadline: Deadline) -> str:
        """Return the id of the model's current state."""
        request = pb.GetModelRequest(model=self._name)
        answer = self._connection.unary("GetModel", request, pb.GetModelResponse, deadline.remaining_seconds())
        state_id = answer.model.state.state_id
        if self._in_doubt not in ("", state_id):
            raise RewoundError(
                f"model {self._name!r}: an earlier try may have deleted it, and it now has another state. It was "
                "created again, or the server lost what came after its last snapshot. Check the model, and delete it "
                "again if you still want to"
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
