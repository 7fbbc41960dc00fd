"""Peers that take up the server's connections: they are let go, and clients wait for a place."""

from __future__ import annotations

import contextlib
import socket
import ssl

import pytest

from numba_adam.client import ParameterClient, Tls
from numba_adam.errors import ServerUnavailableError, TlsError

PLACES = 4
SECONDS = 90  # shorter than the two minutes that gRPC gives a handshake by default
HELLO = bytes.fromhex("1603010200010001fc0303")  # the beginning of a ClientHello


def opened(address):
    host, _, port = address.rpartition(":")
    return socket.create_connection((host, int(port)))


def silent(address):
    return opened(address)


def within_a_hello(address):
    connection = opened(address)
    connection.sendall(HELLO)
    return connection


def after_tls(address):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    return context.wrap_socket(opened(address))


@pytest.fixture
def server(authority, make_server):
    return make_server(authority.write("server"), most_connections=PLACES)


def test_a_server_without_a_free_place_is_not_taken_for_one_without_tls(server, authority):
    """The client tries again until its deadline, and says what may be the matter."""
    tls = Tls(server_ca=authority.file)
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(after_tls(server.address)) for _ in range(PLACES)]
        with (
            ParameterClient(server.address, tls=tls, timeout_seconds=3) as client,
            pytest.raises(ServerUnavailableError, match="--most-connections") as caught,
        ):
            client.list_models()
        assert not isinstance(caught.value, TlsError)
        held.pop().close()
        with ParameterClient(server.address, tls=tls, timeout_seconds=800) as client:
            assert client.list_models() == []


@pytest.mark.campaign
@pytest.mark.parametrize("take", [silent, within_a_hello, after_tls])
def test_whoever_does_not_finish_the_handshake_loses_its_place(take, server, authority):
    with contextlib.ExitStack() as stack:
        taken = [stack.enter_context(take(server.address)) for _ in range(PLACES)]
        tls = Tls(server_ca=authority.file)
        with ParameterClient(server.address, tls=tls, timeout_seconds=SECONDS) as client:
            assert client.list_models() == []
        for connection in taken:
            while connection.recv(1 << 16):  # the server's first frame, then the end
                pass
