"""`numba-adam certificate`: what it makes is accepted, keys are private, and nothing is overwritten unasked."""

from __future__ import annotations

import datetime
import os
import stat
from concurrent import futures
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID

from numba_adam.cli import main

DAY = datetime.timedelta(days=1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "new" / "certificates"


@pytest.fixture
def make(folder: Path):
    """Return a function that runs the command and returns its exit status."""
    return lambda *words: main(["certificate", *words, "--folder", str(folder)])


def read(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


class Echo(grpc.GenericRpcHandler):
    """A service that answers every call with its request."""

    def service(self, details):
        del details
        return grpc.unary_unary_rpc_method_handler(lambda request, _: request)


@pytest.fixture
def served(folder: Path):
    """Serve with mutual TLS; returns the port."""
    servers = []

    def serve() -> int:
        pair = ((folder / "server.key").read_bytes(), (folder / "server.pem").read_bytes())
        credentials = grpc.ssl_server_credentials([pair], (folder / "ca.pem").read_bytes(), True)
        servers.append(grpc.server(futures.ThreadPoolExecutor(1), [Echo()]))
        port = servers[-1].add_secure_port("127.0.0.1:0", credentials)
        servers[-1].start()
        return port

    yield serve
    for server in servers:
        server.stop(None).wait()


def echoes(folder: Path, port: int, worker: str, name: str) -> bool:
    """Return whether gRPC connects with a worker's certificate to a server under a name."""
    pair = ((folder / f"{worker}.key").read_bytes(), (folder / f"{worker}.pem").read_bytes())
    credentials = grpc.ssl_channel_credentials((folder / "ca.pem").read_bytes(), *pair)
    options = [("grpc.ssl_target_name_override", name), ("grpc.enable_http_proxy", 0)]
    with grpc.secure_channel(f"127.0.0.1:{port}", credentials, options) as channel:
        try:
            return channel.unary_unary("/any/method")(b"hello", timeout=800) == b"hello"
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE:
                raise
            return False


def test_three_commands_make_what_grpc_accepts_on_both_ends(make, folder, served):
    assert make("ca") == make("server", "Trainer.example.org", "10.0.0.5", "*.lab.example") == make("worker", "w0") == 0
    port = served()
    for name in ("trainer.example.org", "10.0.0.5", "gpu.lab.example", "localhost", "127.0.0.1", "::1"):
        assert echoes(folder, port, "w0", name), name
    for name in ("example.org", "10.0.0.6", "a.gpu.lab.example", "other"):
        assert not echoes(folder, port, "w0", name), name
    assert not echoes(folder, port, "server", "localhost")  # a server's certificate is not for workers


def test_each_certificate_is_for_one_purpose_and_names_its_ca(make, folder):
    assert make("ca", "--name", "a team") == make("server", "h") == make("worker", "w0") == 0
    ca, server, worker = (read(folder / f"{name}.pem") for name in ("ca", "server", "w0"))
    identifier = ca.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
    for made, purpose in ((server, ExtendedKeyUsageOID.SERVER_AUTH), (worker, ExtendedKeyUsageOID.CLIENT_AUTH)):
        made.verify_directly_issued_by(ca)
        assert list(made.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == [purpose]
        assert not made.extensions.get_extension_for_oid(ExtensionOID.BASIC_CONSTRAINTS).value.ca
        above = made.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
        assert above.key_identifier == identifier
    assert ca.extensions.get_extension_for_oid(ExtensionOID.BASIC_CONSTRAINTS).value.ca
    assert "CN=a team" in ca.subject.rfc4514_string()


def test_two_cas_have_different_names(make, folder):
    assert make("ca") == 0
    first = read(folder / "ca.pem").subject
    assert make("ca", "--replace") == 0
    assert read(folder / "ca.pem").subject != first


@pytest.mark.parametrize("umask", [0o000, 0o777])
def test_keys_are_private_for_any_umask(make, folder, umask):
    before = os.umask(umask)
    try:
        assert make("ca") == make("server", "h") == make("worker", "w0") == 0
    finally:
        os.umask(before)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}
    assert sorted(path.name for path in folder.iterdir()) == [
        "ca.key", "ca.pem", "server.key", "server.pem", "w0.key", "w0.pem",
    ]  # fmt: skip


@pytest.mark.parametrize("words", [("ca",), ("server", "h"), ("worker", "w0")])
@pytest.mark.parametrize("left", [".pem", ".key", ".pem and .key"])
def test_nothing_is_overwritten_unasked(make, folder, words, left, capsys):
    assert make("ca") == make("server", "h") == make("worker", "w0") == 0
    name = "w0" if words[0] == "worker" else words[0]
    if name != "ca" and "and" not in left:
        (folder / f"{name}{'.key' if left == '.pem' else '.pem'}").unlink()
    before = content(folder)
    assert make(*words) == 1
    assert content(folder) == before
    assert "exists; pass --replace" in capsys.readouterr().err
    assert make(*words, "--replace") == 0
    key = load_pem_private_key((folder / f"{name}.key").read_bytes(), None)
    assert key.public_key() == read(folder / f"{name}.pem").public_key()
    assert content(folder)[f"{name}.key"] != before.get(f"{name}.key")


def test_lifetimes_are_as_asked_and_end_with_the_ca(make, folder, capsys):
    assert make("ca", "--days", "100") == make("server", "h", "--days", "30") == make("worker", "w0") == 0
    now = datetime.datetime.now(datetime.UTC)
    ca, server, worker = (read(folder / f"{name}.pem") for name in ("ca", "server", "w0"))
    assert 99 * DAY < ca.not_valid_after_utc - now <= 100 * DAY
    assert 29 * DAY < server.not_valid_after_utc - now <= 30 * DAY
    assert worker.not_valid_after_utc == ca.not_valid_after_utc
    assert ", with the CA" in capsys.readouterr().out
    for made in (ca, server, worker):  # machines whose clocks are slow
        assert now - made.not_valid_before_utc > datetime.timedelta(minutes=59)


@pytest.mark.parametrize(
    "host",
    ["h:50051", "http://h", "", ".", "a..b", "-h", "h-", "10.0.0.256", "10.0.0", "0.0.0.0", "[::]", "a b", "h" * 64,
     "a/b", "*", "*.*.b", "x\x00", ".".join(["abcdefgh"] * 29)],
)  # fmt: skip
def test_a_host_that_no_worker_can_use_is_refused(make, folder, host, capsys):
    assert make("ca") == 0
    before = content(folder)
    assert make("server", "good", "--", host) == 1 if host.startswith("-") else make("server", "good", host) == 1
    assert content(folder) == before
    assert f"numba-adam: HOST={host!r}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("host", "written"),
    [("EXAMPLE.org.", "example.org"), ("[2001:DB8::7]", "2001:db8::7"), ("bücher.example", "xn--bcher-kva.example"),
     ("my_host", "my_host"), ("trainer", "trainer")],
)  # fmt: skip
def test_hosts_are_written_as_certificates_have_them(make, folder, host, written):
    assert make("ca") == make("server", host) == 0
    names = read(folder / "server.pem").extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [str(name.value) for name in names] == [written, "localhost", "127.0.0.1", "::1"]


@pytest.mark.parametrize("name", ["", "../w0", ".w0", "a/b", "w 0", "w" * 65, "w\n"])
def test_a_worker_whose_name_makes_no_file_name_is_refused(make, folder, name):
    assert make("ca") == 0
    before = content(folder)
    assert make("worker", name) == 1
    assert content(folder) == before
    assert not (folder.parent / "w0.pem").exists()


def swap_the_ca_key(folder: Path) -> None:
    other = folder.parent / "other"
    assert main(["certificate", "ca", "--folder", str(other)]) == 0
    (folder / "ca.key").write_bytes((other / "ca.key").read_bytes())


@pytest.mark.parametrize(
    ("breaking", "words"),
    [
        (lambda folder: (folder / "ca.key").chmod(0o644), "other users may use this private key"),
        (lambda folder: (folder / "ca.key").unlink(), "cannot be read"),
        (lambda folder: (folder / "ca.pem").unlink(), "cannot be used"),
        (lambda folder: (folder / "ca.pem").write_bytes(b"?"), "cannot be used"),
        (lambda folder: (folder / "ca.key").write_bytes(b"?"), "cannot be used"),
        (swap_the_ca_key, "is not the key of its ca.pem"),
        (lambda folder: [path.unlink() for path in folder.iterdir()], "it contains no CA; make one with: numba-adam"),
    ],
)
def test_without_a_usable_ca_nothing_is_issued(make, folder, breaking, words, capsys):
    assert make("ca") == 0
    breaking(folder)
    before = content(folder)
    assert make("server", "h") == make("worker", "w0") == 1
    assert content(folder) == before
    assert capsys.readouterr().err.count(words) == 2


@pytest.mark.parametrize("days", ["0", "-1", "1.5", "x", "36501"])
def test_an_impossible_lifetime_is_an_invalid_command_line(make, days):
    with pytest.raises(SystemExit) as exit_info:
        make("ca", "--days", days)
    assert exit_info.value.code == 2


def test_a_folder_that_cannot_be_written_is_reported(tmp_path, capsys):
    (tmp_path / "file").write_text("not a folder")
    assert main(["certificate", "ca", "--folder", str(tmp_path / "file" / "below")]) == 1
    assert "cannot be written" in capsys.readouterr().err
