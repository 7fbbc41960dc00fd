"""Real certificates, made by the cryptography package alone, and servers that use them."""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from numba_adam.cli import main
from numba_adam.client import ParameterClient
from numba_adam.server.config import ServerConfig
from numba_adam.server.embedded import Server

sys.path[:0] = [str(Path(__file__).parent)]  # for `calls`, which is no test itself

LONG = 800.0
SERVER, WORKER = ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH


class Files(NamedTuple):
    """The files of a certificate and its key."""

    certificate: Path
    key: Path


def named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def alternative(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def key_pem(key, password: bytes | None = None) -> bytes:
    encryption = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)


class Authority:
    """A CA that issues any certificate that it is asked for, also expired ones."""

    def __init__(self, folder: Path, name: str = "CA", *, begins: float = -1, ends: float = 30) -> None:
        self.folder, self.name = folder, f"{name} in {folder.name}" if name else folder.name
        self.key = ec.generate_private_key(ec.SECP256R1())
        folder.mkdir(exist_ok=True)
        self.certificate = self.sign(self.name, self.key.public_key(), [], begins, ends, is_ca=True)
        self.file = folder / "ca.pem"
        self.file.write_bytes(self.certificate.public_bytes(serialization.Encoding.PEM))

    def sign(self, name, public_key, extensions, begins, ends, *, is_ca=False) -> x509.Certificate:
        """Sign a certificate; it begins and ends so many days from now."""
        now = datetime.datetime.now(datetime.UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(named(name))
            .issuer_name(named(self.name))
            .public_key(public_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + datetime.timedelta(days=begins))
            .not_valid_after(now + datetime.timedelta(days=ends))
            .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
        )
        for extension in extensions:
            builder = builder.add_extension(extension, critical=False)
        return builder.sign(self.key, hashes.SHA256())

    def write(self, folder, names=("127.0.0.1", "localhost"), *, begins=-1.0, ends=30.0, use=SERVER, key=None) -> Files:
        """Write a new certificate and its key into a folder, over those that it contains."""
        key = key or ec.generate_private_key(ec.SECP256R1())
        extensions = [x509.SubjectAlternativeName(list(map(alternative, names))), x509.ExtendedKeyUsage([use])]
        certificate = self.sign(names[0], key.public_key(), extensions, begins, ends)
        files = Files(self.folder / folder / "certificate.pem", self.folder / folder / "key.pem")
        files.key.parent.mkdir(exist_ok=True)
        files.key.touch(mode=0o600)
        files.key.write_bytes(key_pem(key))
        files.certificate.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        return files

    def worker(self, folder: str = "worker", **changes) -> Files:
        """Write a worker's certificate."""
        return self.write(folder, ("w0",), use=WORKER, **changes)


@pytest.fixture
def make_authority(tmp_path: Path) -> Callable[..., Authority]:
    return lambda folder="ca", **changes: Authority(tmp_path / folder, **changes)


@pytest.fixture
def authority(make_authority: Callable[..., Authority]) -> Authority:
    return make_authority()


@pytest.fixture
def make_server(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Start servers in this process, with TLS if they are given files; they are stopped at the end."""
    with contextlib.ExitStack() as stack:

        def make(files: Files | None = None, folder: str = "data", **settings: object) -> Server:
            tls = {} if files is None else {"tls_certificate": files.certificate, "tls_key": files.key}
            options = {"listen": "127.0.0.1:0", "stall_seconds": 800.0, "snapshot_interval_seconds": 0.0, "threads": 2}
            config = ServerConfig(data_dir=tmp_path / folder, **{**options, **tls, **settings})
            return stack.enter_context(Server(config))

        yield make


@pytest.fixture(autouse=True)
def environment(monkeypatch, tmp_path):
    """No token of whoever runs the tests, and a configuration folder of the test's own."""
    monkeypatch.delenv("NUMBA_ADAM_TOKEN", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "configuration"))


@pytest.fixture
def make_token(tmp_path, capsys):
    """Return a function that makes a token with the command; returns its text."""

    def make(name, *words):
        capsys.readouterr()
        assert main(["token", "make", name, *words, "--data-dir", str(tmp_path / "data")]) == 0
        return capsys.readouterr().out.strip()

    return make


@pytest.fixture
def revoke(tmp_path):
    return lambda name: main(["token", "revoke", name, "--data-dir", str(tmp_path / "data")])


@pytest.fixture
def admin(make_token):
    """The token of someone who may do everything. It exists before the server starts for the first time."""
    return make_token("admin", "--admin", "*")


@pytest.fixture
def server(make_server, admin):
    return make_server(loopback_token="required")


@pytest.fixture
def connect(server):
    """Return a function that connects with a token."""
    with contextlib.ExitStack() as stack:

        def make(token, worker_id=None):
            return stack.enter_context(
                ParameterClient(server.address, worker_id, token=token, tls=False, timeout_seconds=LONG)
            )

        yield make
