"""Reads names, dates and the kind of key from a certificate. Imports the standard library.

Python's ssl module verifies certificates, but it describes only those that it has verified. An error message needs the
dates of an expired certificate too. A certificate is a tree of elements in DER (RFC 5280, section 4.1; X.690): each is
a tag, a length and a content.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import NamedTuple

_UTC_TIME, _EXPLICIT_0, _EXPLICIT_3 = 0x17, 0xA0, 0xA3
_DNS_NAME, _IP_ADDRESS = 0x82, 0x87
_COMMON_NAME = bytes.fromhex("550403")  # 2.5.4.3
_ALTERNATIVE_NAME = bytes.fromhex("551d11")  # 2.5.29.17
_KEYS = {
    bytes.fromhex("2a864886f70d010101"): "RSA",
    bytes.fromhex("2a8648ce3d030107"): "P-256",
    bytes.fromhex("2b81040022"): "P-384",
    bytes.fromhex("2b81040023"): "P-521",
    bytes.fromhex("2b6570"): "Ed25519",
    bytes.fromhex("2b6571"): "Ed448",
}
_ELLIPTIC = bytes.fromhex("2a8648ce3d0201")  # its curve follows


class Certificate(NamedTuple):
    """What a certificate says."""

    subject: str
    """Common name of its owner; empty if it has none."""

    issuer: str
    """Common name of the CA that issued it."""

    not_before: datetime
    """It is valid from this time on."""

    not_after: datetime
    """It is valid until this time."""

    names: tuple[str, ...]
    """Host names and IP addresses that it is valid for."""

    key: str
    """Kind of its key: "RSA", "P-256", "P-384", or another one, which gRPC does not accept."""


class _Element(NamedTuple):
    tag: int
    content: bytes

    def parts(self) -> Iterator[_Element]:
        rest = self.content
        while rest:
            element, rest = _first(rest)
            yield element


def parse(der: bytes) -> Certificate:
    """Return what a certificate says.

    Raises:
        ValueError: it is not a certificate.
    """
    try:
        return _parse(_first(der)[0])
    except (IndexError, StopIteration, UnicodeDecodeError) as error:
        raise ValueError("not an X.509 certificate") from error


def _first(raw: bytes) -> tuple[_Element, bytes]:
    """Return the first element and what follows it."""
    start, length = 2, raw[1]
    if length & 0x80:
        start += length & 0x7F
        length = int.from_bytes(raw[2:start], "big")
    if len(raw) < start + length:
        raise ValueError("not an X.509 certificate: it is cut short")
    return _Element(raw[0], raw[start : start + length]), raw[start + length :]


def _parse(certificate: _Element) -> Certificate:
    fields = list(next(certificate.parts()).parts())
    if fields[0].tag == _EXPLICIT_0:  # the version
        fields = fields[1:]
    _serial, _signature, issuer, validity, subject, key, *optional = fields
    not_before, not_after = map(_time, validity.parts())
    names = [name for item in optional if item.tag == _EXPLICIT_3 for name in _names(item)]
    return Certificate(_common_name(subject), _common_name(issuer), not_before, not_after, tuple(names), _key(key))


def _time(element: _Element) -> datetime:
    text = element.content.decode("ascii")
    if element.tag == _UTC_TIME:  # two digits for the year: 1950 to 2049
        text = ("19" if text >= "5" else "20") + text
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC)


def _common_name(name: _Element) -> str:
    for item in (item for group in name.parts() for item in group.parts()):
        kind, value = item.parts()
        if kind.content == _COMMON_NAME:
            return value.content.decode("utf-8", "replace")
    return ""


def _names(extensions: _Element) -> Iterator[str]:
    for extension in next(extensions.parts()).parts():
        kind, *_critical, value = extension.parts()
        if kind.content == _ALTERNATIVE_NAME:
            for name in _first(value.content)[0].parts():
                if name.tag == _DNS_NAME:
                    yield name.content.decode("ascii")
                elif name.tag == _IP_ADDRESS:
                    yield str(ipaddress.ip_address(name.content))


def _key(information: _Element) -> str:
    kind, *parameters = next(information.parts()).parts()
    name = parameters[0].content if kind.content == _ELLIPTIC else kind.content
    return _KEYS.get(name, f"of the unknown kind {name.hex()}")
