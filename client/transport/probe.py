"""Finds out why a connection failed over TLS: a handshake with Python's ssl module, whose errors are precise.

gRPC reports most failures of TLS as "Socket closed" or in OpenSSL's words. May import the standard library and
`numba_adam.ps`.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from numba_adam.client.transport.proxy import connect
from numba_adam.client.transport.tls import Tls
from numba_adam.errors import ConfigurationError
from numba_adam.ps.pem import ACCEPTED_KEYS, read_authorities, why_not_valid_now
from numba_adam.ps.x509 import Certificate, parse

_TIMEOUT_SECONDS = 3.0
_PAUSE_SECONDS = 5.0  # between probes that found nothing
_EXPIRED, _NOT_YET_VALID = 10, 9  # X.509 verification codes of OpenSSL
_WRONG_HOST = (62, 64)
_WRONG_PURPOSE = 26
_UNTRUSTED = (2, 7, 18, 19, 20, 21, 24, 30)  # unknown issuer, self-signed, or the signature of another key
_HTTP2 = "h2"
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
_SETTINGS_FRAME = 4


class _Place(NamedTuple):
    host: str
    port: int


class Probe:
    """Explains failed connections to one server.

    Args:
        address: of the server.
        tls: the client's settings; None: it uses no TLS.
    """

    def __init__(self, address: str, tls: Tls | None) -> None:
        self._address, self._tls = address, tls
        self._place = _place(address)
        self._next = 0.0

    def why(self, message: str) -> str | None:
        """Return what is wrong with TLS at which end; None if TLS does not explain the failure.

        Args:
            message: gRPC's.
        """
        is_possible = "refused" not in message and "failed to connect" in message
        if self._tls is None:
            is_possible = is_possible and ("closed" in message or "reset" in message)
        if not is_possible or self._place is None or time.monotonic() < self._next:
            return None
        try:
            found = _without_tls(self._place) if self._tls is None else _with_tls(self._place, self._tls)
        except OSError:  # no connection at all, or a timeout
            found = None
        if found is None:
            self._next = time.monotonic() + _PAUSE_SECONDS
            return None
        return f"{self._address}: {found}"


def _place(address: str) -> _Place | None:
    """Return host and port of an address; None for the forms of gRPC that have no single one."""
    host, _, port = address.removeprefix("dns:///").removeprefix("dns:").rpartition(":")
    bare = host.removeprefix("[").removesuffix("]")
    if not port.isdecimal() or not bare or "/" in bare or "," in bare or (":" in bare and host == bare):
        return None
    return _Place(bare, int(port))


@contextlib.contextmanager
def _connected(place: _Place) -> Iterator[socket.socket]:
    with connect(place.host, place.port, _TIMEOUT_SECONDS) as connection:
        connection.settimeout(_TIMEOUT_SECONDS)
        yield connection


def _without_tls(place: _Place) -> str | None:
    """Return that the server speaks TLS, if it does."""
    if not _answers_tls(place):
        return None
    return (
        "the server speaks TLS, and this client does not. Pass tls=Tls(server_ca=...) with the ca.pem of the server, "
        "set NUMBA_ADAM_SERVER_CA, or run once: numba-adam login"
    )


def _answers_tls(place: _Place) -> bool:
    try:
        _peer(place)
    except ssl.SSLError as error:
        return "ALERT" in (error.reason or "")
    except ValueError:  # an undecodable certificate
        return True
    return True


def _peer(place: _Place, name: str | None = None) -> Certificate:
    """Return the server's certificate, without verification."""
    context = _unverified()
    with _connected(place) as raw, context.wrap_socket(raw, server_hostname=name or place.host) as connection:
        return parse(connection.getpeercert(binary_form=True) or b"")


def _unverified() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols([_HTTP2])
    return context


def _with_tls(place: _Place, tls: Tls) -> str | None:
    """Return what a handshake with the client's own settings finds."""
    try:
        for _ in range(2):  # a server that stops just now closes the connection too
            found = _handshake(place, tls)
            if found is None:
                return None
    except ssl.SSLCertVerificationError as error:
        return _untrusted(place, tls, error)
    except ssl.SSLError as error:
        return _no_handshake(place, tls, error)
    except ConfigurationError as error:
        return str(error)
    return found


def _handshake(place: _Place, tls: Tls) -> str | None:
    context = ssl.create_default_context(cafile=tls.server_ca)
    context.set_alpn_protocols([_HTTP2])
    if tls.pair() is not None:
        assert tls.worker_certificate is not None
        context.load_cert_chain(tls.worker_certificate, tls.worker_key)
    name = tls.server_name or place.host
    with _connected(place) as raw, context.wrap_socket(raw, server_hostname=name) as connection:
        if connection.selected_alpn_protocol() != _HTTP2:
            return "the server speaks TLS, but not HTTP/2 (ALPN h2); a parameter server does. Check the address"
        peer = parse(connection.getpeercert(binary_form=True) or b"")
        if peer.key not in ACCEPTED_KEYS:
            return (
                f"the key of the server's certificate is {peer.key}, and gRPC accepts {', '.join(ACCEPTED_KEYS)}; make "
                "another one: numba-adam certificate server HOST --replace"
            )
        return None if _is_kept_open(connection) else _refused(tls)


def _is_kept_open(connection: ssl.SSLSocket) -> bool:
    """Return whether the server sends its first frame. It judges the client's certificate after the handshake."""
    try:
        return bool(connection.recv(9))
    except TimeoutError:
        return True
    except OSError:  # an alert, or a reset
        return False


def _refused(tls: Tls) -> str:
    """Return why a server closes the connection after the handshake."""
    pair = tls.pair()
    if pair is None:
        return (
            "the server serves only workers with a certificate (--client-ca), and this client presents none. Pass "
            "worker_certificate and worker_key: numba-adam certificate worker NAME makes them"
        )
    where = f"worker_certificate={str(tls.worker_certificate)!r}"
    why = why_not_valid_now(pair.certificate)
    if why is not None:
        return f"{where}: {why}; make another one: numba-adam certificate worker NAME --replace"
    return (
        f"the server refuses {where}, which {pair.certificate.issuer!r} issued. It must be made for workers by the CA "
        "in the server's --client-ca"
    )


def _no_handshake(place: _Place, tls: Tls, error: ssl.SSLError) -> str | None:
    """Return why there was no handshake at all.

    None if the connection was closed without a word: a server does that while it has as many connections as it allows,
    and a proxy while its server restarts.
    """
    if _answers_without_tls(place):
        return (
            "the server does not speak TLS, and this client does. Start the server with --tls-certificate and "
            "--tls-key, or connect with tls=False"
        )
    if "ALERT" in (error.reason or ""):
        return f"the server ended the handshake ({error.reason}); {_refused(tls)}"
    if isinstance(error, ssl.SSLEOFError):
        return None
    return f"what listens there does not speak TLS ({error.reason or error}); check the address"


def _answers_without_tls(place: _Place) -> bool:
    """Return whether the server answers HTTP/2 without TLS."""
    try:
        with _connected(place) as connection:
            connection.sendall(_PREFACE)
            answer = connection.recv(9)
    except OSError:
        return False
    return len(answer) > 3 and answer[3] == _SETTINGS_FRAME


def _untrusted(place: _Place, tls: Tls, error: ssl.SSLCertVerificationError) -> str:
    """Return why the server's certificate is not trusted, with what it says."""
    code, peer = error.verify_code, _peer(place, tls.server_name)
    why = why_not_valid_now(peer)
    if code in (_EXPIRED, _NOT_YET_VALID):
        return _out_of_date(tls, code, why)
    if code in _WRONG_HOST:
        return (
            f"the server's certificate is valid for {', '.join(peer.names) or 'no host'}, not for "
            f"{tls.server_name or place.host!r}. Connect to one of its names, or make another one: numba-adam "
            f"certificate server {place.host} --replace"
        )
    if code in _UNTRUSTED:
        return f"{peer.issuer!r} issued the server's certificate, and {_trusted(tls)}"
    if code == _WRONG_PURPOSE:
        return "the server presents a certificate that is not for servers; numba-adam certificate server HOST makes one"
    return f"the server's certificate is not accepted: {error.verify_message}"


def _out_of_date(tls: Tls, code: int, why: str | None) -> str:
    if why is None:  # the server's own certificate is valid now
        return f"a CA's certificate is {'expired' if code == _EXPIRED else 'not valid yet'}: {_authorities(tls)}"
    if code == _EXPIRED:
        advice = "Make another one: numba-adam certificate server HOST --replace"
        return f"the server's certificate is out of date: {why}. {advice}, or correct this machine's clock"
    return (
        f"the server's certificate is not valid yet: {why}. Correct the clock of this machine, or of the one that made "
        "the certificate"
    )


def _trusted(tls: Tls) -> str:
    """Return which CAs the client trusts, and what to do."""
    if tls.server_ca is None:
        return "it is no public CA. Pass server_ca, the ca.pem that was made with the server's certificate"
    return f"{_authorities(tls)}, which is another CA. Pass the ca.pem that was made with the server's certificate"


def _authorities(tls: Tls) -> str:
    """Return what the file of the server's CA contains."""
    if not isinstance(tls.server_ca, Path):
        return "the public CAs"
    _, certificates = read_authorities("server_ca", tls.server_ca)
    found = ", ".join(f"{each.subject!r}" for each in certificates)
    dates = "".join(f" ({why})" for each in certificates if (why := why_not_valid_now(each)))
    return f"server_ca={str(tls.server_ca)!r} contains {found}{dates}"
