"""The standard health service, made such that those who watch it do not hold up the end of the server.

A watch lasts for as long as its caller wants, and a server that stops waits for the calls in flight. Imports grpc's
health service.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import grpc
from grpc_health.v1 import health
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

_Send = Callable[[HealthCheckResponse | None], None]


class _Watcher:
    """Passes one watcher's answers on until it is ended."""

    def __init__(self, send: _Send) -> None:
        self._send = send
        self._is_over = False
        self._lock = threading.Lock()

    def send(self, response: HealthCheckResponse | None) -> None:
        """Send an answer; None ends the call, and what comes later goes nowhere."""
        with self._lock:
            if not self._is_over:
                self._is_over = response is None
                self._send(response)


class Health(health.HealthServicer):
    """Says whether the server serves."""

    def __init__(self) -> None:
        super().__init__()
        self._watchers: set[_Watcher] = set()
        self._watchers_lock = threading.Lock()

    def Watch(  # type: ignore[override]  # noqa: N802 - gRPC's name; gRPC always gives the callback
        self,
        request: HealthCheckRequest,
        context: grpc.ServicerContext,
        send_response_callback: _Send,
    ) -> None:
        """Tell a caller of each change, until it has heard enough or the server stops."""
        watcher = _Watcher(send_response_callback)
        with self._watchers_lock:
            self._watchers.add(watcher)
        context.add_callback(lambda: self._forget(watcher))
        super().Watch(request, context, watcher.send)

    def end_watches(self) -> None:
        """End the calls of all who watch."""
        with self._watchers_lock:
            watchers = tuple(self._watchers)
        for watcher in watchers:
            watcher.send(None)

    def _forget(self, watcher: _Watcher) -> None:
        with self._watchers_lock:
            self._watchers.discard(watcher)
