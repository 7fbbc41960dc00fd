"""Whether a client and its server share memory: finds the server's Unix socket, and keeps connections to it.

May import its neighbours, grpc's names and `numba_adam.ps`.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from numba_adam.client.transport import forks
from numba_adam.client.transport.local_socket import LocalSocket
from numba_adam.client.transport.loopback import is_loopback
from numba_adam.client.transport.shield import is_given_up
from numba_adam.client.transport.token import FindToken
from numba_adam.errors import ConfigurationError, ServerUnavailableError, ServiceError
from numba_adam.ps.local import socket_path

VARIABLE = "NUMBA_ADAM_TRANSPORT"
CHOICES = ("auto", "network", "same-host")
_PORT = re.compile(r"[^,]*:([0-9]{1,5})")
_LOOK_SECONDS = 1.0
_MOST_IDLE = 8


class SameHost:
    """The way to a server of this user on this machine that needs no network.

    Args:
        address: of the server.
        choice: "auto", "network" or "same-host"; None: what NUMBA_ADAM_TRANSPORT says, else "auto".
        environ: such as os.environ.
        is_secret: whether the connection uses TLS.
        token: finds the access token.

    Raises:
        ConfigurationError: the choice is unknown, or "same-host" is not possible.
    """

    def __init__(
        self, address: str, choice: str | None, environ: Mapping[str, str], *, is_secret: bool, token: FindToken
    ) -> None:
        wanted = choice if choice is not None else environ.get(VARIABLE) or "auto"
        if wanted not in CHOICES:
            raise ConfigurationError(f"transport: expected one of {CHOICES}, got {wanted!r}")
        self._token, self._lock = token, threading.Lock()
        self._idle: list[LocalSocket] = []
        self._busy: dict[LocalSocket, threading.Thread] = {}
        self._must = wanted == "same-host"
        self._next_look = 0.0
        self.memories: dict[str, Any] = {}
        """The mapped parameters of models, by name."""

        self._path: Path | None = None
        self.reason = ""
        """Why the network is used; empty: it is not."""

        port = _PORT.fullmatch(address)
        if wanted == "network":
            self.reason = "transport='network' asks for it"
        elif not hasattr(socket, "SO_PEERCRED") or not hasattr(os, "memfd_create"):
            self.reason = "this system has no memory that processes can pass to each other"
        elif is_secret:
            self.reason = "the connection uses TLS"
        elif not is_loopback(address) or port is None:
            self.reason = f"{address} is not a loopback address"
        else:
            self._path = socket_path(environ, int(port[1]))
        if self._must and self._path is None:
            raise ConfigurationError(f"transport='same-host': not possible, because {self.reason}; use 'auto'")

    @contextlib.contextmanager
    def socket(self) -> Iterator[LocalSocket | None]:
        """Yield a connection for the calls of the body; None: use the network.

        Raises:
            ServerUnavailableError: the client must not use the network, and there is no connection.
        """
        found = self._take()
        try:
            yield found
        finally:
            if found is not None:
                self._give_back(found)

    def look(self) -> str:
        """Return in words which way is used, and why."""
        with contextlib.suppress(ServiceError), self.socket() as found:
            if found is not None:
                return f"same host: {self._path}"
        return f"network: {self.reason}"

    def close(self) -> None:
        """End all connections, also under calls of other threads. Later calls open new ones."""
        with self._lock:
            idle, self._idle = self._idle, []
            busy = list(self._busy)
        for each in idle:
            each.release()
        for each in busy:
            each.close()

    def give_up(self) -> None:
        """End the connections of calls that the main thread gave up, and no others: they may be of the next call."""
        with self._lock:
            given_up = [each for each, thread in self._busy.items() if is_given_up(thread)]
        for each in given_up:
            each.close()

    def _take(self) -> LocalSocket | None:
        if self._path is None:
            return None
        with self._lock:
            found = self._idle.pop() if self._idle else None
            if found is not None:
                self._busy[found] = threading.current_thread()
                return found
        return self._open(self._path)

    def _open(self, path: Path) -> LocalSocket | None:
        now = time.monotonic()
        if now < self._next_look:
            self._refuse()
            return None
        try:
            with forks.gate():
                found = LocalSocket(path, self._token())
        except FileNotFoundError:
            self._refuse(f"no server of this user listens on {path}", now)
            return None
        except (OSError, ServiceError, ValueError) as error:
            self._refuse(f"{path} cannot be used: {error}", now)
            return None
        self.reason = ""
        with self._lock:
            self._busy[found] = threading.current_thread()
        return found

    def _refuse(self, reason: str = "", now: float = 0.0) -> None:
        """Note why there is no connection, and raise an error if the network is not allowed."""
        if reason:
            self.reason, self._next_look = reason, now + _LOOK_SECONDS
        if self._must:
            raise ServerUnavailableError(f"transport='same-host': {self.reason}")

    def _give_back(self, found: LocalSocket) -> None:
        with self._lock:
            self._busy.pop(found, None)
            if not found.is_broken and len(self._idle) < _MOST_IDLE:
                self._idle.append(found)
                return
        if found.is_broken:
            self._next_look = 0.0  # the server may be back already
        found.release()
