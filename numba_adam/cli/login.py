"""`numba-adam login`: keep the TLS settings for a server, so that clients and commands of this user find them.

May import what cli.connection may.
"""

from __future__ import annotations

import argparse
import getpass
import os
import sys
from typing import TYPE_CHECKING

from numba_adam.cli import connection
from numba_adam.errors import ConfigurationError

if TYPE_CHECKING:
    from numba_adam.client import Tls

_DESCRIPTION = """\
Connect to a server with TLS, and keep the settings for its address. From then on, ParameterClient("HOST:PORT") and
every command with --server HOST:PORT use them, unless the argument `tls`, an option or an environment variable says
otherwise.

The settings are paths of files, and with --token an access token. They are kept in numba-adam/servers.toml in the
user's configuration folder ($XDG_CONFIG_HOME or ~/.config). The files stay where they are, so a renewed certificate
is used at once.
"""
_EPILOG = """\
examples:
  numba-adam login trainer.example.org:50051 --server-ca ca.pem
  numba-adam login 10.0.0.5:50051 --server-ca ca.pem --worker-certificate w0.pem --worker-key w0.key
  numba-adam login trainer.example.org:50051 --server-ca ca.pem --token < token.txt
  numba-adam login --list
  numba-adam login 10.0.0.5:50051 --forget
"""


def describe(parser: argparse.ArgumentParser) -> None:
    """Add the description, the arguments and the examples."""
    parser.description, parser.epilog = _DESCRIPTION, _EPILOG
    parser.add_argument("address", nargs="?", metavar="HOST:PORT", help="address of the server")
    connection.add_tls_arguments(parser)
    parser.add_argument(
        "--token",
        action="store_true",
        help="keep an access token too; it is asked for, or read from stdin, because arguments are no secret",
    )
    parser.add_argument("--no-check", action="store_true", help="keep the settings without connecting")
    parser.add_argument("--forget", action="store_true", help="remove the settings of this address")
    parser.add_argument("--list", action="store_true", help="list the addresses and their settings")
    parser.set_defaults(timeout_seconds=10.0)


def run(arguments: argparse.Namespace) -> int:
    """Connect, and keep the settings; or forget them, or list all."""
    from numba_adam.client.transport import profiles
    from numba_adam.client.transport.tls import SETTINGS

    if arguments.list:
        for address, settings in sorted(profiles.read(os.environ, SETTINGS).items()):
            shown = {name: "(kept)" if name == profiles.TOKEN else value for name, value in settings.items()}
            print(address, *(f"{name}={value}" for name, value in shown.items()))
        return 0
    if arguments.address is None:
        raise ConfigurationError("HOST:PORT: it is missing; name the server, such as trainer.example.org:50051")
    if arguments.forget:
        return _forget(arguments.address)
    tls = connection.tls_of(arguments)
    if isinstance(tls, bool) or tls is None:
        raise ConfigurationError("--server-ca: it is missing; name the ca.pem that was made with the server")
    return _keep(arguments, tls)


def _keep(arguments: argparse.Namespace, tls: Tls) -> int:
    from numba_adam.client.transport import profiles
    from numba_adam.client.transport.tls import SETTINGS, choose

    address = arguments.address
    known = profiles.read(os.environ, SETTINGS)  # an unusable file is reported before anything else
    token = _read_token() if arguments.token else known.get(address.lower(), {}).get(profiles.TOKEN)
    arguments.token_text = token
    if arguments.no_check:
        choose(tls, address, os.environ)
    else:
        arguments.server = address
        with connection.connect(arguments) as client:
            version = client.status().server_version
        print(f"connected  {address}, numba-adam {version}")
    kept = {profiles.TOKEN: token} if token else {}
    path = profiles.write(os.environ, {**known, address.lower(): {**tls.settings(), **kept}})
    print(f'kept       in {path}; ParameterClient("{address}") and --server {address} now use TLS')
    return 0


def _read_token() -> str:
    """Return the token that a person types, without showing it, or that stdin has."""
    from numba_adam.client.transport.token import checked_token

    return checked_token((getpass.getpass("token: ") if sys.stdin.isatty() else sys.stdin.readline()).strip())


def _forget(address: str) -> int:
    from numba_adam.client.transport import profiles
    from numba_adam.client.transport.tls import SETTINGS

    known = profiles.read(os.environ, SETTINGS)
    if known.pop(address.lower(), None) is None:
        raise ConfigurationError(f"HOST:PORT={address!r}: there are no settings for this address; see --list")
    print(f"forgotten  in {profiles.write(os.environ, known)}")
    return 0
