"""The standard health service, answered on a thread of its own, whose watchers do not hold up the end of the server.

A server all of whose threads are busy with transfers is not dead, and whoever watches over it must not take it for
that. A watch lasts for as long as its caller wants, and a server that stops waits for the calls in flight. Imports
grpc's health service.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent import futures
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2_grpc
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
        self._executor = futures.ThreadPoolExecutor(1, thread_name_prefix="numba-adam-health")

    def add_to(self, server: grpc.Server) -> None:
        """Have a server answer for it, on a thread that the other calls cannot take."""
        for name in ("Check", "Watch"):
            setattr(self, name, self._on_own_thread(getattr(self, name)))
        health_pb2_grpc.add_HealthServicer_to_server(self, server)

    def stop(self) -> None:
        """End the thread."""
        self._executor.shutdown()

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

    def _on_own_thread(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """Return a call that gRPC runs on this service's thread, which it takes from an attribute of the function."""

        def run(*args: Any) -> Any:
            return call(*args)

        run.experimental_thread_pool = self._executor  # type: ignore[attr-defined]
        run.experimental_non_blocking = getattr(call, "experimental_non_blocking", False)  # type: ignore[attr-defined]
        return run

    def _forget(self, watcher: _Watcher) -> None:
        with self._watchers_lock:
            self._watchers.discard(watcher)
