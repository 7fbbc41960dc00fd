"""`Server`: a parameter server within this process, for programs that embed it and for tests.

Imports grpc and its health and reflection services.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from typing import TYPE_CHECKING

import grpc
from grpc_health.v1 import health, health_pb2
from grpc_reflection.v1alpha import reflection

from numba_adam.errors import ConfigurationError
from numba_adam.installing import advice
from numba_adam.ps import loopback_token
from numba_adam.ps.local import socket_path
from numba_adam.server.config import WAITING_CALLS, ServerConfig, host_and_port
from numba_adam.server.runtime.runtime import Runtime
from numba_adam.server.storage.keys import read_keys
from numba_adam.server.storage.token_file import new_secret
from numba_adam.server.transport.access import Guard
from numba_adam.server.transport.audit import Audit
from numba_adam.server.transport.descriptors import connection_limit
from numba_adam.server.transport.gate import Calls, Gate
from numba_adam.server.transport.health import Health
from numba_adam.server.transport.listen import endpoints
from numba_adam.server.transport.local import LocalListener, is_supported
from numba_adam.server.transport.local_connection import Serving
from numba_adam.server.transport.reflection import reflection_entries
from numba_adam.server.transport.service import SERVICE_NAME, ParameterService, entries
from numba_adam.server.transport.tls import tls_files
from numba_adam.server.transport.watch import Watch

if TYPE_CHECKING:
    from collections.abc import Collection

    from numba_adam.server.metrics.http import MetricsServer
    from numba_adam.server.metrics.telemetry import Telemetry

_log = logging.getLogger(__name__)
_HANDSHAKE_MILLISECONDS = 20_000  # until the end of the handshake of TLS and HTTP/2; gRPC's default is two minutes
_LARGEST_FRAME_BYTES = (1 << 24) - 1  # HTTP/2's own limit
_STOP_TRY_SECONDS = 5.0


class Server:
    """A parameter server; a context manager that starts and stops it.

    Args:
        config: the settings.

    Raises:
        ConfigurationError: the data folder, the address, a TLS file or the key file cannot be used.
        CorruptSnapshotError: a model has snapshots, and all are damaged.
        SnapshotError: the keys refuse a file.
    """

    def __init__(self, config: ServerConfig) -> None:
        self._config = config
        self._tls = tls_files(config)
        self._keys = read_keys(config.snapshot_key_file, config.data_dir)
        guard = Guard(config.data_dir.resolve(), self._keys) if config.requires_tokens else None
        if guard is not None and not config.is_local:
            guard.check_usable(config.listen)
        self._own_token = new_secret() if guard is not None and config.is_local else ""
        if guard is not None and self._own_token:
            guard.accept(self._own_token)
        self._runtime = Runtime(config, self._keys)
        self._watch = Watch(config.stall_seconds)
        self._health = Health(self._watch)
        self._calls = Calls(
            self._runtime.pool, self._watch, config.rpc_threads, WAITING_CALLS, config.largest_message_bytes
        )
        parameters = ParameterService(self._runtime, self._watch, guard, Audit(config.data_dir.resolve(), guard))
        self._refusals = parameters.refusals
        service = entries(parameters, self._calls)
        names = (SERVICE_NAME, health.SERVICE_NAME, reflection.SERVICE_NAME)
        others = {**self._health.entries(), **reflection_entries(names, self._calls)}
        is_open = tuple(self._health.entries()) if config.health_token == "off" else ()
        self._gate = Gate({**service, **others}, guard, self._refusals, is_open)
        self._telemetry = self._measure({**service, **others}) if config.opentelemetry == "on" else None
        self._grpc = grpc.server(self._calls.pool.executor, [self._gate], options=_options(config))
        self.address = ""
        """HOST:PORT, once started."""

        self._serving = Serving(parameters, self._calls, self._runtime, config.stall_seconds)
        self._local: LocalListener | None = None
        self._metrics: MetricsServer | None = None
        self._stopping = threading.Lock()
        self._is_clean: bool | None = None  # until it has stopped

    def start(self) -> None:
        """Start to serve.

        Raises:
            ConfigurationError: the address is taken.
        """
        host, _ = host_and_port(self._config.listen)
        try:
            endpoints(self._config.listen)  # a taken port is refused before anything is compiled
            self._runtime.start()
            self._metrics = self._serve_metrics()
            port = self._bind()
        except ConfigurationError:
            if self._metrics is not None:
                self._metrics.stop()
            self._end_telemetry()
            self._runtime.stop()
            raise
        self._publish_token(port)  # before the first call
        self._listen_locally(port)
        self._grpc.start()
        self._watch.start()
        for name in ("", SERVICE_NAME):
            self._health.set(name, health_pb2.HealthCheckResponse.SERVING)
        self.address = f"{host}:{port}"
        how = "without TLS" if self._tls is None else "with TLS"
        _log.info("serving on %s %s, data in %s", self.address, how, self._config.data_dir)

    def stop(self) -> bool:
        """Save every model, finish the calls in flight, save their changes, and release the data folder.

        A second call changes nothing, waits for the first one, and returns the same.

        Returns:
            True if every model's last state is on disk.
        """
        with self._stopping:
            if self._is_clean is None:
                self._is_clean = self._stop()
            return self._is_clean

    def _stop(self) -> bool:
        """Stop, for the first time."""
        if not self.address:  # it never started
            self._end_telemetry()
            return self._runtime.stop()
        self._health.stop()
        self._runtime.begin_stop()
        deadline = time.monotonic() + self._config.stop_deadline_seconds
        self._grpc.stop(self._config.stop_deadline_seconds)  # no new calls; does not wait
        if self._local is not None:
            self._local.begin_stop()
        self._runtime.save()  # first: a supervisor may kill this process while calls finish
        self._calls.in_flight.wait_until_none(deadline - time.monotonic())
        while not self._grpc.stop(0).wait(_STOP_TRY_SECONDS):  # idle connections would delay the first stop
            _log.warning("gRPC has not stopped yet")
        if self._local is not None:
            self._local.stop()
        self._gate.stop()
        self._calls.requests.stop()
        self._watch.stop()
        is_clean = self._runtime.stop()
        if self._metrics is not None:
            self._metrics.stop()
        self._end_telemetry()
        if self._own_token:
            loopback_token.remove(self._token_file, self._own_token)
        _log.info("stopped")
        return is_clean

    def __enter__(self) -> Server:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def metrics_address(self) -> str:
        """HOST:PORT of the metrics, once started; empty without them."""
        return "" if self._metrics is None else self._metrics.address

    def _serve_metrics(self) -> MetricsServer | None:
        """Start to answer scrapes, if the settings ask for it.

        Raises:
            ConfigurationError: prometheus_client is missing, or the address cannot be used.
        """
        config = self._config
        if config.metrics_listen is None:
            return None
        try:
            from numba_adam.server.metrics.collector import ServerCollector
            from numba_adam.server.metrics.http import MetricsServer
        except ModuleNotFoundError as error:
            raise ConfigurationError(
                f"metrics_listen={config.metrics_listen!r}: it needs the package prometheus_client, which is not "
                f"installed; {advice('metrics')}"
            ) from error
        guard = Guard(config.data_dir.resolve(), self._keys) if config.metrics_need_token else None
        if guard is not None:
            guard.check_usable(config.metrics_listen)
        collector = ServerCollector(self._runtime, self._refusals, lambda: self._calls.in_flight.count)
        return MetricsServer(config, guard, collector)

    def _measure(self, methods: Collection[str]) -> Telemetry:
        """Measure the calls for OpenTelemetry.

        Raises:
            ConfigurationError: its packages are missing, or the process measures already.
        """
        try:
            from numba_adam.server.metrics.telemetry import Telemetry

            return Telemetry(methods)
        except ModuleNotFoundError as error:
            self._runtime.stop()
            raise ConfigurationError(
                f"opentelemetry='on': it needs the module {error.name!r}, which is not installed; "
                f"{advice('opentelemetry')}"
            ) from error
        except ConfigurationError:
            self._runtime.stop()
            raise

    def _end_telemetry(self) -> None:
        if self._telemetry is not None:
            self._telemetry.stop()
            self._telemetry = None

    def _publish_token(self, port: int) -> None:
        """Write the token of this server where clients of the same user find it."""
        if not self._own_token:
            return
        self._token_file = loopback_token.file(os.environ, port)
        try:
            loopback_token.write(self._token_file, self._own_token)
        except OSError as error:
            _log.warning(
                "%s cannot be written (%s), so clients need a token of numba-adam token make; set XDG_CONFIG_HOME to a "
                "folder of this user, also for clients",
                self._token_file,
                error.strerror,
            )
        else:
            _log.info("clients of this user find their token in %s", self._token_file)

    def _listen_locally(self, port: int) -> None:
        """Listen on the Unix socket for workers of this user, where this system and the settings allow it."""
        if self._tls is not None or not self._config.is_local or not is_supported():
            return
        path = socket_path(os.environ, port)
        try:
            self._local = LocalListener(path, self._serving, self._config.most_calls)
        except OSError as error:
            _log.info("workers of this machine use the network, %s cannot be made: %s", path, error)
            return
        self._local.start()

    def _bind(self) -> int:
        """Bind the port at every address to listen on; return the port.

        Raises:
            ConfigurationError: an address cannot be used.
        """
        for endpoint in endpoints(self._config.listen):
            try:
                if self._tls is None:
                    port = self._grpc.add_insecure_port(endpoint)
                else:
                    port = self._grpc.add_secure_port(endpoint, self._tls.credentials())
            except RuntimeError as error:  # another program took it meanwhile
                self._grpc.stop(None)
                raise ConfigurationError(
                    f"listen={self._config.listen!r}: {endpoint} is taken: another program may have it; stop that one "
                    "or take another port"
                ) from error
        return port


def _options(config: ServerConfig) -> list[tuple[str, int]]:
    """Return gRPC's settings."""
    keepalive_milliseconds = int(config.keepalive_seconds * 1000)
    return [
        ("grpc.so_reuseport", 0),  # with it, two servers on one port would share the calls
        ("grpc.http2.max_frame_size", _LARGEST_FRAME_BYTES),  # one frame for a chunk instead of 64
        ("grpc.max_receive_message_length", config.largest_message_bytes),
        # What a call may send before it is read. By default gRPC widens it to tens of megabytes, whatever the budget.
        ("grpc.http2.bdp_probe", 0),
        ("grpc.http2.lookahead_bytes", config.window_bytes),
        ("grpc.max_concurrent_streams", config.most_calls),  # further calls wait in their clients
        ("grpc.keepalive_time_ms", keepalive_milliseconds),
        ("grpc.keepalive_timeout_ms", keepalive_milliseconds),
        ("grpc.http2.ping_timeout_ms", keepalive_milliseconds),  # its default of a minute would win over the line above
        ("grpc.http2.max_pings_without_data", 0),  # no limit: ping an idle peer again and again
        ("grpc.max_allowed_incoming_connections", connection_limit(config.most_connections)),
        ("grpc.server_handshake_timeout_ms", _HANDSHAKE_MILLISECONDS),  # until then a silent peer keeps its place
        ("grpc.http2.min_ping_interval_without_data_ms", 5000),
        ("grpc.keepalive_permit_without_calls", 1),
    ]
