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

SCHEME = "unix:"
VARIABLE = "NUMBA_ADAM_TRANSPORT"
CHOICES = ("auto", "network", "same-host")
_PORT = re.compile(r"[^,]*:([0-9]{1,5})")
_SOCKET = re.compile(r"([1-9][0-9]{0,4})-[0-9]+(-[0-9a-f]+)?")
_LOOK_SECONDS = 1.0
_MOST_IDLE = 8


def address_of_socket(address: str, transport: str | None) -> tuple[str, Path]:
    """Return the address of the server whose Unix socket an address names, and the socket's path.

    Calls that move no arrays go to the server's port on this machine, which the name of the socket begins with.

    Args:
        address: such as "unix:/home/me/.config/numba-adam/sockets/50051-4026531840-1a2b3c4d".
        transport: what the user chose.

    Raises:
        ConfigurationError: it is no socket of a server, is of another network namespace or of an earlier start of the
            system, or the user chose the network.
    """
    path = Path(address.removeprefix(SCHEME))
    name = _SOCKET.fullmatch(path.name)
    if not path.is_absolute() or name is None or int(name[1]) > 65535:
        raise ConfigurationError(
            f"address: expected unix:PATH with the whole path of a server's socket, such as "
            f"'unix:{socket_path(os.environ, 50051)}', got {address!r}"
        )
    own = socket_path(os.environ, int(name[1])).name
    if path.name != own:
        raise ConfigurationError(
            f"address: {address!r} is a socket of another network namespace, or of an earlier start of this system; "
            f"here its name would be {own!r}"
        )
    if transport == "network":
        raise ConfigurationError(
            f"transport='network' and the Unix socket {address!r} exclude each other: give HOST:PORT, or leave "
            "transport out"
        )
    return f"localhost:{name[1]}", path


class SameHost:
    """The way to a server of this user on this machine that needs no network.

    Args:
        address: of the server.
        choice: "auto", "network" or "same-host"; None: what NUMBA_ADAM_TRANSPORT says, else "auto".
        environ: such as os.environ.
        is_secret: whether the connection uses TLS.
        token: finds the access token.
        path: the server's Unix socket, and no other way; None: found by the address.

    Raises:
        ConfigurationError: the choice is unknown, or "same-host" is not possible.
    """

    def __init__(
        self,
        address: str,
        choice: str | None,
        environ: Mapping[str, str],
        *,
        is_secret: bool,
        token: FindToken,
        path: Path | None = None,
    ) -> None:
        wanted = choice if choice is not None else environ.get(VARIABLE) or "auto"
        if path is not None and wanted != "auto":
            wanted = choice or "auto"  # an address says more than the environment
        if wanted not in CHOICES:
            raise ConfigurationError(f"transport: expected one of {CHOICES}, got {wanted!r}")
        self._token, self._lock = token, threading.Lock()
        self._idle: list[LocalSocket] = []
        self._busy: dict[LocalSocket, threading.Thread] = {}
        self._must = wanted == "same-host" or path is not None
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
            self._path = path or socket_path(environ, int(port[1]))
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
