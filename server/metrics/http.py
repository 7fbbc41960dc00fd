"""Answers Prometheus's scrapes: GET /metrics over HTTP. Imports the collector's neighbours and prometheus_client.

A scrape must not disturb the server, so few connections are served at a time, each for a short time. On loopback, a
name other than localhost in the header Host is refused: a web page could have made its own name resolve to 127.0.0.1.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import socketserver
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from typing import Any

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from numba_adam.errors import ConfigurationError
from numba_adam.server.config import ServerConfig, host_and_port, is_loopback
from numba_adam.server.metrics.tls import Contexts
from numba_adam.server.storage.token_file import EVERY_MODEL
from numba_adam.server.transport.access import Guard

_log = logging.getLogger(__name__)
_MOST_CONNECTIONS = 8
_LONGEST_SECONDS = 10.0
PATH = "/metrics"


class MetricsServer:
    """Serves the metrics on threads of its own.

    Args:
        config: the settings; metrics_listen is set.
        guard: checks tokens; None: scrapes need none.
        collector: reads the metrics.

    Raises:
        ConfigurationError: the address or a TLS file cannot be used.
    """

    def __init__(self, config: ServerConfig, guard: Guard | None, collector: Collector) -> None:
        assert config.metrics_listen is not None
        self._listen = config.metrics_listen
        host, port = host_and_port(self._listen, "metrics_listen")
        bare = host.removeprefix("[").removesuffix("]")
        self.registry = CollectorRegistry(auto_describe=False)
        for standard in (ProcessCollector, PlatformCollector, GCCollector):
            standard(registry=self.registry)
        self.registry.register(collector)
        is_local = is_loopback(bare)
        self._server = self._bound(bare, port, self.registry, guard, is_local=is_local)
        if not is_local:
            self._server.contexts = self._contexts(config)
        scheme = "http" if is_local else "https"
        self.address = f"{host}:{self._server.server_address[1]}"
        """HOST:PORT."""

        self._thread = threading.Thread(target=self._server.serve_forever, name="numba-adam-metrics", daemon=True)
        self._thread.start()
        _log.info("metrics on %s://%s%s", scheme, self.address, PATH)

    def stop(self) -> None:
        """Stop to serve; connections in progress end within seconds."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _bound(
        self, host: str, port: int, registry: CollectorRegistry, guard: Guard | None, *, is_local: bool
    ) -> _Server:
        try:
            family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            return _Server(family, address, registry, guard, is_local=is_local)
        except OSError as error:
            raise ConfigurationError(
                f"metrics_listen={self._listen!r}: it cannot be used ({error.strerror}); take another address or port"
            ) from error

    def _contexts(self, config: ServerConfig) -> Contexts:
        try:
            return Contexts(config)
        except OSError as error:
            self._server.server_close()
            raise ConfigurationError(
                f"metrics_listen={self._listen!r}: tls_certificate or tls_key cannot be used ({error})"
            ) from error


class _Server(socketserver.ThreadingTCPServer):
    """Accepts connections; closes those beyond the limit at once."""

    allow_reuse_address = True
    daemon_threads = True
    contexts: Contexts | None = None

    def __init__(
        self,
        family: socket.AddressFamily,
        address: Any,
        registry: CollectorRegistry,
        guard: Guard | None,
        *,
        is_local: bool,
    ) -> None:
        self.address_family = family
        self.registry, self.guard, self.is_local = registry, guard, is_local
        self._places = threading.BoundedSemaphore(_MOST_CONNECTIONS)
        super().__init__(address, _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._places.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except RuntimeError:  # no thread can be started
            self._places.release()
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer one connection within the time limit. A timeout for each read would not end a slow peer."""
        with request.dup() as same:  # TLS takes the socket over
            ending = threading.Timer(_LONGEST_SECONDS, _cut, (same,))
            ending.daemon = True
            ending.start()
            try:
                super().process_request_thread(request, client_address)
            finally:
                ending.cancel()
                self._places.release()

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Answer one connection. Peers that break off, or speak no TLS, are not our errors."""
        with contextlib.suppress(OSError):
            if self.contexts is None:
                super().finish_request(request, client_address)
                return
            with self.contexts.current().wrap_socket(request, server_side=True) as encrypted:
                super().finish_request(encrypted, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002 - the base class's arguments
        _log.exception("metrics: a scrape failed")


class _Handler(BaseHTTPRequestHandler):
    """Answers one request."""

    server: _Server
    server_version, sys_version = "numba-adam", ""

    def do_GET(self) -> None:
        """Answer a scrape."""
        if self.server.is_local and not _is_name_of_loopback(self.headers.get("Host", "localhost")):
            self._answer(HTTPStatus.FORBIDDEN, "the header Host must be localhost or a loopback address\n")
        elif (refusal := self._refusal()) is not None:
            self._answer(*refusal)
        elif self.path.partition("?")[0] != PATH:
            self._answer(HTTPStatus.NOT_FOUND, f"the metrics are at {PATH}\n")
        else:
            encode, content_type = choose_encoder(self.headers.get("Accept", ""))
            self._send(HTTPStatus.OK, encode(self.server.registry), content_type)

    def log_message(self, format: str, *values: Any) -> None:  # noqa: A002 - the base class's names
        """Log nothing: a scrape comes every few seconds."""

    def _refusal(self) -> tuple[HTTPStatus, str] | None:
        """Return why the scrape is refused; None if its token allows it."""
        guard = self.server.guard
        if guard is None:
            return None
        metadata = [("authorization", value) for value in self.headers.get_all("Authorization", [])]
        why = guard.refuse(metadata)
        if why is not None:
            return HTTPStatus.UNAUTHORIZED, f"{why}\n"
        if not guard.visible(metadata)(EVERY_MODEL):
            return HTTPStatus.FORBIDDEN, "the token may not pull every model; make one with --pull '*'\n"
        return None

    def _answer(self, status: HTTPStatus, text: str) -> None:
        self._send(status, text.encode(), "text/plain; charset=utf-8")

    def _send(self, status: HTTPStatus, body: bytes, content_type: str) -> None:
        self.send_response(status)
        if status is HTTPStatus.UNAUTHORIZED:
            self.send_header("WWW-Authenticate", "Bearer")
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def _is_name_of_loopback(host: str) -> bool:
    bare = host[: host.rindex("]") + 1] if "]" in host else host.partition(":")[0]
    return is_loopback(bare.removeprefix("[").removesuffix("]").lower())


def _cut(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
