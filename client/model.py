"""A worker's handle on one model. May import NumPy and its neighbours here."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future

import numpy as np

from numba_adam.client.ack import Ack
from numba_adam.client.info import ModelInfo, model_info
from numba_adam.client.layout import Parameters, layout_of
from numba_adam.client.pull import Pulled, pull
from numba_adam.client.push import Answer, Push
from numba_adam.client.sender import Sender
from numba_adam.client.session import Session
from numba_adam.client.transport.connection import Connection
from numba_adam.client.transport.retry import Deadline
from numba_adam.errors import InvalidRequestError, ServiceError
from numba_adam.interop import count_writes
from numba_adam.ps.v1.parameter_service_pb2 import GetModelRequest, GetModelResponse

_log = logging.getLogger(__name__)

_WAITING = 4  # pushes that push_async queues behind the one under way: each keeps its gradients alive
_LARGEST_VERSION = (1 << 64) - 1  # what travels
_Run = Callable[[Push, Deadline], Answer]


class Model:
    """One model on the server: pull its parameters, push gradients.

    Made by `ParameterClient.create_model` and `open_model`. Safe to use from several threads; pushes of one handle
    take effect in the order in which they were called.
    """

    def __init__(self, connection: Connection, session: Session, info: ModelInfo) -> None:
        self._connection, self._session, self._info = connection, session, info
        self._layout = layout_of(info)
        self._listeners: list[Callable[[int], None]] = []
        self._sender: Sender | None = None
        self._sender_lock = threading.Lock()
        self._prefetched: Pulled | None = None  # what the pull after a rewind brought, for the caller's next pull
        self._last_ack: Ack | None = None
        self._misfit = ""  # why this handle cannot be used any more; empty: it can

    def __repr__(self) -> str:
        return f"<Model {self.name!r} at version {self.version}, worker {self._session.worker_id!r}>"

    @property
    def name(self) -> str:
        """The model's name."""
        return self._info.name

    @property
    def spec(self) -> ModelInfo:
        """Its arrays, hyperparameters and mode, and where it stood when it was opened."""
        return self._info

    @property
    def version(self) -> int:
        """Version of the parameters pulled last; before the first pull, where the model stood when it was opened."""
        return self._session.origin.version

    @property
    def state_id(self) -> str:
        """Names the line of history that `version` belongs to; new after each rollback of the server."""
        return self._session.origin.state_id

    @property
    def last_ack(self) -> Ack | None:
        """The answer to the last push or push_pull; None before the first."""
        return self._last_ack

    def pull(self, min_version: int | None = None, out: Mapping[str, object] | None = None) -> Parameters:
        """Return the parameters of one version, whole.

        Args:
            min_version: oldest version that will do, such as an ack's; the call waits for it. None: any.
            out: arrays to write them into, by name, with the model's shapes and dtype; on an error they hold neither
                old nor new values. None: fresh arrays, which are views of one flat vector.

        Returns:
            A dict of name -> NumPy array; `out`'s own memory where that was given.

        Raises:
            NamesError, ArrayError: `out` does not fit the model.
            InvalidRequestError: `min_version` is no whole number.
            DeadlineExceededError: `min_version` did not come in time.
            ServiceError: the call failed.
        """
        self._check_fit()
        places = None if out is None else self._layout.check_out(out)
        wanted = _checked_version(min_version)
        if places is None and not wanted and (ready := self._take_prefetched()) is not None:
            return ready.parameters
        try:
            pulled = self._pull(wanted, places)
        finally:  # a pull that fails may have begun to write
            count_writes(list((out or {}).values()))
        self._report_rewinds(prefetch=False)
        return pulled.parameters

    def push(self, grads: Mapping[str, object]) -> Ack:
        """Apply a gradient, exactly once however often it must be sent.

        Where push_async is in use, the call waits for the pushes given before it, within its own time.

        Args:
            grads: an array for each of the model's names, of its shape and dtype; None for an array without a
                gradient, which then does not change. They must not change before the call returns.

        Returns:
            The server's answer. Its `applied` is False when the state that the gradient was meant for is gone:
            `on_rewind` says more.

        Raises:
            NamesError, ArrayError: the gradients do not fit the model; nothing was sent.
            NonFiniteError: a gradient holds a NaN or an infinity; nothing was changed.
            SessionFencedError: another process with this worker id has taken over.
            ServiceError: there was no answer in time; the push may or may not have been applied, unless the message
                says that it was not sent.
        """
        return self._run(self._prepare(grads), Push.run)[0]

    def push_async(self, grads: Mapping[str, object]) -> Future[Ack]:
        """Apply a gradient in the background; as `push`, but for when it returns.

        At most four wait behind the one under way; beyond that the call waits for room. The time of a push counts
        from when its turn comes. The arrays must not change until the future is done. Gradients that do not fit the
        model are refused at once. In a forked child, futures that were not done have a ServiceError for result.
        """
        push = self._prepare(grads)
        return self._connection.shielded(
            lambda: self._ensure_sender().submit(
                lambda: self._carry_out(push, Push.run, self._connection.deadline())[0]
            )
        )

    def push_pull(self, grads: Mapping[str, object]) -> Parameters:
        """Apply a gradient and return parameters at least as new, in one round trip; raises as `push` does.

        `last_ack` is the push's answer.
        """
        ack, pulled = self._run(self._prepare(grads), Push.run_with_pull)
        if pulled is not None:
            return pulled.parameters
        return self.pull(min_version=ack.version if ack.applied else None)

    def on_rewind(self, callback: Callable[[int], None]) -> None:
        """Call back with the version that the model went back to, should the server lose unsaved steps.

        Called once for each rewind, in the thread of the call that noticed it, when the parameters of the restored
        state have been pulled: the next `pull` returns them.
        """
        self._connection.check_owner(f"model {self.name!r}")
        self._listeners.append(callback)

    def close(self, patience_seconds: float) -> None:
        """End push_async: wait so long for what is queued, then cancel what has not begun.

        In a forked child there is nothing to end, and the locks are as the parent's threads held them.
        """
        if self._connection.is_inherited():
            return
        with self._sender_lock:
            sender = self._sender
        if sender is not None:
            self._connection.shielded(lambda: sender.close(patience_seconds))

    # --- pushes, in the order of their calls --------------------------------------------------------------------

    def _prepare(self, grads: Mapping[str, object]) -> Push:
        """Check gradients, and fix what they were computed from: later pulls do not change that."""
        self._check_fit()
        gradients = self._layout.check_gradients(grads)
        return Push(self._connection, self._session, self._layout, gradients, self._session.origin)

    def _run(self, push: Push, run: _Run) -> Answer:
        """Carry a push out now; behind those that are queued, where push_async is in use."""
        deadline = self._connection.deadline()
        with self._sender_lock:
            sender = self._sender
        if sender is None or sender.is_current_thread():
            return self._carry_out(push, run, deadline)
        return self._connection.shielded(lambda: sender.run(lambda: self._carry_out(push, run, deadline), deadline))

    def _carry_out(self, push: Push, run: _Run, deadline: Deadline) -> Answer:
        ack, pulled = run(push, deadline)
        self._last_ack = ack
        if ack.applied:
            self._prefetched = None  # a pull after a push shows that push
        if pulled is not None:
            self._session.pulled(pulled.state)
        self._report_rewinds(prefetch=True)
        return ack, pulled

    def _ensure_sender(self) -> Sender:
        with self._sender_lock:
            if self._sender is None:
                self._sender = Sender(f"push to model {self.name!r}", _WAITING)
                self._connection.on_fork(self._sender.abandon)
            return self._sender

    # --- pulls and rewinds --------------------------------------------------------------------------------------

    def _pull(self, min_version: int, out: Parameters | None) -> Pulled:
        return pull(
            self._connection,
            self._session,
            self._layout,
            min_version=min_version,
            out=out,
            deadline=self._connection.deadline(),
        )

    def _take_prefetched(self) -> Pulled | None:
        """Return what the pull after a rewind brought, once, unless the model went back again since."""
        ready, self._prefetched = self._prefetched, None
        return ready if ready is not None and ready.state.state_id == self.state_id else None

    def _report_rewinds(self, *, prefetch: bool) -> None:
        """Tell the listeners of rewinds that nobody has been told of yet."""
        for state in self._session.take_rewinds():
            self._check_arrays()
            if prefetch:
                self._prefetch()
            for callback in tuple(self._listeners):
                callback(state.first_version)

    def _check_arrays(self) -> None:
        """See that the model still has the arrays of this handle; what looks like a rewind may be another model.

        Raises:
            InvalidRequestError: it was deleted and created anew with others, whose bytes would be taken for these.
        """
        what = f"open model {self.name!r}"
        try:
            answer = self._connection.call("GetModel", GetModelRequest(model=self.name), GetModelResponse, what=what)
        except ServiceError as error:  # the listeners must hear of the rewind all the same
            _log.warning("model %r went back, and could not be looked at: %s", self.name, error)
            return
        if not self._info.has_arrays_of(model_info(answer.model)):
            self._misfit = (
                f"model {self.name!r}: it was deleted and created anew with other arrays than this handle knows; "
                "open it again"
            )
        self._check_fit()

    def _check_fit(self) -> None:
        self._connection.check_owner(f"model {self.name!r}")
        if self._misfit:
            raise InvalidRequestError(self._misfit)

    def _prefetch(self) -> None:
        try:
            self._prefetched = self._pull(0, None)
        except ServiceError as error:  # the listeners must hear of the rewind all the same
            _log.warning("model %r went back, and its parameters could not be pulled: %s", self.name, error)


def _checked_version(min_version: int | None) -> int:
    """Return the version to wait for; 0: any."""
    if min_version is None:
        return 0
    if not isinstance(min_version, (int, np.integer)) or not 0 <= min_version <= _LARGEST_VERSION:
        raise InvalidRequestError(
            f"min_version={min_version!r}: it must be a whole number, at least 0 and at most {_LARGEST_VERSION}"
        )
    return int(min_version)
