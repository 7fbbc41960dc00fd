"""Chooses the addresses to listen on: every address of a host name, all on the same port.

A port is taken if any process has bound it in any address family, even without listening. Otherwise two servers on one
port would each get some of the clients. 127.0.0.1 and ::1 belong together: a client of `localhost` may use either.
Imports the standard library and the error tree.
"""

from __future__ import annotations

import errno
import logging
import socket
from collections.abc import Iterable
from pathlib import Path

from numba_adam.errors import ConfigurationError
from numba_adam.server.config import host_and_port, is_loopback

_log = logging.getLogger(__name__)
_LOCALHOST = ("127.0.0.1", "::1")  # RFC 6761, section 6.3; the hosts file may differ
_NOT_HERE = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)  # this computer lacks the address family
_TIME_WAIT = "06"  # in /proc/net/tcp: a closed connection; the next server may take its port
_LISTENING = "0A"
_TRIES = 20


def endpoints(listen: str) -> list[str]:
    """Return the endpoints to serve on, as numeric HOST:PORT, all with the same port.

    Another process may still take one before this one binds it. Port 0 becomes a port that is free at every address.

    Args:
        listen: the setting `listen`.

    Raises:
        ConfigurationError: an address cannot be used; the message says which.
    """
    host, port = host_and_port(listen)
    hosts = _addresses(listen, host)
    beside = [address for address in _LOCALHOST if address not in hosts and not set(_LOCALHOST).isdisjoint(hosts)]
    for _ in range(_TRIES):
        chosen = port or _free_port(listen, hosts)
        try:
            for address in beside:
                _is_usable(listen, address, chosen, may_lack=True)
            usable = [address for address in hosts if _is_usable(listen, address, chosen, may_lack=host == "localhost")]
        except ConfigurationError:
            if port:
                raise
            continue  # the port is taken in the other family: try another one
        if usable:
            return [_endpoint(address, chosen) for address in usable]
        raise ConfigurationError(f"listen={listen!r}: this machine has none of the addresses {', '.join(hosts)}")
    raise ConfigurationError(f"listen={listen!r}: no port is free at all of {', '.join(hosts)}; name one")


def _addresses(listen: str, host: str) -> list[str]:
    """Return the numeric addresses of a host, each once.

    Raises:
        ConfigurationError: the host is unknown, or one of the addresses of localhost is not a loopback address.
    """
    if host != "localhost":
        return _resolved(listen, host.removeprefix("[").removesuffix("]"))
    try:
        found = [str(item[4][0]) for item in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)]
    except socket.gaierror:
        found = []
    strange = [address for address in found if not is_loopback(address)]
    if strange:
        raise ConfigurationError(
            f"listen: this machine resolves localhost to {strange[0]}, which other machines could reach; "
            "correct its hosts file, or listen on 127.0.0.1"
        )
    return list(dict.fromkeys([*_LOCALHOST, *found]))


def _resolved(listen: str, host: str) -> list[str]:
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (socket.gaierror, UnicodeError) as error:
        raise ConfigurationError(f"listen={listen!r}: the name {host!r} is unknown ({error})") from error
    return list(dict.fromkeys(str(item[4][0]) for item in found))


def _free_port(listen: str, hosts: Iterable[str]) -> int:
    """Return a port that is free at the first address that this computer has."""
    for address in hosts:
        try:
            with _bound(address, 0, reuse=False) as probe:
                return int(probe.getsockname()[1])
        except OSError as error:
            if error.errno not in _NOT_HERE:
                raise _unusable(listen, address, 0, error) from error
    raise ConfigurationError(f"listen={listen!r}: this machine has none of the addresses {', '.join(hosts)}")


def _is_usable(listen: str, address: str, port: int, *, may_lack: bool) -> bool:
    """Return whether a port is free at an address; False where the address is optional and this computer lacks it.

    Raises:
        ConfigurationError: another process has the port, or this one may not use it.
    """
    try:
        _bound(address, port, reuse=False).close()
    except OSError as error:
        if may_lack and error.errno in _NOT_HERE:
            _log.info("listen=%r: this machine has no address %s; not served there", listen, address)
            return False
        if error.errno != errno.EADDRINUSE or not _is_left_over(address, port):
            raise _unusable(listen, address, port, error) from error
    return True


def _is_left_over(address: str, port: int) -> bool:
    """Return whether only closed connections of an earlier server occupy a port.

    The system's tables omit sockets that are bound but do not listen, so a trial bind decides.
    """
    states = _states(port)
    if not states or _LISTENING in states:
        return False
    try:
        _bound(address, port, reuse=True).close()
    except OSError:
        return False
    return True


def _states(port: int) -> set[str]:
    """Return the states of the TCP sockets on a local port; only TIME_WAIT where the system has no such table."""
    states = set()
    for name in ("tcp", "tcp6"):
        try:
            lines = Path("/proc/net", name).read_text().splitlines()[1:]
        except OSError:
            return {_TIME_WAIT}
        states |= {fields[3] for fields in map(str.split, lines) if fields[1].endswith(f":{port:04X}")}
    return states


def _bound(address: str, port: int, *, reuse: bool) -> socket.socket:
    """Return a socket that is bound to an address and does not listen."""
    probe = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM)
    try:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, reuse)
        probe.bind((address, port))
    except BaseException:
        probe.close()
        raise
    return probe


def _endpoint(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def _unusable(listen: str, address: str, port: int, error: OSError) -> ConfigurationError:
    endpoint = _endpoint(address, port)
    if error.errno == errno.EADDRINUSE:
        return ConfigurationError(
            f"listen={listen!r}: {endpoint} is taken: another program may have it, and clients of localhost may find "
            "that one; stop it or take another port"
        )
    return ConfigurationError(f"listen={listen!r}: {endpoint} cannot be used ({error.strerror})")
