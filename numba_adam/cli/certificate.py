"""`numba-adam certificate`: make a CA, and certificates for servers and workers.

May import the standard library; numba_adam.cli.authority, which needs the cryptography package, inside the functions.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import TypeAlias

    from numba_adam.cli.authority import Made

    _Kinds: TypeAlias = argparse._SubParsersAction[argparse.ArgumentParser]

_DESCRIPTION = """\
Make certificates for TLS between a parameter server and its workers. A certificate authority (CA) of your own issues
them, so no other company takes part. Three commands make all that a team needs:

  1. numba-adam certificate ca                      once: the CA
  2. numba-adam certificate server HOST ...         for each server, with the names that workers use for it
  3. numba-adam certificate worker NAME             for each worker, if the server is to know its workers

Step 3 is needed only for a server with --client-ca.

Each command writes a certificate, NAME.pem, and its private key, NAME.key, with mode 600, into one folder. ca.pem goes
to every machine; it is no secret. ca.key stays where it is: whoever has it can issue certificates. The key of a server
or a worker goes to that machine only.
"""
_EPILOG = """\
examples:
  numba-adam certificate ca
  numba-adam certificate server trainer.example.org 10.0.0.5
  numba-adam certificate worker w0
  numba-adam certificate server trainer.example.org --replace        a new one before the old one expires

then:
  numba-adam serve --tls-certificate numba-adam-certificates/server.pem --tls-key numba-adam-certificates/server.key
"""
_FOLDER = "numba-adam-certificates"
_SERVER_DAYS, _CA_DAYS = 365, 3650


def describe(parser: argparse.ArgumentParser) -> None:
    """Add the description, the three commands, their arguments and the examples."""
    parser.description, parser.epilog = _DESCRIPTION, _EPILOG
    kinds = parser.add_subparsers(metavar="KIND", required=True, dest="kind")
    authority = _kind(kinds, "ca", "make a CA", _CA_DAYS)
    authority.add_argument("--name", help="name of the CA in error messages (default: a random one)")
    server = _kind(kinds, "server", "make a certificate for a server", _SERVER_DAYS)
    server.add_argument(
        "hosts",
        nargs="+",
        metavar="HOST",
        help="host name or IP address that workers connect to; localhost, 127.0.0.1 and ::1 are added",
    )
    server.add_argument("--file-name", default="server", help="name of the two files (default: %(default)s)")
    worker = _kind(kinds, "worker", "make a certificate for a worker", _SERVER_DAYS)
    worker.add_argument("name", metavar="NAME", help="name of the worker, and of the two files")


def _kind(kinds: _Kinds, name: str, text: str, days: int) -> argparse.ArgumentParser:
    """Add one of the three commands, with the options that all have."""
    parser = kinds.add_parser(name, help=text, description=f"{text.capitalize()}.", allow_abbrev=False)
    parser.add_argument(
        "--folder", type=Path, default=Path(_FOLDER), metavar="DIR", help="folder of the files (default: %(default)s)"
    )
    parser.add_argument("--days", type=_days, default=days, metavar="N", help="lifetime in days (default: %(default)s)")
    parser.add_argument("--replace", action="store_true", help="overwrite an earlier certificate and its key")
    return parser


def _days(text: str) -> int:
    """Return a type for argparse: a number of days."""
    if not text.isdecimal() or not 1 <= int(text) <= 36500:
        raise argparse.ArgumentTypeError(f"expected a whole number of days from 1 to 36500, got {text!r}")
    return int(text)


def run(arguments: argparse.Namespace) -> int:
    """Make the files, and say what they are for and which command comes next."""
    from numba_adam.cli import authority

    folder, days, replace = arguments.folder, arguments.days, arguments.replace
    if arguments.kind == "ca":
        made = authority.make_authority(folder, arguments.name, days, replace=replace)
        _say(made, "the CA's certificate; copy it to every machine", "its key; keep it here, whoever has it can issue")
        print("next      numba-adam certificate server HOST")
    elif arguments.kind == "server":
        made = authority.issue_server(folder, arguments.file_name, arguments.hosts, days, replace=replace)
        _say(made, f"valid for {', '.join(made.names)}", "its key; for this server only")
        print(f"next      numba-adam serve --tls-certificate {made.certificate} --tls-key {made.key}")
    else:
        made = authority.issue_worker(folder, arguments.name, days, replace=replace)
        _say(made, f"valid for the worker {arguments.name}", "its key; for this worker only")
        print(f"next      numba-adam serve ... --client-ca {folder / 'ca.pem'}")
    return 0


def _say(made: Made, certificate: str, key: str) -> None:
    width = max(len(str(made.certificate)), len(str(made.key)))
    print(f"made      {made.certificate!s:{width}}  {certificate}")
    print(f"made      {made.key!s:{width}}  {key}")
    print(f"expires   {made.ends:%Y-%m-%d}{made.note}")
