"""`numba-adam token`: make, limit, list and revoke the access tokens of a data folder.

May import the server's token file.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from numba_adam.cli.key_file import add_key_file, keys_of
from numba_adam.errors import ConfigurationError

if TYPE_CHECKING:
    from numba_adam.server.storage.keys import Keys
    from numba_adam.server.storage.token_file import Scope, Token, TokenLimits

_DESCRIPTION = """\
Make, list and revoke access tokens. Run it on the server's machine, as the server's user: the tokens are kept in the
data folder, as hashes. A running server uses a change at once. A server asks for tokens if it was started with
--loopback-token required.

A token has a scope for each model: pull (describe it, pull its parameters), push (also push gradients) or admin (also
create it, delete it, write snapshots). The model * stands for all models that are not named. The worker ids of a token
are its own: another token cannot use them.

`make` prints the token once. Give it to a worker as NUMBA_ADAM_TOKEN, or as ParameterClient(..., token=...).

A token may have limits: pushes per second, bytes per second (of gradients, parameters and initial values, in both
directions) and the size of a push. After a second of rest it may do a second's amount at once. The server refuses what
exceeds a limit, and says when to try again; clients wait for that long. `limit` changes the limits of a token.
"""
_EPILOG = """\
examples:
  numba-adam token make alice --admin \'*\'
  numba-adam token make w0 --push digits --pull other --days 7
  numba-adam token make w0 --push digits --replace              a new one; the earlier one is not valid any more
  numba-adam token make w1 --push digits --pushes-per-second 20 --bytes-per-second 50MB --largest-push 8MiB
  numba-adam token limit w1 --pushes-per-second 5               the other limits end
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
    limit = verbs.add_parser("limit", help="replace the limits of a token", allow_abbrev=False)
    limit.add_argument("name", metavar="NAME", help="name of the holder")
    for verb in (make, limit):
        _add_limits(verb)
    listing = verbs.add_parser("list", help="list the tokens, without their secrets", allow_abbrev=False)
    revoke = verbs.add_parser("revoke", help="make a token invalid at once", allow_abbrev=False)
    revoke.add_argument("name", metavar="NAME", help="name of the holder")
    for verb in (make, limit, listing, revoke):
        verb.add_argument(
            "--data-dir", type=Path, default=Path("numba-adam-data"), metavar="DIR",
            help="data folder of the server (default: %(default)s)",
        )  # fmt: skip
        add_key_file(verb)


def _add_limits(parser: argparse.ArgumentParser) -> None:
    """Add an option for each limit of a token."""
    parser.add_argument("--pushes-per-second", type=_rate, metavar="N", help="most pushes per second")
    parser.add_argument("--bytes-per-second", type=_size, metavar="SIZE", help="most bytes per second, as 50MB")
    parser.add_argument("--largest-push", type=_size, metavar="SIZE", help="most bytes of one push, as 8MiB")


def _rate(text: str) -> float:
    """Return a type for argparse: a rate above 0."""
    try:
        rate = float(text)
    except ValueError:
        rate = math.nan
    if not 0 < rate < math.inf:
        raise argparse.ArgumentTypeError(f"expected a finite number above 0, got {text!r}")
    return rate


def _size(text: str) -> int:
    """Return a type for argparse: a number of bytes above 0."""
    from numba_adam.server.memory import parse_size

    try:
        size = parse_size(text)
    except ValueError:
        size = 0
    if size <= 0:
        raise argparse.ArgumentTypeError(f"expected a number of bytes above 0, such as 50MB or 8MiB, got {text!r}")
    return size


def _days(text: str) -> int:
    """Return a type for argparse: a number of days."""
    if not text.isdecimal() or not 1 <= int(text) <= 36500:
        raise argparse.ArgumentTypeError(f"expected a whole number of days from 1 to 36500, got {text!r}")
    return int(text)


def run(arguments: argparse.Namespace) -> int:
    """Make, limit, list or revoke."""
    return {"make": _make, "limit": _limit, "list": _list, "revoke": _revoke}[arguments.verb](arguments)


def _make(arguments: argparse.Namespace) -> int:
    from numba_adam.server.storage import token_file
    from numba_adam.server.storage.durable import make_folder

    name, grants = token_file.check_name(arguments.name), _grants(arguments)
    secret, expires = token_file.new_secret(), datetime.now(UTC).replace(microsecond=0) + timedelta(days=arguments.days)
    folder = arguments.data_dir.absolute()
    keys = keys_of(arguments, folder)
    with _reported(folder):
        make_folder(folder)
        with token_file.changing(folder):
            earlier = token_file.read(folder, keys)
            others = [token for token in earlier if token.name != name]
            if len(others) < len(earlier) and not arguments.replace:
                raise ConfigurationError(f"NAME={name!r}: there is a token of this name; pass --replace, or revoke it")
            token = token_file.Token(name, token_file.digest_of(secret), expires, grants, _limits(arguments))
            token_file.write(folder, [*others, token], keys)
            _note(folder, "token make", name)
    print(secret)
    return 0


def _limits(arguments: argparse.Namespace) -> TokenLimits:
    from numba_adam.server.storage.token_file import TokenLimits

    return TokenLimits(**{name: getattr(arguments, name) for name in TokenLimits._fields})


def _limit(arguments: argparse.Namespace) -> int:
    from numba_adam.server.storage import token_file

    folder = arguments.data_dir.absolute()
    keys = keys_of(arguments, folder)
    with _changing(folder, arguments.name, keys) as tokens:
        changed = {arguments.name: _limits(arguments)}
        limited = [token._replace(limits=changed.get(token.name, token.limits)) for token in tokens]
        token_file.write(folder, limited, keys)
        _note(folder, "token limit", arguments.name)
    print(f"limited {arguments.name}: {_limits_in_words(_limits(arguments)) or 'no limits'}")
    return 0


def _limits_in_words(limits: TokenLimits) -> str:
    return " ".join(f"{name}={limit:g}" for name, limit in limits._asdict().items() if limit is not None)


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

    now, folder = datetime.now(UTC), arguments.data_dir.absolute()
    for token in sorted(token_file.read(folder, keys_of(arguments, folder))):
        grants = " ".join(f"{scope.name.lower()}:{model}" for model, scope in sorted(token.grants.items()))
        state = "expired" if now >= token.expires else "until"
        limits = _limits_in_words(token.limits)
        print(f"{token.name}  {state} {token.expires:%Y-%m-%d %H:%M} UTC  {grants}{limits and '  ' + limits}")
    return 0


def _revoke(arguments: argparse.Namespace) -> int:
    from numba_adam.server.storage import token_file

    folder, name = arguments.data_dir.absolute(), arguments.name
    keys = keys_of(arguments, folder)
    with _changing(folder, name, keys) as tokens:
        token_file.write(folder, [token for token in tokens if token.name != name], keys)
        _note(folder, "token revoke", name)
    print(f"revoked {name}")
    return 0


def _note(folder: Path, what: str, name: str) -> None:
    """Note a change of the tokens in the audit log."""
    from numba_adam.server.storage import audit_log

    record = {"who": f"user {os.getuid()}", "what": what, "token": name, "outcome": "OK"}
    audit_log.note(folder, audit_log.FILE_NAME, record)


@contextlib.contextmanager
def _changing(folder: Path, name: str, keys: Keys) -> Iterator[tuple[Token, ...]]:
    """Yield the tokens of a data folder, while no other process changes them.

    Raises:
        ConfigurationError: there is no token of this name, or no such folder.
    """
    from numba_adam.server.storage import token_file

    if not folder.is_dir():
        raise ConfigurationError(f"data_dir={str(folder)!r}: there is no such folder")
    with _reported(folder), token_file.changing(folder):
        tokens = token_file.read(folder, keys)
        if name not in [token.name for token in tokens]:
            raise ConfigurationError(f"NAME={name!r}: there is no token of this name; see numba-adam token list")
        yield tokens


@contextlib.contextmanager
def _reported(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigurationError(f"data_dir={str(folder)!r}: it cannot be written ({error.strerror})") from error
