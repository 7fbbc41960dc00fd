"""A server leaves loopback with TLS and a valid token only; then other machines reach it, and only with both."""

from __future__ import annotations

import contextlib
import json
import socket

import grpc
import numpy as np
import pytest

from numba_adam.cli import main
from numba_adam.client import ParameterClient, Tls
from numba_adam.errors import ConfigurationError, TlsError, UnauthenticatedError
from numba_adam.server.transport import listen as listening

LONG = 800.0
ADDRESSES = ["0.0.0.0:0", "[::]:0", "192.0.2.7:0"]


@pytest.fixture
def make_token(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("NUMBA_ADAM_TOKEN", raising=False)

    def make(*words):
        capsys.readouterr()
        assert main(["token", "make", *words, "--data-dir", str(tmp_path / "data")]) == 0
        return capsys.readouterr().out.strip()

    return make


@pytest.mark.parametrize("listen", ADDRESSES)
def test_without_tls_nothing_starts(listen, make_server, make_token):
    make_token("admin", "--admin", "*")
    with pytest.raises(ConfigurationError, match=r"needs TLS .* numba-adam certificate ca.* numba-adam token make"):
        make_server(listen=listen, loopback_token="required")


@pytest.mark.parametrize("listen", ADDRESSES)
@pytest.mark.parametrize("setting", ["required", "off"])
@pytest.mark.parametrize("mutual", [True, False])
def test_without_a_token_nothing_starts(listen, setting, mutual, authority, make_server, tmp_path):
    """Mutual TLS does not replace tokens: it has no scopes, and cannot be revoked."""
    settings = {"client_ca": authority.file} if mutual else {}
    with pytest.raises(ConfigurationError, match=r"needs tokens, and there is no valid one .*numba-adam token make"):
        make_server(authority.write("server"), listen=listen, loopback_token=setting, **settings)
    assert not (tmp_path / "data").exists()


def test_expired_and_damaged_tokens_do_not_count(authority, make_server, make_token, tmp_path):
    make_token("admin", "--admin", "*")
    path = tmp_path / "data" / "tokens.json"
    values = json.loads(path.read_text())
    values["tokens"][0]["expires"] = "2020-01-02T03:04:05+00:00"
    del values["xxh3_64"]
    for content in (json.dumps(values), "?"):
        path.write_text(content)
        with pytest.raises(ConfigurationError, match=r"there is no valid one|it cannot be read"):
            make_server(authority.write("server"), listen="0.0.0.0:0")


def own_address() -> str | None:
    """Return an address of this machine that is not loopback; None if it has none."""
    with contextlib.closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as probe:
        try:
            probe.connect(("192.0.2.7", 9))  # sends nothing: it only chooses the address to send from
        except OSError:
            return None
        found = probe.getsockname()[0]
    return None if found.startswith("127.") else found


def test_with_both_it_serves_at_every_address_those_with_a_token(authority, make_server, make_token):
    """The setting for loopback makes no difference: a token is always required."""
    token = make_token("admin", "--admin", "*")
    hosts = ["127.0.0.1", *filter(None, [own_address()])]
    server = make_server(authority.write("server", hosts), listen="0.0.0.0:0", loopback_token="off")
    port = server.address.rpartition(":")[2]
    tls, weights = Tls(server_ca=authority.file), np.ones(3, np.float32)
    for number, host in enumerate(hosts):
        address = f"{host}:{port}"
        with ParameterClient(address, tls=tls, token=token, timeout_seconds=LONG) as client:
            assert client.create_model(f"m{number}", {"w": weights}).push({"w": weights}).version == 1
        with (
            ParameterClient(address, tls=tls, timeout_seconds=LONG) as client,
            pytest.raises(UnauthenticatedError, match="the call has no token"),
        ):
            client.list_models()
        with (
            ParameterClient(address, tls=False, timeout_seconds=LONG) as client,
            pytest.raises(TlsError, match="the server speaks TLS"),
        ):
            client.list_models()
        with grpc.insecure_channel(address, [("grpc.enable_http_proxy", 0)]) as channel, pytest.raises(grpc.RpcError):
            channel.unary_unary("/grpc.health.v1.Health/Check")(b"", timeout=LONG)


def test_a_name_is_served_at_all_its_addresses(authority, make_server, make_token, monkeypatch):
    make_token("admin", "--admin", "*")
    answer = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, 0)) for host in ("127.0.0.2", "127.0.0.3")]
    monkeypatch.setattr(listening.socket, "getaddrinfo", lambda *_, **__: answer)
    server = make_server(authority.write("server"), listen="trainer.example.org:0")
    port = int(server.address.rpartition(":")[2])
    assert server.address.startswith("trainer.example.org:")
    for host in ("127.0.0.2", "127.0.0.3"):
        with contextlib.closing(socket.socket(socket.AF_INET)) as probe:
            assert probe.connect_ex((host, port)) == 0


def test_an_unknown_name_is_refused(authority, make_server, make_token):
    make_token("admin", "--admin", "*")
    with pytest.raises(ConfigurationError, match=r"the name 'nowhere\.invalid' is unknown"):
        make_server(authority.write("server"), listen="nowhere.invalid:0")
