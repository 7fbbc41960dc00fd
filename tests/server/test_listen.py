"""Addresses: a server has its port at every address of a host name, or does not start."""

import contextlib
import dataclasses
import socket
import subprocess
import sys

import grpc
import pytest

from numba_adam.errors import ConfigurationError
from numba_adam.ps.v1 import parameter_service_pb2 as pb
from numba_adam.ps.v1.parameter_service_pb2_grpc import ParameterServiceStub
from numba_adam.server.embedded import Server
from numba_adam.server.transport import listen

FAMILIES = {"127.0.0.1": socket.AF_INET, "::1": socket.AF_INET6}


def _has(address):
    with contextlib.closing(socket.socket(FAMILIES[address])) as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
        return True


needs_ipv6 = pytest.mark.skipif(not _has("::1"), reason="this machine has no ::1")


@contextlib.contextmanager
def held(address, *, port=0, reuse_address=False, reuse_port=False, is_listening=True):
    """Bind another socket to a port; yields the port."""
    with contextlib.closing(socket.socket(FAMILIES[address])) as stranger:
        stranger.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, reuse_address)
        stranger.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, reuse_port)
        stranger.bind((address, port))
        if is_listening:
            stranger.listen()
        yield stranger.getsockname()[1]


def serves(endpoint):
    with grpc.insecure_channel(endpoint) as channel:
        stub = ParameterServiceStub(channel)
        return bool(stub.GetServerStatus(pb.GetServerStatusRequest(), timeout=800, wait_for_ready=True).server_version)


@pytest.mark.parametrize("is_listening", [True, False])
@pytest.mark.parametrize("reuse_port", [True, False])
@pytest.mark.parametrize("reuse_address", [True, False])
@pytest.mark.parametrize("taken", ["127.0.0.1", pytest.param("::1", marks=needs_ipv6)])
def test_localhost_is_refused_if_another_process_has_the_port_in_one_family(
    config, taken, reuse_address, reuse_port, is_listening
):
    """Even a socket that is bound but does not listen: it would get the clients once it listens."""
    options = {"reuse_address": reuse_address, "reuse_port": reuse_port, "is_listening": is_listening}
    with held(taken, **options) as port:
        server = Server(dataclasses.replace(config, listen=f"localhost:{port}"))
        with pytest.raises(ConfigurationError, match=rf"listen='localhost:{port}': .*{port} is taken"):
            server.start()
        others = [address for address in FAMILIES if address != taken and _has(address)]
        for address in others:  # nothing of it is left in the other family
            with held(address, port=port) as found:
                assert found == port


@pytest.mark.parametrize("reuse_port", [True, False])
@pytest.mark.parametrize("is_listening", [True, False])
def test_an_address_is_refused_if_another_process_has_it(config, reuse_port, is_listening):
    with held("127.0.0.1", reuse_address=True, reuse_port=reuse_port, is_listening=is_listening) as port:
        server = Server(dataclasses.replace(config, listen=f"127.0.0.1:{port}"))
        with pytest.raises(ConfigurationError, match="is taken"):
            server.start()


@needs_ipv6
@pytest.mark.parametrize("is_listening", [True, False])
@pytest.mark.parametrize(("own", "taken"), [("127.0.0.1", "::1"), ("[::1]", "127.0.0.1")])
def test_an_address_is_refused_if_another_process_has_the_port_in_the_other_family(config, own, taken, is_listening):
    """Clients of localhost could reach either."""
    with held(taken, is_listening=is_listening) as port:
        server = Server(dataclasses.replace(config, listen=f"{own}:{port}"))
        with pytest.raises(ConfigurationError, match=rf"{port} is taken"):
            server.start()


def test_localhost_is_refused_if_another_server_has_127_0_0_1(server, config, tmp_path):
    port = server.address.rpartition(":")[2]
    other = Server(dataclasses.replace(config, listen=f"localhost:{port}", data_dir=tmp_path / "other"))
    with pytest.raises(ConfigurationError, match="is taken"):
        other.start()
    assert serves(server.address)


@pytest.mark.parametrize("port", ["free", "named"])
def test_localhost_is_served_at_every_address_on_one_port(config, port):
    wanted = 0
    if port == "named":
        with held("127.0.0.1", is_listening=False) as wanted:
            pass
    with Server(dataclasses.replace(config, listen=f"localhost:{wanted}")) as server:
        host, _, found = server.address.rpartition(":")
        assert host == "localhost"
        assert port == "free" or int(found) == wanted
        for address in filter(_has, FAMILIES):
            assert serves(f"[{address}]:{found}" if ":" in address else f"{address}:{found}")


@needs_ipv6
def test_a_free_port_is_free_in_every_family(monkeypatch):
    """The first free port of 127.0.0.1 is taken at ::1."""
    with held("::1") as taken, held("127.0.0.1", is_listening=False) as free:
        pass
    offers = [taken, free]
    monkeypatch.setattr(listen, "_free_port", lambda *_: offers.pop(0))
    with held("::1", port=taken):
        assert listen.endpoints("localhost:0") == [f"127.0.0.1:{free}", f"[::1]:{free}"]
    assert not offers


def test_closed_connections_do_not_occupy_a_port(config, peers):
    """A restarted server, while the system remembers the previous server's connections."""
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as first:
        port = first.getsockname()[1]
        with contextlib.closing(socket.create_connection(("127.0.0.1", port))) as client:
            accepted, _ = first.accept()
            accepted.close()  # the end that closes first waits in TIME_WAIT
            assert client.recv(1) == b""
    with pytest.raises(OSError, match="in use"), held("127.0.0.1", port=port):
        pass
    with Server(dataclasses.replace(config, listen=f"127.0.0.1:{port}")) as server:
        assert serves(server.address)


def test_localhost_with_an_address_that_others_reach_is_refused(config, monkeypatch):
    answer = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.7", 0))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: answer)
    with pytest.raises(ConfigurationError, match=r"localhost to 192\.0\.2\.7, which other machines could reach"):
        Server(dataclasses.replace(config, listen="localhost:0")).start()


def test_a_port_in_use_is_reported_in_one_line(tmp_path):
    with held("127.0.0.1") as port:
        command = [sys.executable, "-m", "numba_adam", "serve", "--listen", f"127.0.0.1:{port}"]
        found = subprocess.run(
            [*command, "--data-dir", str(tmp_path / "data")],
            capture_output=True,
            text=True,
            timeout=800,
            cwd=tmp_path,
            check=False,
        )
    assert (found.returncode, found.stdout) == (1, "")
    (line,) = found.stderr.splitlines()
    assert line.startswith(f"numba-adam: listen='127.0.0.1:{port}': 127.0.0.1:{port} is taken")
