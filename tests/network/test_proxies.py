"""Off loopback, a worker obeys the proxies of its environment."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.campaign]

NAME = "trainer.test"
CONNECT_PROXY = str(Path(__file__).with_name("connect_proxy.py"))
NO_ROUTE = "http://10.77.0.200:1"  # nobody has the address
WORKER = """
import numpy as np
from numba_adam.client import ParameterClient
with ParameterClient({address!r}, "w0", timeout_seconds={seconds}) as client:
    model = client.create_model("m", {{"w": np.zeros(3, np.float32)}}, exist_ok=True)
    print(model.push({{"w": np.ones(3, np.float32)}}).version)
"""
REFUSED = """
from numba_adam.client import ParameterClient
from numba_adam.errors import ServiceError
try:
    ParameterClient({address!r}, "w0", timeout_seconds={seconds}).status()
except ServiceError as error:
    print(type(error).__name__, error)
"""


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch):
    for name in ("http_proxy", "https_proxy", "grpc_proxy", "no_proxy", "no_grpc_proxy"):
        monkeypatch.delenv(name, raising=False)


class Proxied:
    """A server, a CONNECT proxy on its host, and a worker's host that does not know the server's name."""

    def __init__(self, pair, *options: str) -> None:
        self._pair = pair
        port = pair.serve("10.77.0.1:0").rpartition(":")[2]
        self.address = f"{NAME}:{port}"
        pair.server.hosts.write_text(f"127.0.0.1 localhost\n10.77.0.1 {NAME}\n")
        self._log = pair.folder / "connect-log"
        proxy = pair.server.start(
            sys.executable, CONNECT_PROXY, "10.77.0.1:0", *options, announces="connect proxy on ", log=self._log
        )
        self.url = f"http://{proxy}"

    def work(self, program: str, seconds: float = 700, **environment: str) -> str:
        return self._pair.work(program.format(address=self.address, seconds=seconds), **environment)

    def asked(self) -> set[str]:
        return set(self._log.read_text().splitlines())


@pytest.fixture
def proxied(pair):
    return Proxied(pair)


@pytest.mark.parametrize("variable", ["grpc_proxy", "https_proxy", "http_proxy"])
def test_a_worker_reaches_its_server_through_the_proxy_only(proxied, variable):
    """The worker's host cannot resolve the server's name."""
    assert proxied.work(WORKER, **{variable: proxied.url}) == "1\n"
    assert proxied.asked() == {f"CONNECT {proxied.address}"}


def test_grpc_proxy_comes_before_https_proxy(proxied):
    assert proxied.work(WORKER, grpc_proxy=proxied.url, https_proxy=NO_ROUTE, http_proxy=NO_ROUTE) == "1\n"
    assert proxied.work(WORKER, https_proxy=proxied.url, http_proxy=NO_ROUTE) == "2\n"


@pytest.mark.parametrize("hosts", [NAME, "elsewhere.example.org,test", f" {NAME} "])
def test_no_proxy_leads_past_the_proxy(pair, proxied, hosts):
    pair.names("10.77.0.1")
    assert proxied.work(WORKER, https_proxy=proxied.url, no_proxy=hosts) == "1\n"
    assert proxied.asked() == set()


def test_no_proxy_for_other_hosts_changes_nothing(proxied):
    assert proxied.work(WORKER, https_proxy=proxied.url, no_proxy="elsewhere.example.org,10.0.0.0/8") == "1\n"
    assert proxied.asked() == {f"CONNECT {proxied.address}"}


def test_the_wrong_ca_is_named_through_a_proxy_too(pair, proxied):
    pair.command("certificate", "ca", "--folder", "other")
    ca = str(pair.folder / "other/ca.pem")
    printed = proxied.work(REFUSED, https_proxy=proxied.url, NUMBA_ADAM_SERVER_CA=ca)
    assert printed.startswith("TlsError ")
    assert "which is another CA" in printed


def test_a_client_without_tls_learns_through_a_proxy_that_the_server_speaks_tls(proxied):
    program = REFUSED.replace('"w0", ', '"w0", tls=False, token=None, ')
    printed = proxied.work(program, https_proxy=proxied.url, NUMBA_ADAM_TOKEN="")
    assert printed.startswith("TlsError ")
    assert "the server speaks TLS, and this client does not" in printed


def test_the_wrong_ca_is_named_past_a_proxy_that_is_down(pair, proxied):
    """What no_proxy excepts is diagnosed directly."""
    pair.names("10.77.0.1")
    pair.command("certificate", "ca", "--folder", "other")
    ca = str(pair.folder / "other/ca.pem")
    printed = proxied.work(REFUSED, https_proxy=NO_ROUTE, no_proxy=NAME, NUMBA_ADAM_SERVER_CA=ca)
    assert "which is another CA" in printed


def test_a_proxy_with_a_password_gets_it_from_its_address(pair):
    """User and password stand in the variable, with what is special in an address escaped."""
    proxied = Proxied(pair, "--user", "ann:s@cr:t/")
    url = proxied.url.replace("http://", "http://ann:s%40cr%3At%2F@")
    assert proxied.work(WORKER, https_proxy=url) == "1\n"
    assert proxied.asked() == {f"CONNECT {proxied.address}"}


@pytest.mark.parametrize(("options", "status"), [(("--refuse",), "403"), (("--user", "ann:secret"), "407")])
def test_a_proxy_that_refuses_is_named_with_its_status(pair, options, status):
    proxied = Proxied(pair, *options)
    printed = proxied.work(REFUSED, seconds=20, https_proxy=proxied.url)
    assert printed.startswith("ServerUnavailableError ")
    assert f"the proxy {proxied.url.removeprefix('http://')} answered {status}" in printed
