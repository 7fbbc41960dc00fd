"""Makes certificates: a CA, and what it issues for servers and workers. Needs the cryptography package.

The certificates pass the checks of gRPC (BoringSSL) and of Python (OpenSSL): keys on the curve P-256, host names and IP
addresses as subjectAltName, the purpose of each, and identifiers of keys, which tell CAs with the same name apart.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import re
import secrets
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

from numba_adam.errors import ConfigurationError
from numba_adam.kernel_cache import private_folder
from numba_adam.ps.pem import check_key_file, when

_CLOCKS_DIFFER = timedelta(hours=1)
"""A certificate is valid from this long ago on, for machines whose clocks are slow."""

_LOCAL = ("localhost", "127.0.0.1", "::1")
_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")
_TEMPORARY = ".writing"


class Made(NamedTuple):
    """A certificate that was made."""

    certificate: Path
    key: Path
    names: tuple[str, ...]
    """Host names and IP addresses that it is valid for."""

    ends: datetime
    note: str
    """What to say about its end; may be empty."""


class _Authority(NamedTuple):
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey


def make_authority(folder: Path, name: str | None, days: int, *, replace: bool) -> Made:
    """Make a CA: ca.pem and ca.key.

    Args:
        folder: where; created, for this user only, if it does not exist.
        name: its common name; None: a random one.
        days: its lifetime.
        replace: whether to overwrite an earlier CA. What that one has issued is then worthless.

    Raises:
        ConfigurationError: a file exists, or cannot be written.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    subject = _subject(name or f"numba-adam CA {secrets.token_hex(4)}")
    usage = _usage(signs_certificates=True)
    ends = _now() + timedelta(days=days)
    builder = _builder(subject, subject, key.public_key(), ends).add_extension(usage, critical=True)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    certificate = builder.sign(key, hashes.SHA256())
    return Made(*_write(folder, "ca", certificate, key, replace=replace), (), ends, "")


def issue_server(folder: Path, file_name: str, hosts: Sequence[str], days: int, *, replace: bool) -> Made:
    """Make a certificate for a server.

    Args:
        folder: where the CA is, and the files will be.
        file_name: name of the files, without suffix.
        hosts: host names and IP addresses that workers connect to. Those of this machine itself are added.
        days: its lifetime; it ends with the CA's at the latest.
        replace: whether to overwrite earlier files.

    Raises:
        ConfigurationError: there is no CA, a name is not valid, a file exists, or it cannot be written.
    """
    names = tuple(dict.fromkeys([*map(_checked_host, hosts), *_LOCAL]))
    return _issue(folder, file_name, names[0], names, ExtendedKeyUsageOID.SERVER_AUTH, days, replace=replace)


def issue_worker(folder: Path, name: str, days: int, *, replace: bool) -> Made:
    """Make a certificate for a worker; see `issue_server`."""
    return _issue(folder, name, name, (), ExtendedKeyUsageOID.CLIENT_AUTH, days, replace=replace)


def _issue(
    folder: Path,
    file_name: str,
    name: str,
    names: tuple[str, ...],
    purpose: ObjectIdentifier,
    days: int,
    *,
    replace: bool,
) -> Made:
    authority = _load(folder)
    key = ec.generate_private_key(ec.SECP256R1())
    wanted, limit = _now() + timedelta(days=days), authority.certificate.not_valid_after_utc
    ends = min(wanted, limit)
    builder = _builder(_subject(name), authority.certificate.subject, key.public_key(), ends)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(_usage(signs_certificates=False), critical=True)
    builder = builder.add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
    above = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key())
    builder = builder.add_extension(above, critical=False)
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName([_general(each) for each in names]), critical=False)
    certificate = builder.sign(authority.key, hashes.SHA256())
    note = "" if wanted <= limit else ", with the CA"
    return Made(*_write(folder, file_name, certificate, key, replace=replace), names, ends, note)


def _now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)


def _subject(name: str) -> x509.Name:
    try:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    except ValueError as error:
        raise ConfigurationError(f"name: expected 1 to 64 characters, got {name!r}") from error


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, ends: datetime
) -> x509.CertificateBuilder:
    """Return what all certificates have."""
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(_now() - _CLOCKS_DIFFER)
        .not_valid_after(ends)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _checked_host(host: str) -> str:
    """Return a host name or an IP address as certificates have them."""
    try:
        number = ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
    except ValueError:
        return _checked_name(host)
    if number.is_unspecified:
        raise ConfigurationError(f"HOST={host!r}: workers cannot connect to this address; name the one that they use")
    return str(number)


def _checked_name(host: str) -> str:
    bare = host.lower().removesuffix(".")
    with contextlib.suppress(UnicodeError):
        bare = bare.encode("idna").decode("ascii")
    labels = bare.removeprefix("*.").split(".")
    is_number = labels[-1].isdecimal()  # 10.0.0 or 10.0.0.256
    if is_number or len(bare) > 253 or not all(map(_LABEL.fullmatch, labels)):
        raise ConfigurationError(
            f"HOST={host!r}: expected a host name or an IP address without a port, such as trainer.example.org or "
            "10.0.0.5"
        )
    return bare


def _general(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _load(folder: Path) -> _Authority:
    """Read the CA of a folder.

    Raises:
        ConfigurationError: there is none, it cannot be used, or it has expired.
    """
    path, key_path = folder / "ca.pem", folder / "ca.key"
    if not path.exists() and not key_path.exists():
        made_by = "numba-adam certificate ca" + _option(folder)
        raise ConfigurationError(f"folder={str(folder)!r}: it contains no CA; make one with: {made_by}")
    check_key_file("ca.key", key_path)
    try:
        certificate = x509.load_pem_x509_certificate(path.read_bytes())
        key = load_pem_private_key(key_path.read_bytes(), None)
    except (OSError, ValueError, TypeError) as error:  # TypeError: the key is encrypted
        raise ConfigurationError(f"folder={str(folder)!r}: its ca.pem or ca.key cannot be used ({error})") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
        raise ConfigurationError(f"folder={str(folder)!r}: its ca.key is not the key of its ca.pem")
    if certificate.not_valid_after_utc <= _now():
        raise ConfigurationError(
            f"folder={str(folder)!r}: its CA expired on {when(certificate.not_valid_after_utc)}; make another one "
            f"with: numba-adam certificate ca{_option(folder)} --replace"
        )
    return _Authority(certificate, key)


def _option(folder: Path) -> str:
    return "" if folder == Path("numba-adam-certificates") else f" --folder {folder}"


def _write(
    folder: Path, file_name: str, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey, *, replace: bool
) -> tuple[Path, Path]:
    """Write NAME.pem and NAME.key, both or none; return their paths."""
    if not _FILE_NAME.fullmatch(file_name):
        raise ConfigurationError(f"name: expected 1 to 64 of A-Z a-z 0-9 . _ - without . or - first, got {file_name!r}")
    content = {
        folder / f"{file_name}.key": key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        folder / f"{file_name}.pem": certificate.public_bytes(Encoding.PEM),
    }
    existing = [path for path in content if os.path.lexists(path)]
    if existing and not replace:
        raise _exists(existing[0])
    written: list[Path] = []
    linked: list[Path] = []
    try:
        _make_folder(folder)
        for path, raw in content.items():
            written.append(_write_beside(path, raw))
        for temporary, path in zip(written, content, strict=True):
            if replace:
                temporary.replace(path)
            else:
                path.hardlink_to(temporary)  # fails if another process has made the file meanwhile
                linked.append(path)
    except OSError as error:
        for path in linked:
            path.unlink()
        if isinstance(error, FileExistsError):
            raise _exists(folder / file_name) from error
        raise _not_writable(folder, error) from error
    finally:
        for temporary in written:
            temporary.unlink(missing_ok=True)
    key_path, path = content
    return path, key_path


def _make_folder(folder: Path) -> None:
    try:
        private_folder.make(folder.absolute())
    except OSError as error:
        raise _not_writable(folder, error) from error


def _not_writable(folder: Path, error: OSError) -> ConfigurationError:
    return ConfigurationError(f"folder={str(folder)!r}: it cannot be written ({error.strerror})")


def _exists(path: Path) -> ConfigurationError:
    return ConfigurationError(f"{str(path)!r} exists; pass --replace to overwrite it, or choose another name")


def _write_beside(path: Path, raw: bytes) -> Path:
    """Write a file that only this user can read, beside its final place; return its path."""
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}{_TEMPORARY}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with open(descriptor, "wb") as file:
        os.fchmod(descriptor, 0o600)
        file.write(raw)
        file.flush()
        os.fsync(descriptor)
    return temporary
