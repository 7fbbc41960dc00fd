"""Reads the PEM files of both ends: a certificate with its key, and the CAs to trust.

Imports the standard library, the error tree and its neighbour.
"""

from __future__ import annotations

import os
import ssl
import stat
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from numba_adam.errors import ConfigurationError
from numba_adam.ps.x509 import Certificate, parse

ACCEPTED_KEYS = ("RSA", "P-256", "P-384")
"""The kinds of keys that gRPC accepts from its peer."""

_MOST_BYTES = 1 << 20
_TRIES = 5
_END = "-----END CERTIFICATE-----"
_BEGIN = "-----BEGIN CERTIFICATE-----"


class Pair(NamedTuple):
    """A certificate and its private key."""

    chain: bytes
    """The certificate and those of intermediate CAs, in PEM."""

    key: bytes
    """The private key, in PEM."""

    certificate: Certificate
    """What the certificate says."""


class PairFiles(NamedTuple):
    """The files of a pair, and the names of their settings for messages."""

    certificate: Path
    key: Path
    certificate_setting: str
    key_setting: str


def read_pair(files: PairFiles) -> Pair:
    """Read a certificate and its key, and check that they belong together.

    Raises:
        ConfigurationError: a file cannot be read, others may use the key, or the two do not belong together.
    """
    check_key_file(files.key_setting, files.key)
    for _ in range(_TRIES):  # another program may replace the files between two reads
        chain, key = _read(files.certificate_setting, files.certificate), _read(files.key_setting, files.key)
        try:
            certificate = _checked(files, chain)
        except ConfigurationError:
            if _is_unchanged(files, chain, key):
                raise
            continue
        if _is_unchanged(files, chain, key):
            return Pair(chain, key, certificate)
    raise ConfigurationError(f"{files.certificate_setting}={str(files.certificate)!r}: it changes while it is read")


def read_authorities(setting: str, path: Path) -> tuple[bytes, tuple[Certificate, ...]]:
    """Read the certificates of the CAs to trust; return them in PEM, and what they say.

    Raises:
        ConfigurationError: the file cannot be read, or it contains no certificate.
    """
    raw = _read(setting, path)
    certificates = _certificates(raw)
    if not certificates:
        raise ConfigurationError(f"{setting}={str(path)!r}: it must be a PEM file with the certificate of a CA")
    return raw, certificates


def check_key_file(setting: str, path: Path) -> None:
    """Check that other users cannot read or replace the content of a private key's file.

    A group may read a file that belongs to root: this is how systems give one key to several services.

    Raises:
        ConfigurationError: they can, or the file cannot be read.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise _unreadable(setting, path, error) from error
    if not hasattr(os, "geteuid"):
        return
    if status.st_uid not in (0, os.geteuid()):
        raise ConfigurationError(
            f"{setting}={str(path)!r}: it belongs to user {status.st_uid}, and this process runs as user "
            f"{os.geteuid()}; a private key must belong to the user that uses it, or to root"
        )
    forbidden = stat.S_IRWXO | stat.S_IWGRP | stat.S_IXGRP
    forbidden |= 0 if status.st_uid == 0 else stat.S_IRGRP
    if status.st_mode & forbidden:
        raise ConfigurationError(
            f"{setting}={str(path)!r}: other users may use this private key (mode {stat.S_IMODE(status.st_mode):o}, "
            f"expected 600); run: chmod 600 {path}"
        )


def when(time: datetime) -> str:
    """Return a time in words.

    >>> when(datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC))
    '2030-01-02 03:04:05 UTC'
    """
    return f"{time.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def why_not_valid_now(certificate: Certificate) -> str | None:
    """Return why a certificate is not valid at this time, with the time of this machine's clock; None if it is."""
    now = datetime.now(UTC)
    if now > certificate.not_after:
        return f"it expired on {when(certificate.not_after)} (this machine's clock says {when(now)})"
    if now < certificate.not_before:
        return f"it is not valid before {when(certificate.not_before)}, and this machine's clock says {when(now)}"
    return None


def _checked(files: PairFiles, chain: bytes) -> Certificate:
    """Return what the certificate of a pair says, once OpenSSL has accepted the pair."""
    certificates = _certificates(chain)
    if not certificates:
        raise ConfigurationError(
            f"{files.certificate_setting}={str(files.certificate)!r}: it must be a PEM file with a certificate"
        )
    if certificates[0].key not in ACCEPTED_KEYS:
        raise ConfigurationError(
            f"{files.certificate_setting}={str(files.certificate)!r}: its key is {certificates[0].key}, and gRPC "
            f"accepts {', '.join(ACCEPTED_KEYS)}; make another certificate"
        )

    def refuse() -> str:  # otherwise OpenSSL would ask for the password on the terminal
        raise ConfigurationError(
            f"{files.key_setting}={str(files.key)!r}: the private key is encrypted, and nobody can type its password; "
            "give a file with the decrypted key"
        )

    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(files.certificate, files.key, refuse)
    except ssl.SSLError as error:
        raise ConfigurationError(_pair_in_words(files, error)) from error
    except OSError as error:
        raise _unreadable(files.key_setting, files.key, error) from error
    return certificates[0]


def _pair_in_words(files: PairFiles, error: ssl.SSLError) -> str:
    where = f"{files.key_setting}={str(files.key)!r}"
    if error.reason == "KEY_VALUES_MISMATCH":
        return (
            f"{where}: it is not the key of the certificate in {str(files.certificate)!r}; give the two files that "
            "were made together"
        )
    return f"{where}: it must be a PEM file with an unencrypted private key ({error.reason or error})"


def _certificates(raw: bytes) -> tuple[Certificate, ...]:
    """Return what the certificates in a PEM file say; nothing if one of them is damaged."""
    blocks = raw.decode("ascii", "replace").split(_BEGIN)[1:]
    try:
        return tuple(parse(ssl.PEM_cert_to_DER_cert(f"{_BEGIN}{block.partition(_END)[0]}{_END}")) for block in blocks)
    except ValueError:
        return ()


def _is_unchanged(files: PairFiles, chain: bytes, key: bytes) -> bool:
    again = _read(files.certificate_setting, files.certificate), _read(files.key_setting, files.key)
    return again == (chain, key)


def _read(setting: str, path: Path) -> bytes:
    """Return the content of a file; what is none, such as a pipe, could block whoever reads it."""
    try:
        with open(path, "rb", opener=_open_at_once) as file:
            if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                return file.read(_MOST_BYTES)
    except OSError as error:
        raise _unreadable(setting, path, error) from error
    raise ConfigurationError(f"{setting}={str(path)!r}: it must be a file, not a pipe or a device")


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _unreadable(setting: str, path: Path, error: OSError) -> ConfigurationError:
    return ConfigurationError(f"{setting}={str(path)!r}: it cannot be read ({error.strerror})")
