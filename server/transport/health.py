"""The standard health service, on its own threads, so that a busy server still reports that it is alive.

A Watch call lasts until its caller ends it or the server stops. Imports grpc, its health messages and the gate.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import wait

import grpc
from google.protobuf.message import DecodeError
from grpc_health.v1 import health
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

from numba_adam.server.transport.gate import CallPool, Context, Entry, run_on
from numba_adam.server.transport.permits import Permits
from numba_adam.server.transport.watch import Watch

_Send = Callable[[HealthCheckResponse | None], None]
_MOST_CALLS = 256  # without a first message yet
_ARRIVING = 2  # first messages that may arrive at a time
_MOST_WATCHERS = 256
_LONGEST_REQUEST_BYTES = 1024
_PATIENCE_SECONDS = 0.5  # under pressure; an honest client sends its only message at once
_LAST_ANSWER_SECONDS = 1.0


class _Watcher:
    """One Watch call: sends its answers until it ends."""

    def __init__(self, context: Context, send: _Send) -> None:
        self.context = context
        self._send = send
        self._is_over = False
        self._lock = threading.Lock()

    def send(self, *responses: HealthCheckResponse | None) -> None:
        """Send answers. None ends the call; later answers are dropped."""
        with self._lock:
            for response in responses:
                if not self._is_over:
                    self._is_over = response is None
                    self._send(response)


class Health:
    """The health service.

    Args:
        watch: ends stalled calls.
    """

    def __init__(self, watch: Watch) -> None:
        self._watch = watch
        self._pool = CallPool("health", _MOST_CALLS, watch)
        self._messages = Permits(_ARRIVING, watch)
        self._statuses: dict[str, HealthCheckResponse] = {}
        self._watchers: dict[_Watcher, str] = {}
        self._lock = threading.Condition()  # notified when a Watch call ends

    def entries(self) -> dict[str, Entry]:
        """Return the entries of the service's methods."""
        check = grpc.stream_unary_rpc_method_handler(
            run_on(self._pool.executor, self._check), response_serializer=HealthCheckResponse.SerializeToString
        )
        watcher = run_on(self._pool.executor, self._add_watcher)
        watcher.experimental_non_blocking = True  # type: ignore[attr-defined]  # it returns at once, and sends later
        watching = grpc.stream_stream_rpc_method_handler(
            watcher, response_serializer=HealthCheckResponse.SerializeToString
        )
        return {
            f"/{health.SERVICE_NAME}/Check": Entry(self._pool, check),
            f"/{health.SERVICE_NAME}/Watch": Entry(self._pool, watching),
        }

    def set(self, service: str, status: HealthCheckResponse.ServingStatus) -> None:
        """Set the status of a service, before the server starts."""
        with self._lock:
            self._statuses[service] = HealthCheckResponse(status=status)

    def stop(self) -> None:
        """Report NOT_SERVING for every service, and end all Watch calls."""
        with self._lock:
            for service in self._statuses:
                self._statuses[service] = HealthCheckResponse(status=HealthCheckResponse.NOT_SERVING)
            watchers = dict(self._watchers)
        last_answers = [
            self._pool.executor.submit(watcher.send, self._statuses[service], None)
            if service in self._statuses
            else self._pool.executor.submit(watcher.send, None)
            for watcher, service in watchers.items()
        ]
        deadline = time.monotonic() + _LAST_ANSWER_SECONDS
        wait(last_answers, _LAST_ANSWER_SECONDS)
        with self._lock:  # gRPC sends the answers later; to cancel a call before that would take them back
            self._lock.wait_for(lambda: not self._watchers.keys() & watchers.keys(), deadline - time.monotonic())
        for watcher in watchers:  # some clients receive nothing
            watcher.context.cancel()  # type: ignore[no-untyped-call]  # so says the stub

    def _check(self, requests: Iterator[bytes], context: Context) -> HealthCheckResponse:
        self._begin(context, self._pool.release)
        response = self._statuses.get(self._service_of(requests, context))
        if response is None:
            context.abort(grpc.StatusCode.NOT_FOUND, "there is no such service")
            raise AssertionError("abort raises")
        self._watch.begin_last_turn(context, 0)
        return response

    def _add_watcher(self, requests: Iterator[bytes], context: Context, send: _Send) -> None:
        """Send a caller the status of a service now, and again when the server stops."""
        watcher = _Watcher(context, send)
        self._begin(context, lambda: self._forget(watcher))
        try:
            service = self._service_of(requests, context)
            with self._lock:
                has_room = len(self._watchers) < _MOST_WATCHERS
                if has_room:
                    self._watchers[watcher] = service
            if not context.is_active():  # it may have ended before it was added
                self._forget(watcher)
            if not has_room:
                context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "the limit of Watch calls is reached; call Check")
            unknown = HealthCheckResponse(status=HealthCheckResponse.SERVICE_UNKNOWN)
            with self._watch.turn(context, _PATIENCE_SECONDS):
                watcher.send(self._statuses.get(service, unknown))
        finally:
            self._pool.release()  # the call goes on without a thread

    def _begin(self, context: Context, at_end: Callable[[], None]) -> None:
        def over() -> None:
            self._watch.end(context)
            at_end()

        if not context.add_callback(over):
            over()  # it ended before it got a thread

    def _service_of(self, requests: Iterator[bytes], context: Context) -> str:
        """Return the name of the service in a call's first message."""
        self._messages.acquire(context, is_new=True)
        try:
            with self._watch.turn(context, _PATIENCE_SECONDS):
                raw = next(requests, None)
        finally:
            self._messages.release()
        try:
            if raw is not None and len(raw) <= _LONGEST_REQUEST_BYTES:
                return str(HealthCheckRequest.FromString(raw).service)
        except DecodeError:
            pass
        context.abort(grpc.StatusCode.INVALID_ARGUMENT, "send a request of at most 1,024 bytes: a HealthCheckRequest")
        raise AssertionError("abort raises")

    def _forget(self, watcher: _Watcher) -> None:
        with self._lock:
            self._watchers.pop(watcher, None)
            self._lock.notify_all()
