"""TLS of the client: it connects where it should, and its errors say what is wrong at which end."""

from __future__ import annotations

import contextlib
import socket
import ssl
import subprocess
import sys
import threading
from concurrent import futures

import grpc
import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import ExtendedKeyUsageOID

from numba_adam.client import Backoff, ParameterClient, Tls
from numba_adam.errors import ConfigurationError, ServerUnavailableError, TlsError

LONG = 800.0


def of(ca, worker=None, **changes):
    """Return the settings of a client that trusts a CA."""
    pair = {"worker_certificate": worker.certificate, "worker_key": worker.key} if worker else {}
    return Tls(server_ca=ca.file, **pair, **changes)


def failure(address, tls, **settings):
    """Return the message of a client that cannot connect. It must fail at once, not at its deadline."""
    with (
        ParameterClient(address, tls=tls, timeout_seconds=LONG, **settings) as client,
        pytest.raises(TlsError) as caught,
    ):
        client.list_models()
    assert isinstance(caught.value, ServerUnavailableError)
    assert str(caught.value).startswith(f"{address}: ")
    return str(caught.value)


def test_a_model_trains_over_mutual_tls(authority, make_server):
    server = make_server(authority.write("server"), client_ca=authority.file)
    with ParameterClient(server.address, "w0", tls=of(authority, authority.worker()), timeout_seconds=LONG) as client:
        weights = np.ones(300_000, np.float32)  # more than one chunk
        model = client.create_model("m", {"w": weights})
        assert model.push({"w": weights}).version == 1
        assert model.push_pull({"w": weights})["w"].shape == weights.shape
        assert model.push_async({"w": weights}).result(LONG).version == 3
        assert client.status().models[0].model.version == 3


@pytest.mark.parametrize("form", ["{host}:{port}", "localhost:{port}", "LOCALHOST:{port}", "dns:///localhost:{port}"])
def test_every_form_of_an_address_is_connected(form, authority, make_server):
    server = make_server(authority.write("server"))
    host, _, port = server.address.rpartition(":")
    with ParameterClient(form.format(host=host, port=port), tls=of(authority), timeout_seconds=LONG) as client:
        assert client.list_models() == []


def test_the_path_of_a_ca_is_enough(authority, make_server):
    server = make_server(authority.write("server"))
    for tls in (authority.file, str(authority.file), Tls(server_ca=str(authority.file))):
        with ParameterClient(server.address, tls=tls, timeout_seconds=LONG) as client:
            assert client.list_models() == []


@pytest.fixture
def made(authority, make_authority):
    """Return a function that makes the server's certificate for a case."""
    makers = {
        "expired": lambda: authority.write("server", begins=-9, ends=-1),
        "early": lambda: authority.write("server", begins=1, ends=9),
        "of another CA": lambda: make_authority("other").write("server"),
        "for another name": lambda: authority.write("server", ("example.org", "10.0.0.5")),
        "without a name": lambda: authority.write("server", ("w0",), use=ExtendedKeyUsageOID.CLIENT_AUTH),
        "with an Ed25519 key": lambda: authority.write("server", key=ed25519.Ed25519PrivateKey.generate()),
        "with a P-521 key": lambda: authority.write("server", key=ec.generate_private_key(ec.SECP521R1())),
    }
    return lambda case: makers[case]()


CASES = {
    "expired": [
        "the server's certificate is out of date",
        "it expired on 20",
        "this machine's clock says 20",
        "--replace",
    ],
    "early": ["the server's certificate is not valid yet", "not valid before 20", "Correct the clock"],
    "of another CA": ["'CA in other' issued the server's certificate", "contains 'CA in ca'", "which is another CA"],
    "for another name": ["valid for example.org, 10.0.0.5, not for '127.0.0.1'", "certificate server 127.0.0.1"],
    "without a name": ["not for servers"],
    "with an Ed25519 key": ["is Ed25519, and gRPC accepts RSA, P-256, P-384"],
    "with a P-521 key": ["is P-521, and gRPC accepts RSA, P-256, P-384"],
}


@pytest.mark.parametrize("case", CASES)
def test_the_error_says_what_is_wrong_with_the_servers_certificate(case, made, authority, grpc_server):
    message = failure(grpc_server(made(case)), of(authority))
    for words in CASES[case]:
        assert words in message


def test_another_ca_with_the_same_name_is_told_apart(make_authority, grpc_server):
    own, other = make_authority("a", name=""), make_authority("b", name="")
    other.name = own.name
    message = failure(grpc_server(other.write("server")), of(own))
    assert "issued the server's certificate" in message
    assert "which is another CA" in message


def test_an_expired_ca_is_named(make_authority, grpc_server):
    expired = make_authority("old", begins=-9, ends=-1)
    message = failure(grpc_server(expired.write("server")), of(expired))
    assert "a CA's certificate is expired" in message
    assert "contains 'CA in old' (it expired on" in message


def test_without_a_ca_only_public_ones_are_trusted(authority, make_server):
    message = failure(make_server(authority.write("server")).address, True)
    assert "'CA in ca' issued the server's certificate, and it is no public CA. Pass server_ca" in message


def test_a_client_without_tls_is_told_that_the_server_speaks_it(authority, make_server):
    for settings in ({}, {"client_ca": authority.file}):
        server = make_server(authority.write("server"), folder=f"data{len(settings)}", **settings)
        message = failure(server.address, False)
        assert "the server speaks TLS, and this client does not" in message
        assert "NUMBA_ADAM_SERVER_CA" in message


def test_a_client_with_tls_is_told_that_the_server_does_not_speak_it(authority, make_server):
    message = failure(make_server().address, of(authority))
    assert "the server does not speak TLS, and this client does" in message
    assert "--tls-certificate" in message


def test_a_client_with_tls_is_told_that_something_else_listens(authority):
    with listening(lambda connection: connection.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")) as address:
        assert "does not speak TLS" in failure(address, of(authority))


def test_a_server_of_tls_without_http2_is_named(authority):
    files = authority.write("server")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.certificate, files.key)

    def answer(connection):
        with contextlib.suppress(OSError), context.wrap_socket(connection, server_side=True) as secured:
            secured.recv(1)

    with listening(answer) as address:
        assert "speaks TLS, but not HTTP/2" in failure(address, of(authority))


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("none", "the server serves only workers with a certificate (--client-ca), and this client presents none"),
        ("expired", "it expired on 20"),
        ("early", "it is not valid before 20"),
        ("of another CA", "which 'CA in other' issued. It must be made for workers by the CA"),
        ("for servers", "It must be made for workers"),
    ],
)
def test_the_error_says_what_is_wrong_with_the_workers_certificate(case, words, authority, make_authority, make_server):
    server = make_server(authority.write("server"), client_ca=authority.file)
    worker = {
        "none": lambda: None,
        "expired": lambda: authority.worker(begins=-9, ends=-1),
        "early": lambda: authority.worker(begins=1, ends=9),
        "of another CA": lambda: make_authority("other").worker(),
        "for servers": lambda: authority.write("another"),
    }[case]()
    message = failure(server.address, of(authority, worker))
    assert words in message
    assert worker is None or str(worker.certificate) in message


def test_a_name_may_be_given_for_tunnels(authority, make_server):
    server = make_server(authority.write("server", ("trainer.example.org",)))
    with ParameterClient(
        server.address, tls=of(authority, server_name="trainer.example.org"), timeout_seconds=LONG
    ) as client:
        assert client.list_models() == []
    assert "not for 'other.example.org'" in failure(server.address, of(authority, server_name="other.example.org"))


def test_a_server_that_is_down_is_not_reported_as_a_tls_error(authority):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        for tls in (of(authority), False):
            with (
                ParameterClient(address, tls=tls, backoff=Backoff(most_tries=1)) as client,
                pytest.raises(ServerUnavailableError, match="cannot be reached") as caught,
            ):
                client.list_models()
            assert not isinstance(caught.value, TlsError)


def test_a_client_works_through_renewals_and_restarts(authority, make_server):
    """Renewed certificates at both ends, each used by the next connection."""
    files, worker = authority.write("server"), authority.worker()
    server = make_server(files, client_ca=authority.file)
    weights = np.ones(3, np.float32)
    with ParameterClient(server.address, "w0", tls=of(authority, worker), timeout_seconds=LONG) as client:
        model = client.create_model("m", {"w": weights})
        assert model.push({"w": weights}).version == 1
        authority.write("server")
        assert model.push({"w": weights}).version == 2
        authority.worker()
        client._connection.close_channel()  # as a lost connection: the next call opens a new one
        assert model.push({"w": weights}).version == 3
        files.key.write_bytes(b"broken")
        client._connection.close_channel()
        assert model.push({"w": weights}).version == 4


def test_a_client_reads_changed_files_when_it_connects_again(authority, make_authority, make_server, tmp_path):
    """The server moves to another CA. The client's file follows while it is open; nothing is restarted."""
    other = make_authority("other")
    files = authority.write("server")
    server = make_server(files)
    trusted = tmp_path / "trusted.pem"
    trusted.write_bytes(authority.file.read_bytes())
    with ParameterClient(server.address, tls=Tls(server_ca=trusted), timeout_seconds=LONG) as client:
        assert client.list_models() == []
        moved = other.write("server")
        files.certificate.write_bytes(moved.certificate.read_bytes())
        files.key.write_bytes(moved.key.read_bytes())
        client._connection.close_channel()
        with pytest.raises(TlsError, match="which is another CA"):
            client.list_models()
        trusted.write_bytes(other.file.read_bytes())
        assert client.list_models() == []


@pytest.mark.parametrize(
    ("tls", "words"),
    [
        (lambda _: Tls(server_ca="missing.pem"), "server_ca='missing.pem': it cannot be read"),
        (lambda files: Tls(server_ca=files.key), "must be a PEM file with the certificate of a CA"),
        (lambda files: Tls(worker_certificate=files.certificate), "worker_key: a certificate needs its key"),
        (lambda files: Tls(worker_key=files.key), "worker_certificate: a certificate needs its key"),
        (
            lambda files: Tls(worker_certificate=files.key, worker_key=files.key),
            "must be a PEM file with a certificate",
        ),
        (lambda _: Tls(server_ca=""), "server_ca: expected the path of a file, got ''"),
        (lambda _: Tls(server_ca=7), "server_ca: expected the path of a file, got 7"),
        (lambda _: Tls(server_name=""), "server_name: expected a host name"),
        (lambda _: 7, "tls: expected a Tls"),
    ],
)
def test_settings_that_cannot_be_used_are_refused_before_any_call(tls, words, authority):
    files = authority.write("server")
    with pytest.raises(ConfigurationError, match=words):
        ParameterClient("127.0.0.1:1", tls=tls(files))


@pytest.mark.parametrize("mode", [0o600, 0o400, 0o640, 0o604, 0o644, 0o620, 0o602])
def test_a_workers_key_that_others_may_use_is_refused(mode, authority):
    """A group may read keys of root: so systems give one key to several services."""
    worker = authority.worker()
    worker.key.chmod(mode)
    is_of_root = worker.key.stat().st_uid == 0
    if mode in (0o600, 0o400) or (mode == 0o640 and is_of_root):
        ParameterClient("127.0.0.1:1", tls=of(authority, worker)).close()
        return
    with pytest.raises(ConfigurationError, match=f"other users may use this private key .*chmod 600 {worker.key}"):
        ParameterClient("127.0.0.1:1", tls=of(authority, worker))


def test_an_asynchronous_push_fails_with_the_reason(authority, make_authority, make_server):
    files = authority.write("server")
    server = make_server(files)
    weights = np.ones(3, np.float32)
    with ParameterClient(server.address, tls=of(authority), timeout_seconds=LONG) as client:
        model = client.create_model("m", {"w": weights})
        moved = make_authority("other").write("server")
        files.certificate.write_bytes(moved.certificate.read_bytes())
        files.key.write_bytes(moved.key.read_bytes())
        client._connection.close_channel()
        with pytest.raises(TlsError, match="which is another CA"):
            model.push_async({"w": weights}).result(LONG)


PROGRAM = """
import os, sys
import numpy as np
from numba_adam.client import ParameterClient

client = ParameterClient(sys.argv[1], tls=sys.argv[2], timeout_seconds=800)
weights = np.ones(3, np.float32)
model = client.create_model("m", {"w": weights})
child = os.fork()
if child == 0:
    with ParameterClient(sys.argv[1], tls=sys.argv[2], timeout_seconds=800) as own:
        own.open_model("m").push({"w": weights})
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
print(model.push({"w": weights}).version)
"""


def test_a_program_may_fork_and_exit_without_closing_its_client(authority, make_server):
    server = make_server(authority.write("server"))
    command = [sys.executable, "-c", PROGRAM, server.address, str(authority.file)]
    run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=800)
    assert (run.returncode, run.stdout) == (0, "2\n"), run.stderr


# --- helpers ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def grpc_server():
    """Start gRPC servers that, unlike ours, use any certificate."""
    with contextlib.ExitStack() as stack:

        def start(files):
            server = grpc.server(futures.ThreadPoolExecutor(1))
            pair = (files.key.read_bytes(), files.certificate.read_bytes())
            port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([pair]))
            server.start()
            stack.callback(lambda: server.stop(None).wait())
            return f"127.0.0.1:{port}"

        yield start


@contextlib.contextmanager
def listening(answer):
    """Run something else that listens; yields its address."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve():
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:  # closed
                return
            with contextlib.suppress(OSError), connection:
                answer(connection)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield f"127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()
