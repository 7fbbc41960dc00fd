"""TLS of the server: reads the certificate, its key and the CA of clients, again whenever the files change.

gRPC asks for the current files before each handshake, so new connections use a renewed certificate without a restart.
Files that cannot be used leave the earlier ones in use. Imports grpc, the settings and `numba_adam.ps`.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeAlias

import grpc

from numba_adam.errors import ConfigurationError
from numba_adam.ps.pem import Pair, PairFiles, read_authorities, read_pair, when, why_not_valid_now
from numba_adam.server.config import ServerConfig

_log = logging.getLogger(__name__)
_SOON = timedelta(days=14)
_GRACE_SECONDS = 0.25
"""How long the first handshake after a renewal waits, and others with it. gRPC frees what it made of the earlier files
at once, and a thread that `fetch` has just told to keep it would read freed memory for some microseconds more: servers
crashed. See https://github.com/grpc/grpc/issues/36693, open in November 2026."""

_Identity: TypeAlias = tuple[tuple[int, ...] | None, ...]


def tls_files(config: ServerConfig) -> TlsFiles | None:
    """Return the TLS files that the settings name, read and checked; None without TLS.

    Raises:
        ConfigurationError: one of the settings is missing, or a file cannot be used.
    """
    certificate, key = config.tls_certificate, config.tls_key
    if certificate is None and key is None:
        if config.client_ca is not None:
            raise ConfigurationError("client_ca: it needs TLS; set tls_certificate and tls_key too")
        return None
    if certificate is None or key is None:
        missing = "tls_key" if key is None else "tls_certificate"
        raise ConfigurationError(f"{missing}: TLS needs tls_certificate and tls_key, and only one of them is set")
    return TlsFiles(PairFiles(certificate, key, "tls_certificate", "tls_key"), config.client_ca)


class TlsFiles:
    """The files of a server's TLS.

    Args:
        files: the certificate and its key.
        client_ca: the CAs whose certificates clients must present; None: clients need none.

    Raises:
        ConfigurationError: a file cannot be used.
    """

    def __init__(self, files: PairFiles, client_ca: Path | None) -> None:
        self._files, self._client_ca = files, client_ca
        self._lock = threading.Lock()
        self._used = self._reported = self._identity()
        self._has_expired = False
        self._pair, self._configuration = self._load()

    def credentials(self) -> grpc.ServerCredentials:
        """Return gRPC's credentials for one address. They follow the files."""
        given = self._configuration

        def fetch() -> grpc.ServerCertificateConfiguration | None:
            """Return the new configuration, or None to keep the one that was given last.

            gRPC calls it at the beginning of each handshake, one call at a time.
            """
            nonlocal given
            with self._lock:
                self._follow()
                new = self._configuration
            if new is given:
                return None
            time.sleep(_GRACE_SECONDS)
            given = new
            return new

        wants_clients = self._client_ca is not None
        return grpc.dynamic_ssl_server_credentials(given, fetch, wants_clients)  # type: ignore[arg-type]  # may be None

    def _follow(self) -> None:
        """Read the files if they have changed. Files that cannot be used are logged once."""
        identity = self._identity()
        if identity != self._used:
            try:
                self._pair, self._configuration = self._load()
                self._used, self._has_expired = identity, False
            except ConfigurationError as error:
                if identity != self._reported:  # each handshake tries again: the certificate may become valid
                    self._reported = identity
                    _log.error("TLS: the changed files cannot be used, the earlier ones stay in use: %s", error)
        if not self._has_expired and datetime.now(UTC) > self._pair.certificate.not_after:
            self._has_expired = True
            _log.error("TLS: clients refuse the certificate: %s; replace it", why_not_valid_now(self._pair.certificate))

    def _load(self) -> tuple[Pair, grpc.ServerCertificateConfiguration]:
        """Read and check the files."""
        pair = read_pair(self._files)
        why = why_not_valid_now(pair.certificate)
        if why is not None:
            raise ConfigurationError(
                f"tls_certificate={str(self._files.certificate)!r}: {why}; make a new certificate, or correct the clock"
            )
        roots = None if self._client_ca is None else read_authorities("client_ca", self._client_ca)[0]
        configuration = grpc.ssl_server_certificate_configuration([(pair.key, pair.chain)], roots)
        names, end = ", ".join(pair.certificate.names) or "no host", pair.certificate.not_after
        is_soon = end - datetime.now(UTC) < _SOON
        _log.log(
            logging.WARNING if is_soon else logging.INFO,
            "TLS: the certificate is valid for %s until %s%s",
            names,
            when(end),
            "; renew it soon, the server takes changed files without a restart" if is_soon else "",
        )
        return pair, configuration

    def _identity(self) -> _Identity:
        """Return what changes when a file changes."""
        paths = (self._files.certificate, self._files.key, self._client_ca)
        return tuple(None if path is None else _identity_of(path) for path in paths)


def _identity_of(path: Path) -> tuple[int, ...] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
