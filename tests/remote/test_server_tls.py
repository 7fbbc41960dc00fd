"""TLS of the server: who is served, and how its files are renewed while it serves."""

from __future__ import annotations

import logging
import os
import shutil
import socket
import ssl
import subprocess
import sys
from pathlib import Path

import grpc
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from numba_adam.errors import ConfigurationError
from numba_adam.ps.v1 import parameter_service_pb2 as pb
from numba_adam.ps.v1.parameter_service_pb2_grpc import ParameterServiceStub

OPTIONS = [("grpc.enable_http_proxy", 0), ("grpc.use_local_subchannel_pool", 1)]


def channel(address, ca=None, pair=None):
    """Return a channel of plain gRPC; without a CA it uses no TLS."""
    if ca is None:
        return grpc.insecure_channel(address, OPTIONS)
    own = (pair.key.read_bytes(), pair.certificate.read_bytes()) if pair else ()
    return grpc.secure_channel(address, grpc.ssl_channel_credentials(ca.file.read_bytes(), *own), OPTIONS)


def version_from(open_channel):
    answer = ParameterServiceStub(open_channel).GetServerStatus(pb.GetServerStatusRequest(), timeout=800)
    return answer.server_version


def serves(address, ca=None, pair=None):
    """Return whether a new connection is served."""
    with channel(address, ca, pair) as fresh:
        try:
            return bool(version_from(fresh))
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE:
                raise
            return False


def presented(address):
    """Return the certificate that the server presents in a new connection."""
    host, _, port = address.rpartition(":")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with socket.create_connection((host.strip("[]"), int(port))) as raw, context.wrap_socket(raw) as connection:
        return ssl.DER_cert_to_PEM_cert(connection.getpeercert(binary_form=True))


def test_a_client_that_trusts_the_ca_is_served(authority, make_authority, make_server):
    server = make_server(authority.write("server"))
    assert serves(server.address, authority)
    assert not serves(server.address)
    assert not serves(server.address, make_authority("other"))


def addresses_of(server):
    """Return the server's address by number, once for each address of localhost that this machine has."""
    port = server.address.rpartition(":")[2]
    return [f"{host}:{port}" for host in ("127.0.0.1", "[::1]") if is_reachable(host.strip("[]"), int(port))]


def is_reachable(host, port):
    try:
        socket.create_connection((host, port)).close()
    except OSError:
        return False
    return True


def test_every_address_of_a_name_has_tls_and_follows_the_files(authority, make_server):
    names = ("localhost", "127.0.0.1", "::1")
    server = make_server(authority.write("server", names), listen="localhost:0")
    found = addresses_of(server)
    assert found
    for _ in range(2):
        assert all(serves(address, authority) for address in found)
        assert not any(serves(address) for address in found)
        files = authority.write("server", names)
        assert {presented(address) for address in found} == {files.certificate.read_text()}


def test_with_a_client_ca_only_its_workers_are_served(authority, make_authority, make_server):
    other = make_authority("other")
    server = make_server(authority.write("server"), client_ca=authority.file)
    assert serves(server.address, authority, authority.worker())
    assert not serves(server.address, authority)
    assert not serves(server.address, authority, other.worker())
    assert not serves(server.address, authority, authority.worker(begins=-9, ends=-1))
    assert not serves(server.address, authority, authority.write("server as worker"))


def test_a_renewed_certificate_is_presented_without_a_restart(authority, make_server):
    files = authority.write("server")
    server = make_server(files)
    with channel(server.address, authority) as earlier:
        assert version_from(earlier)
        before = presented(server.address)
        authority.write("server")
        after = presented(server.address)
        assert before != after == files.certificate.read_text()
        assert version_from(earlier)  # connections stay
    assert serves(server.address, authority)


def test_a_renewed_client_ca_is_used_without_a_restart(authority, make_authority, make_server, tmp_path):
    first, second = make_authority("first"), make_authority("second")
    trusted = tmp_path / "client-ca.pem"
    trusted.write_bytes(first.file.read_bytes())
    server = make_server(authority.write("server"), client_ca=trusted)
    assert serves(server.address, authority, first.worker())
    assert not serves(server.address, authority, second.worker())
    trusted.write_bytes(second.file.read_bytes())
    assert serves(server.address, authority, second.worker())
    assert not serves(server.address, authority, first.worker())
    trusted.write_bytes(first.file.read_bytes() + second.file.read_bytes())  # both, while workers move over
    assert serves(server.address, authority, first.worker())
    assert serves(server.address, authority, second.worker())


def swap_key(authority, files):
    key = authority.write("another").key.read_bytes()
    files.key.write_bytes(key)


def encrypt(authority, files):
    key = serialization.load_pem_private_key(files.key.read_bytes(), None)
    files.key.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )


def damage(authority, files):
    files.certificate.write_bytes(files.certificate.read_bytes()[:200])


def exchange(authority, files):
    certificate, key = files.certificate.read_bytes(), files.key.read_bytes()
    files.certificate.write_bytes(key)
    files.key.write_bytes(certificate)


def replace_by_pipe(path):
    path.unlink()
    os.mkfifo(path, 0o600)


BROKEN = {
    "of another pair": (swap_key, "is not the key of the certificate"),
    "encrypted": (encrypt, "the private key is encrypted"),
    "cut short": (damage, "must be a PEM file with a certificate"),
    "exchanged": (exchange, "must be a PEM file with a certificate"),
    "empty": (lambda _, files: files.key.write_bytes(b""), "must be a PEM file with an unencrypted private key"),
    "missing": (lambda _, files: files.certificate.unlink(), "cannot be read"),
    "readable by others": (lambda _, files: files.key.chmod(0o644), "other users may use this private key"),
    "writable by the group": (lambda _, files: files.key.chmod(0o620), "other users may use this private key"),
    "a pipe": (lambda _, files: replace_by_pipe(files.certificate), "must be a file"),
    "with a pipe as key": (lambda _, files: replace_by_pipe(files.key), "must be a file"),
    "a folder": (lambda _, files: (files.certificate.unlink(), files.certificate.mkdir()), "cannot be read"),
    "expired": (lambda ca, _: ca.write("server", begins=-9, ends=-1), "it expired on"),
    "not valid yet": (lambda ca, _: ca.write("server", begins=1, ends=9), "it is not valid before"),
    "with a P-521 key": (
        lambda ca, _: ca.write("server", key=ec.generate_private_key(ec.SECP521R1())),
        "its key is P-521, and gRPC accepts RSA, P-256, P-384",
    ),
    "with an Ed25519 key": (
        lambda ca, _: ca.write("server", key=ed25519.Ed25519PrivateKey.generate()),
        "its key is Ed25519",
    ),
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_pair_stops_the_start(how, authority, make_server, tmp_path):
    files = authority.write("server")
    breaking, words = BROKEN[how]
    breaking(authority, files)
    with pytest.raises(ConfigurationError, match=words) as caught:
        make_server(files)
    assert str(files.certificate) in str(caught.value) or str(files.key) in str(caught.value)
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_pair_leaves_the_earlier_one_in_use_and_is_logged_once(how, authority, make_server, caplog):
    files = authority.write("server")
    server = make_server(files)
    before = presented(server.address)
    breaking, words = BROKEN[how]
    breaking(authority, files)
    with caplog.at_level(logging.ERROR):
        assert [presented(server.address) for _ in range(3)] == [before] * 3
        assert serves(server.address, authority)
    (record,) = caplog.records
    assert "the earlier ones stay in use" in record.getMessage()
    assert words in record.getMessage()
    for file in files:
        shutil.rmtree(file) if file.is_dir() else file.unlink(missing_ok=True)
    repaired = authority.write("server")
    repaired.key.chmod(0o600)
    assert presented(server.address) == repaired.certificate.read_text()


def test_another_broken_pair_is_logged_again(authority, make_server, caplog):
    files = authority.write("server")
    server = make_server(files)
    with caplog.at_level(logging.ERROR):
        for _ in range(2):
            swap_key(authority, files)
            assert presented(server.address)
    assert len(caplog.records) == 2


def test_a_certificate_that_ends_soon_is_logged_as_a_warning(authority, make_server, caplog):
    with caplog.at_level(logging.WARNING):
        make_server(authority.write("server", ends=13))
        make_server(authority.write("another", ends=20), folder="other data")
    (record,) = caplog.records
    assert "renew it soon" in record.getMessage()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"tls_certificate": Path("c.pem")}, "tls_key: TLS needs tls_certificate and tls_key"),
        ({"tls_key": Path("k.pem")}, "tls_certificate: TLS needs tls_certificate and tls_key"),
        ({"client_ca": Path("ca.pem")}, "client_ca: it needs TLS"),
    ],
)
def test_an_incomplete_set_of_files_is_refused(settings, words, make_server):
    with pytest.raises(ConfigurationError, match=words):
        make_server(**settings)


@pytest.mark.parametrize("content", [b"", b"no certificate"])
def test_a_client_ca_without_a_certificate_is_refused(content, authority, make_server, tmp_path):
    trusted = tmp_path / "client-ca.pem"
    trusted.write_bytes(content)
    with pytest.raises(ConfigurationError, match="must be a PEM file with the certificate of a CA"):
        make_server(authority.write("server"), client_ca=trusted)


def test_the_command_serves_with_tls(authority, tmp_path):
    files = authority.write("server")
    command = [sys.executable, "-m", "numba_adam", "serve", "--listen", "127.0.0.1:0"]
    command += ["--data-dir", str(tmp_path / "data"), "--tls-certificate", str(files.certificate)]
    command += ["--tls-key", str(files.key), "--client-ca", str(authority.file)]
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, cwd=tmp_path)
    try:
        address = server.stdout.readline().split()[-1]
        assert serves(address, authority, authority.worker())
        assert not serves(address, authority)
    finally:
        server.terminate()
        assert server.wait(800) == 0
        server.stdout.close()
    assert "with TLS" in (tmp_path / "log").read_text()


def test_files_behind_links_are_followed(authority, make_server, tmp_path):
    """Kubernetes renews a mounted secret by turning a symbolic link to another folder."""
    first, second = authority.write("first"), authority.write("second")
    link = tmp_path / "current"
    link.symlink_to(first.key.parent)
    server = make_server(type(first)(link / "certificate.pem", link / "key.pem"))
    assert presented(server.address) == first.certificate.read_text()
    (tmp_path / "next").symlink_to(second.key.parent)
    (tmp_path / "next").replace(link)
    assert presented(server.address) == second.certificate.read_text()


def test_a_chain_with_an_intermediate_ca_is_served(authority, make_authority, make_server):
    """The file has the server's certificate first, then that of the CA between it and the trusted one."""
    between = make_authority("between")
    middle = authority.sign(between.name, between.key.public_key(), [], -1, 9, is_ca=True)
    files = between.write("server")
    files.certificate.write_bytes(files.certificate.read_bytes() + middle.public_bytes(serialization.Encoding.PEM))
    server = make_server(files)
    assert serves(server.address, authority)
    assert not serves(server.address, make_authority("other"))
