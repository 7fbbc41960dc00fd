"""Listens on the Unix socket for workers of the server's own user. Each connection has a thread.

The socket's folder is for this user alone, and the system says which user connects (SO_PEERCRED): others are refused.
Linux only. Imports the connections and the packets.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import socket
import struct
import threading
from pathlib import Path

from numba_adam.kernel_cache import private_folder
from numba_adam.ps.local import dead_sockets
from numba_adam.server.runtime.launcher import use_threads
from numba_adam.server.transport.local_connection import LocalConnection, Serving

_log = logging.getLogger(__name__)
_CREDENTIALS = struct.Struct("3i")
_JOIN_SECONDS = 5.0


def is_supported() -> bool:
    """Return whether this system has what the path needs."""
    return hasattr(socket, "SO_PEERCRED") and hasattr(os, "memfd_create") and hasattr(socket, "SOCK_SEQPACKET")


class LocalListener:
    """The socket, and the connections that came through it.

    Args:
        path: where it is.
        serving: what all connections share.
        most: largest number of connections.

    Raises:
        OSError: it cannot be made there.
    """

    def __init__(self, path: Path, serving: Serving, most: int) -> None:
        self._path, self._serving, self._most = path, serving, most
        self._socket = _listening(path)
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._lock = threading.Lock()
        self._connections: dict[int, tuple[LocalConnection, threading.Thread]] = {}
        self._is_stopping = False
        self._inode = path.lstat().st_ino
        self._thread = threading.Thread(target=self._run, name="numba-adam-local", daemon=True)

    def start(self) -> None:
        """Accept connections."""
        self._thread.start()

    def begin_stop(self) -> None:
        """Accept no more connections, and end each after its current call."""
        with contextlib.suppress(OSError):
            if self._path.lstat().st_ino == self._inode:
                self._path.unlink()
        self._is_stopping = True
        os.eventfd_write(self._wake, 1)
        for connection, _ in self._all():
            connection.begin_stop()

    def stop(self) -> None:
        """End all connections."""
        for connection, _ in self._all():
            connection.hang_up()
        for _, thread in self._all():
            thread.join(_JOIN_SECONDS)
        if self._thread.ident is not None:
            self._thread.join()
        self._socket.close()
        os.close(self._wake)

    def _all(self) -> list[tuple[LocalConnection, threading.Thread]]:
        with self._lock:
            return list(self._connections.values())

    def _run(self) -> None:
        """Accept connections, and tell those whose peer is gone."""
        poll = select.epoll()
        poll.register(self._socket, select.EPOLLIN)
        poll.register(self._wake, select.EPOLLIN)
        with poll:
            while not self._is_stopping:
                for number, _ in poll.poll():
                    if number == self._socket.fileno():
                        self._accept(poll)
                    elif number != self._wake:
                        self._tell(number)

    def _accept(self, poll: select.epoll) -> None:
        try:
            sock, _ = self._socket.accept()
        except OSError as error:
            _log.warning("a connection of this machine was not accepted: %s", error)
            return
        try:
            process, user, _ = _CREDENTIALS.unpack(
                sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
            )
            if user != os.geteuid() or len(self._connections) >= self._most or self._is_stopping:
                _log.warning("refused a connection of process %d of user %d", process, user)
                sock.close()
                return
            timeout = struct.pack("ll", max(1, int(self._serving.stall_seconds)), 0)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeout)
            self._begin(sock, f"process {process}", poll)
        except OSError:
            sock.close()

    def _begin(self, sock: socket.socket, peer: str, poll: select.epoll) -> None:
        connection, number = LocalConnection(sock, self._serving, peer), sock.fileno()
        thread = threading.Thread(
            target=self._serve, args=(connection, number), name=f"numba-adam-local-{number}", daemon=True
        )
        with self._lock:
            self._connections[number] = connection, thread
        poll.register(number, select.EPOLLRDHUP | select.EPOLLONESHOT)
        thread.start()

    def _serve(self, connection: LocalConnection, number: int) -> None:
        use_threads(1)  # calls run kernels on one thread; only the launcher's thread uses more
        try:
            connection.run(lambda: self._drop(number))
        except Exception:
            _log.exception("a connection of this machine failed")

    def _drop(self, number: int) -> None:
        with self._lock:
            self._connections.pop(number, None)

    def _tell(self, number: int) -> None:
        with self._lock:
            found = self._connections.get(number)
        if found is not None:
            found[0].gone()


def _listening(path: Path) -> socket.socket:
    """Return a socket that listens at a path, in a folder for this user alone.

    Raises:
        OSError: it cannot be made there.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.parent.chmod(0o700)
    if why := private_folder.why_unsafe(path.parent.resolve()):
        raise OSError(why)
    folder = os.open(path.parent, os.O_PATH | os.O_CLOEXEC | os.O_DIRECTORY)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    new = path.with_name(f".{path.name}")
    try:
        for dead in (other for other in dead_sockets(path) if _is_dead(folder, other.name)):
            dead.unlink(missing_ok=True)
        new.unlink(missing_ok=True)
        sock.bind(f"/proc/self/fd/{folder}/{new.name}")  # the system limits a path to 107 bytes
        new.chmod(0o600)
        sock.listen(128)
        new.rename(path)  # over that of a server that was killed: its port is ours
    except BaseException:
        sock.close()
        raise
    finally:
        os.close(folder)
    return sock


def _is_dead(folder: int, name: str) -> bool:
    """Return whether nobody listens on a socket any more."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        try:
            sock.settimeout(0)
            sock.connect(f"/proc/self/fd/{folder}/{name}")
        except ConnectionRefusedError:
            return True
        except OSError:
            pass
        return False
