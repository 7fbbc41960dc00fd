"""TLS of a client: which CA it trusts, and which certificate it presents. May import grpc and `numba_adam.ps`.

The settings come from the first of these that has any: the argument `tls`, the environment, the profile of the server's
address, which `numba-adam login` writes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeAlias

import grpc

from numba_adam.client.transport import profiles
from numba_adam.errors import ConfigurationError
from numba_adam.ps.pem import Pair, PairFiles, read_authorities, read_pair

ENVIRONMENT_PREFIX = "NUMBA_ADAM_"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """How a client uses TLS. Every file is PEM, and is read again for a new connection if it has changed.

    Raises:
        ConfigurationError: a setting has the wrong type, or one of certificate and key is missing.
    """

    server_ca: Path | str | None = None
    """File with the CA that issued the server's certificate: the ca.pem of `numba-adam certificate`. None: the public
    CAs that gRPC trusts."""

    worker_certificate: Path | str | None = None
    """File with this worker's certificate, for a server that asks for one (`--client-ca`)."""

    worker_key: Path | str | None = None
    """File with the key of that certificate, readable by this user only."""

    server_name: str | None = None
    """The name to expect in the server's certificate. None: the host of the address. For tunnels."""

    def __post_init__(self) -> None:
        """Check every setting."""
        for name in ("server_ca", "worker_certificate", "worker_key"):
            object.__setattr__(self, name, _path(name, getattr(self, name)))
        if (self.worker_certificate is None) != (self.worker_key is None):
            missing = "worker_key" if self.worker_key is None else "worker_certificate"
            raise ConfigurationError(f"{missing}: a certificate needs its key; set worker_certificate and worker_key")
        if self.server_name is not None and (not isinstance(self.server_name, str) or not self.server_name):
            raise ConfigurationError(f"server_name: expected a host name or an IP address, got {self.server_name!r}")

    def settings(self) -> dict[str, str]:
        """Return the settings that are set, with absolute paths, as a profile keeps them."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        return {
            name: str(value.absolute()) if isinstance(value, Path) else value
            for name, value in values.items()
            if value is not None
        }

    def pair(self) -> Pair | None:
        """Read the worker's certificate and key.

        Raises:
            ConfigurationError: a file cannot be used.
        """
        if not isinstance(self.worker_certificate, Path) or not isinstance(self.worker_key, Path):
            return None
        return read_pair(PairFiles(self.worker_certificate, self.worker_key, "worker_certificate", "worker_key"))

    def authorities(self) -> bytes | None:
        """Read the CA of the server.

        Raises:
            ConfigurationError: the file cannot be used.
        """
        return read_authorities("server_ca", self.server_ca)[0] if isinstance(self.server_ca, Path) else None

    def credentials(self) -> grpc.ChannelCredentials:
        """Read all files into gRPC's credentials.

        Raises:
            ConfigurationError: a file cannot be used.
        """
        pair = self.pair()
        key, chain = (None, None) if pair is None else (pair.key, pair.chain)
        return grpc.ssl_channel_credentials(self.authorities(), key, chain)

    def identity(self) -> tuple[object, ...]:
        """Return what changes when a file changes."""
        return tuple(map(_identity, (self.server_ca, self.worker_certificate, self.worker_key)))


SETTINGS = tuple(item.name for item in fields(Tls))
"""The names of the settings. The environment has them in upper case, with NUMBA_ADAM_ before them."""

TlsArgument: TypeAlias = Tls | Path | str | bool | None


def choose(argument: TlsArgument, address: str, environ: Mapping[str, str]) -> Tls | None:
    """Return the TLS settings for an address, read and checked; None: no TLS.

    Args:
        argument: the settings, the file of the server's CA, True: TLS with public CAs, False: no TLS, None: what the
            environment or the profile of the address says.
        address: of the server.
        environ: such as os.environ.

    Raises:
        ConfigurationError: a setting or a file cannot be used.
    """
    tls = _settings(argument, address, environ)
    if tls is not None:
        tls.credentials()  # an error in a file is reported here, not by the first call
    return tls


def _settings(argument: TlsArgument, address: str, environ: Mapping[str, str]) -> Tls | None:
    if isinstance(argument, Tls):
        return argument
    if isinstance(argument, bool):
        return Tls() if argument else None
    if isinstance(argument, (str, Path)):
        return Tls(server_ca=argument)
    if argument is not None:
        raise ConfigurationError(f"tls: expected a Tls, the path of a CA's file, True, False or None, got {argument!r}")
    values: dict[str, Any] = {
        name: environ[variable] for name in SETTINGS if environ.get(variable := ENVIRONMENT_PREFIX + name.upper())
    }
    if not values:
        kept = profiles.read(environ, SETTINGS).get(address.lower(), {})
        values = {name: value for name, value in kept.items() if name != profiles.TOKEN}
    return Tls(**values) if values else None


def _path(name: str, value: object) -> Path | None:
    if value is None:
        return None
    if not isinstance(value, (str, Path)) or not str(value):
        raise ConfigurationError(f"{name}: expected the path of a file, got {value!r}")
    try:
        return Path(value).expanduser()
    except RuntimeError as error:
        raise ConfigurationError(f"{name}={str(value)!r}: its ~ names no home folder") from error


def _identity(path: Path | str | None) -> object:
    if not isinstance(path, Path):
        return None
    try:
        status = path.stat()
    except OSError:
        return None
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
