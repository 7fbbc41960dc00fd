"""Connections through the HTTP proxy that gRPC would use. May import the standard library only.

gRPC takes the proxy from the environment by itself. What else connects to the server has to take the same way.
"""

from __future__ import annotations

import base64
import ipaddress
import os
import re
import socket
from urllib.parse import SplitResult, unquote, urlsplit

from numba_adam.client.transport.loopback import is_loopback

_PROXY_VARIABLES = ("grpc_proxy", "https_proxy", "http_proxy")  # the first that is set counts, even if it is empty
_EXCEPTION_VARIABLES = ("no_grpc_proxy", "no_proxy")
_REFUSAL = re.compile(r"ipv[46]:(\S+): HTTP proxy returned response code (\d+)")  # gRPC's words
_DEFAULT_PORT = 443  # gRPC's for names without one
_LONGEST_ANSWER_BYTES = 1 << 16


def connect(host: str, port: int, timeout_seconds: float) -> socket.socket:
    """Return a connection to a server, through the proxy of the environment if there is one for it.

    Raises:
        OSError: there is no connection, or the proxy refuses.
    """
    proxy = _proxy_for(host, port)
    if proxy is None:
        return socket.create_connection((host, port), timeout_seconds)
    assert proxy.hostname is not None
    connection = socket.create_connection((proxy.hostname, proxy.port or _DEFAULT_PORT), timeout_seconds)
    try:
        connection.settimeout(timeout_seconds)
        _open_tunnel(connection, proxy, f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
    except BaseException:
        connection.close()
        raise
    return connection


def why_refused(message: str) -> str:
    """Return what a proxy's refusal means, from gRPC's message; empty if no proxy refused."""
    match = _REFUSAL.search(message)
    if match is None:
        return ""
    proxy, status = match.groups()
    advice = {
        "407": "it wants a user and a password: write them into the variable, as http://USER:PASSWORD@HOST:PORT",
        "403": "it does not let this machine connect to that address: ask who runs it",
    }.get(status, "ask who runs it")
    return (
        f"the proxy {proxy} answered {status}; {advice}. To connect without it, name the server in no_proxy. The proxy "
        f"comes from {' or '.join(_PROXY_VARIABLES)}"
    )


def _open_tunnel(connection: socket.socket, proxy: SplitResult, target: str) -> None:
    lines = [f"CONNECT {target} HTTP/1.1", f"Host: {target}"]
    if proxy.username is not None:
        secret = unquote(f"{proxy.username}:{proxy.password or ''}").encode()
        lines.append(f"Proxy-Authorization: Basic {base64.b64encode(secret).decode()}")
    connection.sendall("\r\n".join([*lines, "", ""]).encode())
    answer = b""
    while not answer.endswith(b"\r\n\r\n"):  # byte by byte: what follows is the server's
        piece = connection.recv(1)
        answer += piece
        if not piece or len(answer) > _LONGEST_ANSWER_BYTES:
            raise OSError("the proxy gives no answer")
    if answer.split(None, 2)[1:2] != [b"200"]:
        raise OSError("the proxy refuses")


def _proxy_for(host: str, port: int) -> SplitResult | None:
    """Return the proxy for a server; None: it is reached directly."""
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    text = _first_set(_PROXY_VARIABLES)
    if not text or is_loopback(address) or _is_excepted(host, _first_set(_EXCEPTION_VARIABLES)):
        return None
    try:
        proxy = urlsplit(text)
        _ = proxy.port  # an invalid one raises
    except ValueError:
        return None
    return proxy if proxy.scheme == "http" and proxy.hostname else None  # gRPC supports no other


def _first_set(names: tuple[str, ...]) -> str:
    return next((os.environ[name] for name in names if name in os.environ), "")


def _is_excepted(host: str, entries: str) -> bool:
    """Return whether no_proxy names a host: by the end of its name, or by a network that contains its number."""
    for entry in filter(None, map(str.strip, entries.split(","))):
        if host.lower().endswith(entry.lower()) or _is_within(host, entry):
            return True
    return False


def _is_within(host: str, network: str) -> bool:
    try:
        return ipaddress.ip_address(host) in ipaddress.ip_network(network, strict=False)
    except ValueError:
        return False
