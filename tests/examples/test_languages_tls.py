"""Workers in other languages use TLS and access tokens, which the environment names as it does for our own client."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path
from typing import NamedTuple

import grpc
import pytest

from numba_adam.cli import main
from numba_adam.client import ParameterClient, Tls

LONG = 800
pytestmark = pytest.mark.languages
LANGUAGES = pytest.mark.parametrize(("language", "model"), [("node", "digits-node"), ("cpp", "regression-cpp")])


class Secure(NamedTuple):
    """A server with mutual TLS that asks for tokens, and what a worker needs."""

    address: str
    variables: dict[str, str]

    def version_of(self, model: str) -> int:
        ca, certificate, key, token = self.variables.values()
        tls = Tls(server_ca=ca, worker_certificate=certificate, worker_key=key)
        with ParameterClient(self.address, tls=tls, token=token, timeout_seconds=LONG) as client:
            return client.open_model(model).version


@pytest.fixture
def secure(tmp_path: Path, capsys, start_server) -> Secure:
    folder = tmp_path / "certificates"
    for words in (["ca"], ["server", "localhost"], ["worker", "w0"]):
        assert main(["certificate", *words, "--folder", str(folder)]) == 0
    capsys.readouterr()
    assert main(["token", "make", "w0", "--admin", "*", "--data-dir", str(tmp_path / "data")]) == 0
    token = capsys.readouterr().out.strip()
    server = start_server(
        *("--tls-certificate", str(folder / "server.pem"), "--tls-key", str(folder / "server.key")),
        *("--client-ca", str(folder / "ca.pem"), "--loopback-token", "required"),
    )
    return Secure(
        server.address,
        {
            "NUMBA_ADAM_SERVER_CA": str(folder / "ca.pem"),
            "NUMBA_ADAM_WORKER_CERTIFICATE": str(folder / "w0.pem"),
            "NUMBA_ADAM_WORKER_KEY": str(folder / "w0.key"),
            "NUMBA_ADAM_TOKEN": token,
        },
    )


@pytest.fixture
def command(language: str, node, cpp) -> Callable[..., list[str]]:
    return {"node": node, "cpp": cpp}[language]


def run(command: list[str], variables: dict[str, str]) -> subprocess.CompletedProcess[str]:
    others = {name: value for name, value in os.environ.items() if not name.startswith("NUMBA_ADAM_")}
    return subprocess.run(
        command, env={**others, **variables}, capture_output=True, text=True, check=False, timeout=LONG
    )


def test_a_worker_in_node_trains_over_mutual_tls_with_a_token(secure, node) -> None:
    done = run(node(secure.address, 20), secure.variables)
    assert done.returncode == 0, done.stderr
    assert secure.version_of("digits-node") == 20


def test_a_worker_in_cpp_trains_over_mutual_tls_with_a_token(secure, cpp) -> None:
    done = run(cpp(secure.address, 20), secure.variables)
    assert done.returncode == 0, done.stderr
    assert secure.version_of("regression-cpp") == 20


@LANGUAGES
def test_a_worker_with_a_wrong_token_is_refused_at_once(secure, command, language, model, tmp_path) -> None:
    """So is one without a token that finds no file with the server's own."""
    for token in ("", secure.variables["NUMBA_ADAM_TOKEN"][:-1]):
        variables = {**secure.variables, "NUMBA_ADAM_TOKEN": token, "XDG_CONFIG_HOME": str(tmp_path)}
        done = run(command(secure.address, 5), variables)
        assert done.returncode != 0
        assert "token" in done.stderr


@LANGUAGES
@pytest.mark.parametrize("missing", ["NUMBA_ADAM_SERVER_CA", "NUMBA_ADAM_WORKER_KEY"])
def test_a_worker_without_tls_or_without_its_certificate_fails(secure, command, language, model, missing) -> None:
    left_out = {missing, "NUMBA_ADAM_WORKER_CERTIFICATE"}
    variables = {name: value for name, value in secure.variables.items() if name not in left_out}
    assert run(command(secure.address, 5, seconds=2), variables).returncode != 0


class Recorder(grpc.GenericRpcHandler):
    """A server that refuses every call, and notes the tokens that it got."""

    def __init__(self) -> None:
        self.tokens: list[object] = []

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        self.tokens.append(dict(details.invocation_metadata).get("authorization"))

        def refuse(_: object, context: grpc.ServicerContext) -> Iterator[bytes]:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "refused")
            yield b""

        return grpc.stream_stream_rpc_method_handler(refuse)


@LANGUAGES
def test_a_token_leaves_this_machine_with_tls_only(command, language, model) -> None:
    """127.0.0.2 stands for another machine: the examples take it for one."""
    found = {}
    for host in ("127.0.0.1", "127.0.0.2"):
        recorder = Recorder()
        server = grpc.server(futures.ThreadPoolExecutor(2), handlers=[recorder])
        port = server.add_insecure_port(f"{host}:0")
        server.start()
        try:
            assert run(command(f"{host}:{port}", 5), {"NUMBA_ADAM_TOKEN": "secret"}).returncode != 0
        finally:
            server.stop(None).wait()
        found[host] = set(recorder.tokens)
    assert found == {"127.0.0.1": {"Bearer secret"}, "127.0.0.2": {None}}
