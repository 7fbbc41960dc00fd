"""Connections to this machine never use a proxy, for any spelling of its address."""

from __future__ import annotations

import contextlib
import doctest
import socket
import threading
from collections.abc import Iterator

import pytest

from numba_adam.client.transport import loopback
from numba_adam.client.transport.loopback import is_loopback
from numba_adam.errors import ServiceError

pytestmark = pytest.mark.slow  # a server or a connection each


class Proxy:
    """Accepts connections, records the requests, and refuses them."""

    def __init__(self) -> None:
        self.asked: list[bytes] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:  # closed
                return
            with connection, contextlib.suppress(OSError):
                self.asked.append(connection.recv(1 << 16))
                connection.sendall(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()


@pytest.fixture(params=["http_proxy", "https_proxy", "grpc_proxy"])
def proxy(request, monkeypatch) -> Iterator[Proxy]:
    """A proxy set by one of the environment variables that gRPC reads."""
    for name in ("http_proxy", "https_proxy", "grpc_proxy", "no_proxy", "no_grpc_proxy"):
        monkeypatch.delenv(name, raising=False)
    proxy = Proxy()
    monkeypatch.setenv(request.param, proxy.address)
    yield proxy
    proxy.close()


SPELLINGS = [
    "127.0.0.1:{port}",
    "0.0.0.0:{port}",
    "localhost:{port}",
    "LOCALHOST:{port}",
    "dns:127.0.0.1:{port}",
    "dns:///127.0.0.1:{port}",
    "dns:///LOCALHOST:{port}",
    "ipv4:127.0.0.1:{port}",
    "ipv4:127.0.0.1:{port},127.0.0.3:{port}",
    "ipv6:[::ffff:127.0.0.1]:{port}",
    "ipv6:%5B::ffff:127.0.0.1%5D:{port}",
    "[::ffff:127.0.0.1]:{port}",
    "[::FFFF:7F00:1]:{port}",
    "dns:///[::ffff:127.0.0.1]:{port}",
]


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_no_spelling_of_a_loopback_address_uses_the_proxy(server, connect, proxy, spelling):
    port = server.address.rpartition(":")[2]
    assert connect(spelling.format(port=port)).status().models == ()
    assert proxy.asked == []


def test_another_machine_is_reached_through_the_proxy(connect, proxy):
    """Checks that the tests above can fail."""
    while not proxy.asked:  # the test's timeout is its limit
        with pytest.raises(ServiceError):
            connect("192.0.2.1:50051", timeout_seconds=2.0).status()
    assert b"CONNECT 192.0.2.1:50051" in proxy.asked[0]


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.2:1",
        "127.1:1",
        "0x7f000001:1",
        "2130706433:1",
        "0177.0.0.1:1",
        "LocalHost.:1",
        "[::1]:1",
        "[0:0:0:0:0:0:0:1]:1",
        "[::]:1",
        "ipv6:[::1%25lo]:1",
        "IPV4:127.0.0.1:1",
        "DNS://8.8.8.8/localhost:1",
        "ip6-localhost:1",
        "localhost.localdomain:1",
        "model.localhost:1",
        "unix:/run/adam.sock",
        "unix-abstract:adam",
    ],
)
def test_names_of_this_machine_do_not_use_the_proxy(connect, proxy, address):
    """Nothing listens there, or the name is unknown: the error comes from gRPC itself."""
    assert is_loopback(address)
    with pytest.raises(ServiceError):
        connect(address, timeout_seconds=0.5).status()
    assert proxy.asked == []


@pytest.mark.parametrize(
    "address",
    [
        "10.0.0.1:127",
        "128.1:1",
        "[::2]:1",
        "localhost.example.com:1",
        "127.0.0.1.example.com:1",
        "notlocalhost:1",
        "dns:///example.com:1",
        "ipv4:127.0.0.1:1,10.0.0.1:1",
    ],
)
def test_addresses_of_other_machines_are_not_loopback(address, proxy):
    assert not is_loopback(address)


def test_examples_in_docstrings_run():
    results = doctest.testmod(loopback)
    assert (results.attempted > 0, results.failed) == (True, 0)
