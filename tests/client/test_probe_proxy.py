"""What explains a failed connection takes the same way as gRPC: through the same proxy, or past it."""

import contextlib
import re
import socket
import threading

import pytest

from numba_adam.client.transport import proxy


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch):
    for name in ("http_proxy", "https_proxy", "grpc_proxy", "no_proxy", "no_grpc_proxy"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def listener():
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as found:
        yield found


def asked(listener):
    """Return the first line and the authorization of the next request, which is refused."""
    connection, _ = listener.accept()
    with connection:
        request = connection.recv(1 << 16).decode()
        connection.sendall(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")
    secret = re.search(r"(?i)proxy-authorization: *(.*)\r\n", request)
    return request.partition(" HTTP/")[0], secret and secret[1]


@pytest.mark.parametrize("host", ["192.0.2.1", "[2001:db8::1]", "trainer.invalid"])
@pytest.mark.parametrize(("user", "secret"), [("", None), ("ann:p%40ss@", "Basic YW5uOnBAc3M=")])
def test_it_asks_the_proxy_for_the_server(listener, monkeypatch, host, user, secret):
    monkeypatch.setenv("https_proxy", f"http://{user}127.0.0.1:{listener.getsockname()[1]}")
    found = []
    thread = threading.Thread(target=lambda: found.append(asked(listener)))
    thread.start()
    with pytest.raises(OSError, match="the proxy refuses"):
        proxy.connect(host.strip("[]"), 50051, 300.0)
    thread.join()
    assert found == [(f"CONNECT {host}:50051", secret)]


@pytest.mark.parametrize(
    ("environment", "host", "is_used"),
    [
        ({"https_proxy": "http://p:1"}, "trainer.invalid", True),
        ({"https_proxy": "http://p:1"}, "127.0.0.1", False),
        ({"https_proxy": "http://p:1"}, "::1", False),
        ({"grpc_proxy": "", "https_proxy": "http://p:1"}, "trainer.invalid", False),
        ({"https_proxy": "https://p:1"}, "trainer.invalid", False),
        ({"https_proxy": "http://p:x"}, "trainer.invalid", False),
        ({"https_proxy": "http://p:1", "no_proxy": "a, Trainer.invalid"}, "trainer.INVALID", False),
        ({"https_proxy": "http://p:1", "no_proxy": ".invalid"}, "trainer.invalid", False),
        ({"https_proxy": "http://p:1", "no_proxy": "trainer"}, "trainer.invalid", True),
        ({"https_proxy": "http://p:1", "no_proxy": "192.0.2.0/24"}, "192.0.2.1", False),
        ({"https_proxy": "http://p:1", "no_proxy": "192.0.3.0/24"}, "192.0.2.1", True),
        ({"https_proxy": "http://p:1", "no_proxy": "2001:db8::/32"}, "2001:db8::1", False),
        ({"https_proxy": "http://p:1", "no_grpc_proxy": "a", "no_proxy": "invalid"}, "trainer.invalid", True),
    ],
)
def test_the_proxy_is_chosen_as_by_grpc(monkeypatch, environment, host, is_used):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert (proxy._proxy_for(host, 50051) is not None) == is_used
