"""`numba-adam token`: make, list and revoke the access tokens of a data folder. May import the server's token file."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from numba_adam.errors import ConfigurationError

if TYPE_CHECKING:
    from numba_adam.server.storage.token_file import Scope

_DESCRIPTION = """\
Make, list and revoke access tokens. Run it on the server's machine, as the server's user: the tokens are kept in the
data folder, as hashes. A running server uses a change at once. A server asks for tokens if it was started with
--loopback-token required.

A token has a scope for each model: pull (describe it, pull its parameters), push (also push gradients) or admin (also
create it, delete it, write snapshots). The model * stands for all models that are not named. The worker ids of a token
are its own: another token cannot use them.

`make` prints the token once. Give it to a worker as NUMBA_ADAM_TOKEN, or as ParameterClient(..., token=...).
"""
_EPILOG = """\
examples:
  numba-adam token make alice --admin \'*\'
  numba-adam token make w0 --push digits --pull other --days 7
  numba-adam token make w0 --push digits --replace              a new one; the earlier one is not valid any more
  numba-adam token list
  numba-adam token revoke w0
"""
_DAYS = 90


def describe(parser: argparse.ArgumentParser) -> None:
    """Add the description, the three commands, their arguments and the examples."""
    parser.description, parser.epilog = _DESCRIPTION, _EPILOG
    verbs = parser.add_subparsers(metavar="VERB", required=True, dest="verb")
    make = verbs.add_parser("make", help="make a token, and print it", allow_abbrev=False)
    make.add_argument("name", metavar="NAME", help="name of the holder")
    for scope in ("pull", "push", "admin"):
        make.add_argument(f"--{scope}", metavar="MODEL", action="append", default=[], help=f"scope {scope} for a model")
    make.add_argument("--days", type=_days, default=_DAYS, metavar="N", help="lifetime in days (default: %(default)s)")
    make.add_argument("--replace", action="store_true", help="replace the token of this name")
    listing = verbs.add_parser("list", help="list the tokens, without their secrets", allow_abbrev=False)
    revoke = verbs.add_parser("revoke", help="make a token invalid at once", allow_abbrev=False)
    revoke.add_argument("name", metavar="NAME", help="name of the holder")
    for verb in (make, listing, revoke):
        verb.add_argument(
            "--data-dir", type=Path, default=Path("numba-adam-data"), metavar="DIR",
            help="data folder of the server (default: %(default)s)",
        )  # fmt: skip


def _days(text: str) -> int:
    """Return a type for argparse: a number of days."""
    if not text.isdecimal() or not 1 <= int(text) <= 36500:
        raise argparse.ArgumentTypeError(f"expected a whole number of days from 1 to 36500, got {text!r}")
    return int(text)


def run(arguments: argparse.Namespace) -> int:
    """Make, list or revoke."""
    return {"make": _make, "list": _list, "revoke": _revoke}[arguments.verb](arguments)


def _make(arguments: argparse.Namespace) -> int:
    from numba_adam.server.storage import token_file
    from numba_adam.server.storage.durable import make_folder

    name, grants = token_file.check_name(arguments.name), _grants(arguments)
    secret, expires = token_file.new_secret(), datetime.now(UTC).replace(microsecond=0) + timedelta(days=arguments.days)
    folder = arguments.data_dir.absolute()
    with _reported(folder):
        make_folder(folder)
        with token_file.changing(folder):
            others = [token for token in token_file.read(folder) if token.name != name]
            if len(others) < len(token_file.read(folder)) and not arguments.replace:
                raise ConfigurationError(f"NAME={name!r}: there is a token of this name; pass --replace, or revoke it")
            token_file.write(folder, [*others, token_file.Token(name, token_file.digest_of(secret), expires, grants)])
    print(secret)
    return 0


def _grants(arguments: argparse.Namespace) -> dict[str, Scope]:
    """Return the scopes of the command line; the widest one if a model is named twice."""
    from numba_adam.server.model.names import check_model_name
    from numba_adam.server.storage.token_file import EVERY_MODEL, Scope

    grants: dict[str, Scope] = {}
    for scope in Scope:
        for model in getattr(arguments, scope.name.lower()):
            grants[model if model == EVERY_MODEL else check_model_name(model)] = scope
    if not grants:
        raise ConfigurationError("--pull, --push, --admin: none is given; name at least one model, or '*'")
    return grants


def _list(arguments: argparse.Namespace) -> int:
    from numba_adam.server.storage import token_file

    now = datetime.now(UTC)
    for token in sorted(token_file.read(arguments.data_dir.absolute())):
        grants = " ".join(f"{scope.name.lower()}:{model}" for model, scope in sorted(token.grants.items()))
        state = "expired" if now >= token.expires else "until"
        print(f"{token.name}  {state} {token.expires:%Y-%m-%d %H:%M} UTC  {grants}")
    return 0


def _revoke(arguments: argparse.Namespace) -> int:
    from numba_adam.server.storage import token_file

    folder, name = arguments.data_dir.absolute(), arguments.name
    if not folder.is_dir():
        raise ConfigurationError(f"data_dir={str(folder)!r}: there is no such folder")
    with _reported(folder), token_file.changing(folder):
        tokens = token_file.read(folder)
        left = [token for token in tokens if token.name != name]
        if len(left) == len(tokens):
            raise ConfigurationError(f"NAME={name!r}: there is no token of this name; see numba-adam token list")
        token_file.write(folder, left)
    print(f"revoked {name}")
    return 0


@contextlib.contextmanager
def _reported(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigurationError(f"data_dir={str(folder)!r}: it cannot be written ({error.strerror})") from error
