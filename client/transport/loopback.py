"""Whether an address means this machine, in any spelling. May import the standard library only.

By default, gRPC uses the proxy of http_proxy even for connections to this machine.
"""

from __future__ import annotations

import ipaddress
import os
import re
import socket
from urllib.parse import unquote

_PROXY_VARIABLES = ("grpc_proxy", "https_proxy", "http_proxy")  # those that gRPC reads
_LOCAL_SCHEMES = ("unix", "unix-abstract", "vsock")
_SCHEME = re.compile(r"(dns|ipv4|ipv6|unix|unix-abstract|vsock):(?://[^/]*/)?(.*)", re.IGNORECASE | re.DOTALL)
_LOCAL_NAMES = re.compile(r"(.*\.)?localhost[46]?(\.localdomain[46]?)?|ip6-(localhost|loopback)", re.DOTALL)


def is_loopback(address: str) -> bool:
    """Return whether every endpoint of a gRPC address is on this machine.

    >>> [is_loopback(text) for text in ("LOCALHOST.:1", "dns:///127.1:1", "ipv6:[::ffff:127.0.0.1]:1", "10.0.0.1:1")]
    [True, True, True, False]
    """
    match = _SCHEME.fullmatch(address)
    scheme, places = (match[1].lower(), match[2]) if match else ("", address)
    if scheme in _LOCAL_SCHEMES:
        return True
    return all(_is_loopback_host(_host(place)) for place in unquote(places).split(","))


def _host(place: str) -> str:
    """Return the host of HOST:PORT, [HOST]:PORT or HOST, normalized for comparison."""
    place = place.strip().lower()
    if place.startswith("["):
        return place[1:].partition("]")[0]
    host = place if place.count(":") > 1 else place.partition(":")[0]  # two colons: an IPv6 address without brackets
    return host.removesuffix(".")


def _is_loopback_host(host: str) -> bool:
    if _LOCAL_NAMES.fullmatch(host):
        return True
    number = _number(host)
    if number is not None:
        return _is_loopback_number(number)
    return _is_own_name(host)


def _number(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Return a host's numeric IP address; None if the host is a name."""
    try:
        return ipaddress.ip_address(host.partition("%")[0])  # without the interface: fe80::1%eth0
    except ValueError:
        pass
    try:
        return ipaddress.IPv4Address(socket.inet_aton(host))  # 127.1, 0x7f000001, 2130706433
    except (OSError, UnicodeError):
        return None


def _is_loopback_number(number: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    mapped = number.ipv4_mapped if isinstance(number, ipaddress.IPv6Address) else None
    plain = mapped or number
    return plain.is_loopback or plain.is_unspecified  # a connection to 0.0.0.0 goes to this machine


def _is_own_name(host: str) -> bool:
    """Return whether a name of /etc/hosts, or this machine's name, resolves to loopback addresses only.

    It resolves a name only if a proxy is set, and only names that need no name server.
    """
    if not any(os.environ.get(name) for name in _PROXY_VARIABLES):
        return False
    if "." in host and host != socket.getfqdn().lower():
        return False
    try:
        found = {str(entry[4][0]) for entry in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)}
    except (OSError, UnicodeError):
        return False
    return bool(found) and all(_is_loopback_number(number) for name in found if (number := _number(name)) is not None)
