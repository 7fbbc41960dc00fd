"""The standard health service, answered on threads of its own.

A server all of whose threads are busy is not dead, and whoever watches over it must not take it for that. A watch
lasts for as long as its caller wants; a server that stops ends it. Imports grpc, its health messages and the gate.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import wait

import grpc
from google.protobuf.message import DecodeError
from grpc_health.v1 import health
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

from numba_adam.server.transport.gate import Context, Entry, Lane, on
from numba_adam.server.transport.permits import Permits
from numba_adam.server.transport.watch import Watch

_Send = Callable[[HealthCheckResponse | None], None]
_MOST_CALLS = 256  # that have not said what they want
_ARRIVING = 2  # first messages that may be on their way in
_MOST_WATCHERS = 256
_LONGEST_REQUEST_BYTES = 1024
_PATIENCE_SECONDS = 0.5  # while others wait: whoever asks sends all it has to say at once
_FAREWELL_SECONDS = 1.0


class _Watcher:
    """Passes one watcher's answers on until it is ended."""

    def __init__(self, context: Context, send: _Send) -> None:
        self.context = context
        self._send = send
        self._is_over = False
        self._lock = threading.Lock()

    def send(self, *responses: HealthCheckResponse | None) -> None:
        """Send answers; None ends the call, and what comes later goes nowhere."""
        with self._lock:
            for response in responses:
                if not self._is_over:
                    self._is_over = response is None
                    self._send(response)


class Health:
    """Says whether the server serves.

    Args:
        watch: ends calls that keep the server waiting.
    """

    def __init__(self, watch: Watch) -> None:
        self._watch = watch
        self._lane = Lane("health", _MOST_CALLS, watch)
        self._messages = Permits(_ARRIVING, watch)
        self._statuses: dict[str, HealthCheckResponse] = {}
        self._watchers: dict[_Watcher, str] = {}
        self._lock = threading.Lock()

    def entries(self) -> dict[str, Entry]:
        """Return how the calls of the service are taken."""
        check = grpc.stream_unary_rpc_method_handler(
            on(self._lane.executor, self._check), response_serializer=HealthCheckResponse.SerializeToString
        )
        watcher = on(self._lane.executor, self._add_watcher)
        watcher.experimental_non_blocking = True  # type: ignore[attr-defined]  # it returns at once, and sends later
        watching = grpc.stream_stream_rpc_method_handler(
            watcher, response_serializer=HealthCheckResponse.SerializeToString
        )
        return {
            f"/{health.SERVICE_NAME}/Check": Entry(self._lane, check),
            f"/{health.SERVICE_NAME}/Watch": Entry(self._lane, watching),
        }

    def set(self, service: str, status: HealthCheckResponse.ServingStatus) -> None:
        """Say how a service is, before anyone asks."""
        with self._lock:
            self._statuses[service] = HealthCheckResponse(status=status)

    def stop(self) -> None:
        """Say that nothing is served any more, and end the calls of all who watch, willing or not."""
        with self._lock:
            for service in self._statuses:
                self._statuses[service] = HealthCheckResponse(status=HealthCheckResponse.NOT_SERVING)
            watchers = dict(self._watchers)
        farewells = [
            self._lane.executor.submit(watcher.send, self._statuses[service], None)
            if service in self._statuses
            else self._lane.executor.submit(watcher.send, None)
            for watcher, service in watchers.items()
        ]
        wait(farewells, _FAREWELL_SECONDS)
        for watcher in watchers:  # one that takes nothing
            watcher.context.cancel()  # type: ignore[no-untyped-call]  # so says the stub

    def _check(self, requests: Iterator[bytes], context: Context) -> HealthCheckResponse:
        self._begin(context, self._lane.leave)
        response = self._statuses.get(self._service_of(requests, context))
        if response is None:
            context.abort(grpc.StatusCode.NOT_FOUND, "there is no such service")
            raise AssertionError("abort raises")
        self._watch.leave(context, 0)
        return response

    def _add_watcher(self, requests: Iterator[bytes], context: Context, send: _Send) -> None:
        """Tell a caller how a service is, and of the end."""
        watcher = _Watcher(context, send)
        self._begin(context, lambda: self._forget(watcher))
        try:
            service = self._service_of(requests, context)
            with self._lock:
                has_room = len(self._watchers) < _MOST_WATCHERS
                if has_room:
                    self._watchers[watcher] = service
            if not context.is_active():  # it may have ended before it was in the list
                self._forget(watcher)
            if not has_room:
                context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many watch already; call Check")
            unknown = HealthCheckResponse(status=HealthCheckResponse.SERVICE_UNKNOWN)
            with self._watch.turn(context, _PATIENCE_SECONDS):
                watcher.send(self._statuses.get(service, unknown))
        finally:
            self._lane.leave()  # it lasts, but takes no thread

    def _begin(self, context: Context, at_end: Callable[[], None]) -> None:
        def over() -> None:
            self._watch.end(context)
            at_end()

        if not context.add_callback(over):
            over()  # it was over before it had a thread

    def _service_of(self, requests: Iterator[bytes], context: Context) -> str:
        """Return the service that a caller names in its first message."""
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
        context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the request is no HealthCheckRequest of at most 1,024 bytes")
        raise AssertionError("abort raises")

    def _forget(self, watcher: _Watcher) -> None:
        with self._lock:
            self._watchers.pop(watcher, None)
