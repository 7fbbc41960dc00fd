"""AwaitPush: a call that waits, without a thread, until a push in a round has its answer.

Its thread is free once its only message is there. The thread that answers all such calls sends the answer. Imports
grpc, the service and the answers.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
from google.protobuf.message import DecodeError

from numba_adam.errors import InvalidRequestError, NumbaAdamError, PushHeldError, ServerUnavailableError
from numba_adam.ps.errors import DETAIL_KEY, to_status
from numba_adam.ps.v1 import parameter_service_pb2 as pb
from numba_adam.server.model.push_key import PushKey
from numba_adam.server.runtime.answers import Waiter
from numba_adam.server.runtime.launcher import use_threads
from numba_adam.server.runtime.runtime import Runtime
from numba_adam.server.transport import messages
from numba_adam.server.transport.access import Guard
from numba_adam.server.transport.gate import CallPool, Context, Entry, run_on
from numba_adam.server.transport.watch import SHORT_PATIENCE_SECONDS, Watch

_MOST_CALLS = 4096
_THREADS = 8
_LONGEST_REQUEST_BYTES = 4096
_Send = Callable[[bytes | None], None]


class AwaitPush:
    """The calls of the method.

    Args:
        runtime: has the models.
        watch: ends calls that send no message.
        guard: checks the tokens of calls; None: they need none.
        note_refusal: counts an error: its reason, and the name of the call's token.
    """

    def __init__(
        self, runtime: Runtime, watch: Watch, guard: Guard | None, note_refusal: Callable[[Exception, Context], None]
    ) -> None:
        self._runtime, self._watch, self._guard, self._note_refusal = runtime, watch, guard, note_refusal
        executor = ThreadPoolExecutor(_THREADS, "numba-adam-await", lambda: use_threads(1))
        self._pool = CallPool("await", _MOST_CALLS, watch, executor)

    def entry(self) -> Entry:
        """Return the method's entry."""
        run = run_on(self._pool.executor, self._begin)
        run.experimental_non_blocking = True  # type: ignore[attr-defined]  # it returns at once, and sends later
        return Entry(self._pool, grpc.stream_stream_rpc_method_handler(run))

    def _begin(self, requests: Iterator[bytes], context: Context, send: _Send) -> None:
        """Receive the request, and leave the call to the thread that answers."""
        call = _Call(context, send)
        waiters: list[Waiter] = []

        def over() -> None:
            self._watch.end(context)
            self._pool.release()
            call.end()
            for waiter in waiters:
                self._runtime.answers.forget(waiter)

        if not context.add_callback(over):
            over()  # it ended before it got a thread
            return
        try:
            request = self._request(requests, context)
            model = self._runtime.registry.get(request.model)
            key = PushKey(request.state_id, request.worker_id, request.epoch, request.sequence)
        except Exception as error:
            self._refuse(call, error)
            return

        def answer() -> None:
            try:
                pushed = self._runtime.pushes.answer(model, key)
            except PushHeldError:
                self._refuse(call, ServerUnavailableError("the server is stopping; try again when it is back"))
            except Exception as error:
                self._refuse(call, error)
            else:
                ack = None if pushed is None else messages.pushed_to_proto(pushed)
                call.answer(pb.AwaitPushResponse(ack=ack).SerializeToString())

        waiter = Waiter(model, key, answer)
        waiters.append(waiter)
        self._runtime.answers.add(waiter)
        if not context.is_active():
            self._runtime.answers.forget(waiter)

    def _request(self, requests: Iterator[bytes], context: Context) -> pb.AwaitPushRequest:
        """Return the request of a call that may make it."""
        with self._watch.turn(context, SHORT_PATIENCE_SECONDS):
            raw = next(requests, None)
        if raw is None or len(raw) > _LONGEST_REQUEST_BYTES:
            raise InvalidRequestError(f"send one AwaitPushRequest of at most {_LONGEST_REQUEST_BYTES} bytes")
        try:
            request = pb.AwaitPushRequest.FromString(raw)
        except DecodeError as error:
            raise InvalidRequestError("the request cannot be parsed: send an AwaitPushRequest") from error
        if self._guard is not None:
            self._guard.check(context.invocation_metadata(), "AwaitPush", request)
        return request

    def _refuse(self, call: _Call, error: Exception) -> None:
        if isinstance(error, NumbaAdamError):
            self._note_refusal(error, call.context)
        call.refuse(error)


class _Call:
    """One call, which is answered once."""

    def __init__(self, context: Context, send: _Send) -> None:
        self.context, self._send = context, send
        self._is_over = False
        self._lock = threading.Lock()

    def end(self) -> None:
        """Note that the call has ended."""
        self._is_over = True

    def answer(self, message: bytes) -> None:
        """Send the answer."""
        with self._lock:
            if not self._is_over:
                self._is_over = True
                self._send(message)
                self._send(None)

    def refuse(self, error: Exception) -> None:
        """End the call with an error's status."""
        code, message, detail = to_status(error)
        with self._lock:
            if not self._is_over:
                self._is_over = True
                self.context.set_trailing_metadata(((DETAIL_KEY, detail.SerializeToString()),))
                self.context.set_code(code)
                self.context.set_details(message)
                self._send(None)
