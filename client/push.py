"""One push: its tries, its answer, and how a failure changes the session.

May import `numba_adam.ps` and its neighbours here.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

from google.protobuf.message import Message

from numba_adam import errors
from numba_adam.client.ack import Ack, ack_of, ack_of_missed_round, ack_of_rewind
from numba_adam.client.model_arrays import Gradients, ModelArrays
from numba_adam.client.pull import PLAIN, Pulled, Wanted, read_parameters
from numba_adam.client.rounds import await_answer
from numba_adam.client.session import Origin, Session
from numba_adam.client.transfer import Upload
from numba_adam.client.transport.connection import Connection
from numba_adam.client.transport.local_socket import LocalSocket
from numba_adam.client.transport.retry import Deadline, interrupted, queued_too_long
from numba_adam.client.transport.shield import POLL_SECONDS, is_given_up
from numba_adam.errors import CorruptTransferError, ServiceError
from numba_adam.ps import convert
from numba_adam.ps.checksum import XXH3_64
from numba_adam.ps.errors import detail_of
from numba_adam.ps.v1.parameter_service_pb2 import PushAck, PushHeader, PushRequest, PushResponse

_log = logging.getLogger(__name__)

Answer = tuple[Ack, Pulled | None]
_Messages = Iterator[bytes] | bytes
"""A stream of messages, or one message with everything."""

_Send = Callable[[Upload, float], tuple[PushAck, Pulled | None]]


class Push:
    """One gradient to send. One thread runs it, once."""

    def __init__(
        self,
        connection: Connection,
        session: Session,
        model_arrays: ModelArrays,
        gradients: Gradients,
        origin: Origin,
        wanted: Wanted = PLAIN,
        loss_scale: float | None = None,
    ) -> None:
        self._connection, self._session, self._model_arrays = connection, session, model_arrays
        self._gradients, self._origin, self._wanted = gradients, origin, wanted
        self._loss_scale = loss_scale
        self._what = f"push to model {session.model!r}"
        self._is_held = False  # whether the server has the push in a round
        self._in_doubt = False  # whether an earlier try may have been applied, its answer lost

    def run(self, deadline: Deadline) -> Answer:
        """Send the gradient until there is an answer.

        Raises:
            PushRejectedError: the server refused the push; it is not retried. Later pushes may succeed.
            SessionFencedError: another process with this worker id took over.
            ServiceError: there was no answer in time; the push may or may not have been applied.
        """
        return self._run(self._send, deadline)

    def run_with_pull(self, deadline: Deadline) -> Answer:
        """Send the gradient until there is an answer, then read the parameters, as `wanted` says.

        Raises the same errors as `run`. The parameters are None if the stream broke after the acknowledgement, or if
        the model was rewound.
        """
        return self._run(self._send_and_receive, deadline)

    def _run(self, send: _Send, deadline: Deadline) -> Answer:
        return self._connection.shielded(lambda: self._run_in_turn(send, deadline))

    def _run_in_turn(self, send: _Send, deadline: Deadline) -> Answer:
        def attempt(_seconds: float) -> Answer:
            return self._attempt(send, deadline)

        self._take_turn(deadline)
        try:
            return self._connection.retry(attempt, what=self._what, deadline=deadline)
        except BaseException as error:
            self._settle(error)
            raise
        finally:
            self._session.push_lock.release()

    def _take_turn(self, deadline: Deadline) -> None:
        while not self._session.push_lock.acquire(timeout=min(POLL_SECONDS, deadline.remaining_seconds())):
            if is_given_up():
                raise interrupted(self._what)
            if not deadline.remaining_seconds():
                raise queued_too_long(self._what, deadline)

    def _settle(self, error: BaseException) -> None:
        """Update the session after a failure, so that the server cannot confuse the next push with this one."""
        detail = detail_of(error)
        if isinstance(error, errors.SessionFencedError):
            self._session.fence(str(error))
        elif detail is not None and detail.sequence_recorded:
            self._session.next_sequence += 1
        else:
            self._session.forget()

    def _attempt(self, send: _Send, deadline: Deadline) -> Answer:
        """Try once. If the server has forgotten the session, open a new one and try again."""
        try:
            return self._attempt_in_session(send, deadline)
        except errors.SessionUnknownError:
            if self._in_doubt:  # the server forgot the answer too: another try could apply the push twice
                raise
            self._session.forget()
            return self._attempt_in_session(send, deadline)

    def _attempt_in_session(self, send: _Send, deadline: Deadline) -> Answer:
        session = self._session
        session.ensure_open(deadline)
        if session.origin.state_id != self._origin.state_id:
            return ack_of_rewind(session.restored), None
        upload: Upload | None = None
        try:
            if self._is_held:
                return self._await_answer(deadline)
            upload = self._upload()
            ack, pulled = send(upload, deadline.remaining_seconds())
        except errors.PushHeldError:
            self._is_held = True
            return self._attempt_in_session(send, deadline)
        except (errors.LatePushError, errors.RoundAbortedError) as error:
            detail = detail_of(error)
            if detail is None or not detail.sequence_recorded:
                raise
            session.next_sequence += 1
            outcome = "late" if isinstance(error, errors.LatePushError) else "aborted"
            return ack_of_missed_round(detail.state, outcome), None
        except ServiceError as error:
            if upload is not None and upload.failure is not None:
                raise upload.failure from error
            if self._is_rewind(error):
                return ack_of_rewind(session.restored), None
            self._in_doubt |= detail_of(error) is None
            raise
        session.next_sequence += 1
        return ack_of(ack), pulled

    def _await_answer(self, deadline: Deadline) -> Answer:
        """Wait for the answer to a push that is in a round."""
        ack = await_answer(self._connection, self._session, self._origin.state_id, deadline.remaining_seconds())
        if ack is None:  # the server has lost it, and promised nothing
            self._is_held = False
            raise errors.ServerUnavailableError(f"{self._what}: the server lost the push while its round was open")
        self._session.next_sequence += 1
        return ack_of(ack), None

    def _is_rewind(self, error: ServiceError) -> bool:
        detail = detail_of(error)
        if not isinstance(error, errors.RewoundError) or detail is None:
            return False
        self._session.notice(detail.state)
        return self._session.origin.state_id != self._origin.state_id

    def _upload(self) -> Upload:
        present, payload = self._gradients.present, self._gradients.payload()
        header = PushHeader(
            model=self._session.model,
            state_id=self._origin.state_id,
            worker_id=self._session.worker_id,
            epoch=self._session.epoch,
            sequence=self._session.next_sequence,
            base_version=self._origin.version,
            dtype=convert.PAYLOAD_DTYPES[self._gradients.dtype],
            tensors=[self._model_arrays.specs[name] for name in present],
            absent=self._gradients.absent,
            total_bytes=sum(array.nbytes for array in payload),
            checksum_kind=XXH3_64,  # type: ignore[arg-type]  # enums are plain numbers at run time
            pull_dtype=self._wanted.dtype_number,
            loss_scale=self._loss_scale,
        )
        report = self._connection.report(self._what)
        return Upload(PushRequest(header=header).SerializeToString(), payload, XXH3_64, report)

    def _send(self, upload: Upload, timeout_seconds: float) -> tuple[PushAck, None]:
        ack = self._send_on_same_host(upload, timeout_seconds)
        return ack or self._connection.push(self._messages(upload), timeout_seconds).ack, None

    def _send_on_same_host(self, upload: Upload, timeout_seconds: float) -> PushAck | None:
        """Push through shared memory, if that is possible; None: nothing was sent."""

        def push(local: LocalSocket) -> bytes:
            return local.push(upload.header, self._gradients.payload(), timeout_seconds, upload.report)

        raw = self._connection.on_same_host(push)
        return None if raw is None else PushResponse.FromString(raw).ack

    def _messages(self, upload: Upload) -> _Messages:
        return upload.whole(self._session.whole_push_bytes) or upload.messages()

    def _send_and_receive(self, upload: Upload, timeout_seconds: float) -> tuple[PushAck, Pulled | None]:
        ack = self._send_on_same_host(upload, timeout_seconds)
        if ack is not None:
            return ack, None  # the caller pulls, which needs no network either
        report = self._connection.report(f"pull of model {self._session.model!r}")
        with closing(self._connection.push_pull(self._messages(upload), timeout_seconds)) as answers:
            ack = _first_ack(answers)
            try:
                return ack, read_parameters(answers, self._model_arrays, self._wanted, report)
            except ServiceError as error:
                _log.info(
                    "%s was applied; receiving the parameters failed (%s), they are pulled again", self._what, error
                )
                return ack, None


def _first_ack(answers: Iterator[Any]) -> PushAck:
    """Return the acknowledgement at the beginning of an answer to PushPull."""
    first = next(answers, None)
    if not isinstance(first, Message) or first.WhichOneof("part") != "ack":
        raise CorruptTransferError("the answer to push_pull does not begin with an acknowledgement")
    ack: PushAck = first.ack  # type: ignore[attr-defined]  # every answer of this call has one
    return ack
