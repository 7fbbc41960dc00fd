"""What we read from certificates equals what the cryptography package wrote into them."""

import datetime
import ipaddress

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.x509.oid import NameOID

from numba_adam.ps.x509 import parse

KEYS = {
    "RSA": lambda: rsa.generate_private_key(65537, 2048),
    "P-256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "P-384": lambda: ec.generate_private_key(ec.SECP384R1()),
    "P-521": lambda: ec.generate_private_key(ec.SECP521R1()),
    "Ed25519": ed25519.Ed25519PrivateKey.generate,
    "Ed448": ed448.Ed448PrivateKey.generate,
}
NAMES = ("example.org", "*.example.org", "127.0.0.1", "::1", "2001:db8::7")


def general(name):
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def made(kind="P-256", *, begins=(2024, 2, 29, 23, 59, 58), ends=(2049, 12, 31, 0, 0, 1), names=NAMES, subject="w0"):
    key, signer = KEYS[kind](), KEYS["P-256"]()
    organisation = x509.NameAttribute(NameOID.ORGANIZATION_NAME, "a team")
    own = [organisation, *([x509.NameAttribute(NameOID.COMMON_NAME, subject)] if subject else [])]
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name(own))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "CA of Zoë")]))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime.datetime(*begins))
        .not_valid_after(datetime.datetime(*ends))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(list(map(general, names))), critical=not subject)
    certificate = builder.sign(signer, hashes.SHA256())
    return certificate.public_bytes(serialization.Encoding.DER)


@pytest.mark.parametrize("kind", KEYS)
def test_names_dates_and_keys_are_read(kind):
    found = parse(made(kind))
    assert (found.subject, found.issuer, found.key) == ("w0", "CA of Zoë", kind)
    assert found.names == NAMES
    assert found.not_before == datetime.datetime(2024, 2, 29, 23, 59, 58, tzinfo=datetime.UTC)
    assert found.not_after == datetime.datetime(2049, 12, 31, 0, 0, 1, tzinfo=datetime.UTC)


@pytest.mark.parametrize("year", [1950, 1999, 2000, 2049, 2050, 9999])
def test_every_year_is_read(year):
    """Dates have two digits for the year until 2049, and four from then on."""
    found = parse(made(begins=(1950, 1, 1), ends=(year, 12, 31)))
    assert (found.not_before.year, found.not_after.year) == (1950, year)


def test_names_may_be_absent():
    found = parse(made(names=(), subject=""))
    assert (found.subject, found.names) == ("", ())


def test_every_truncation_is_refused():
    whole = made()
    for size in range(len(whole)):
        with pytest.raises(ValueError, match="not an X"):
            parse(whole[:size])


def test_no_flipped_bit_raises_another_error():
    whole = made()
    outcomes = set()
    for bit in range(0, 8 * len(whole), 3):
        raw = bytearray(whole)
        raw[bit // 8] ^= 1 << bit % 8
        try:
            outcomes.add(type(parse(bytes(raw))))
        except ValueError as error:
            outcomes.add(type(error))
    assert ValueError in outcomes
