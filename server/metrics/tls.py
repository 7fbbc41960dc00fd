"""TLS of the metrics: the server's own certificate, read again for new connections. Imports the settings.

gRPC serves with the same files, and checks and reports them; see numba_adam.server.transport.tls.
"""

from __future__ import annotations

import logging
import ssl

from numba_adam.server.config import ServerConfig

_log = logging.getLogger(__name__)


class Contexts:
    """Makes TLS contexts of a server's files. Files that cannot be used leave the earlier context in use.

    Args:
        config: the settings; they have a certificate and a key.

    Raises:
        OSError: the files cannot be used.
    """

    def __init__(self, config: ServerConfig) -> None:
        self._config = config
        self._newest = self._load()

    def current(self) -> ssl.SSLContext:
        """Return a context for a new connection."""
        try:
            self._newest = self._load()
        except OSError as error:  # ssl.SSLError is one too
            _log.warning("metrics: the changed TLS files cannot be used, the earlier ones stay in use: %s", error)
        return self._newest

    def _load(self) -> ssl.SSLContext:
        config = self._config
        assert config.tls_certificate is not None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(config.tls_certificate, config.tls_key)
        if config.client_ca is not None:
            context.load_verify_locations(config.client_ca)
            context.verify_mode = ssl.CERT_REQUIRED
        return context
