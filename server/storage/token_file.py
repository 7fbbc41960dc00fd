"""The access tokens of a data folder: who may do what with which model, until when. Imports its neighbours.

A token is 32 random bytes. The file has only its SHA-256, so whoever reads the file cannot use it. No salt and no slow
hash are needed, because nobody can guess 32 random bytes. A checksum of the file finds damage. Files of earlier
releases have none.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import math
import os
import re
import secrets
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from enum import IntEnum
from pathlib import Path
from typing import Any, NamedTuple

from numba_adam.errors import ConfigurationError, SnapshotError
from numba_adam.server.model.names import is_model_name
from numba_adam.server.storage import checked_json
from numba_adam.server.storage.durable import check_file, replace, write_all
from numba_adam.server.storage.keys import NO_KEYS, Keys

FILE_NAME = "tokens.json"
EVERY_MODEL = "*"
_LOCK_NAME = "tokens.lock"
_FORMAT = 1
_INDENT = 1  # people read the file too
_PREFIX = "nat_"
"""Marks a text as a token of numba-adam, for programs that search for leaked secrets."""

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,31}")
_DIGEST = re.compile(r"[0-9a-f]{64}")


class Scope(IntEnum):
    """What a token may do with a model. Each includes those before it."""

    PULL = 1
    """Describe it, and pull its parameters."""

    PUSH = 2
    """Open sessions, and push gradients."""

    ADMIN = 3
    """Create it, delete it, write snapshots of it."""


class TokenLimits(NamedTuple):
    """How much a token may do. None: no limit."""

    pushes_per_second: float | None = None
    """Pushes to all models together."""

    bytes_per_second: float | None = None
    """Bytes of gradients, parameters and initial values, in both directions together."""

    largest_push: int | None = None
    """Bytes of the gradients of one push."""


class Token(NamedTuple):
    """One access token, without its secret."""

    name: str
    """Its holder. Sessions belong to the name, so a renewed token continues those of the earlier one."""

    digest: str
    """SHA-256 of the token, in hexadecimal."""

    expires: datetime
    grants: dict[str, Scope]
    """The scope for each model; EVERY_MODEL is for those without one of their own."""

    limits: TokenLimits = TokenLimits()
    """How much it may do."""

    def scope(self, model: str) -> Scope | None:
        """Return what the token may do with a model; None: nothing."""
        return self.grants.get(model, self.grants.get(EVERY_MODEL))


def new_secret() -> str:
    """Return a new token."""
    return _PREFIX + secrets.token_urlsafe(32)


def digest_of(secret: str) -> str:
    """Return what the file has of a token."""
    return hashlib.sha256(secret.encode("utf-8", "replace")).hexdigest()


def check_name(name: str) -> str:
    """Return the name of a token, if it is allowed."""
    if not _NAME.fullmatch(name):
        raise ConfigurationError(f"NAME={name!r}: expected 1 to 32 of A-Z a-z 0-9 . _ - without . or - first")
    return name


def read(folder: Path, keys: Keys = NO_KEYS) -> tuple[Token, ...]:
    """Return the tokens of a data folder; none if it has no file.

    Raises:
        ConfigurationError: others may write to the file, it is damaged, or the keys refuse it.
    """
    path = folder / FILE_NAME
    check_file(path)
    try:
        raw = path.read_bytes()
        found = json.loads(raw)["format"]
        if found != _FORMAT:
            raise ConfigurationError(f"{path}: it has format {found!r}, and this release reads {_FORMAT}")
        values = checked_json.decode(raw, str(path), FILE_NAME, keys, _INDENT, may_lack_checksum=True)
        if set(values) != {"format", "tokens"}:
            raise ValueError("damaged")
        return tuple(_token(value) for value in values["tokens"])
    except FileNotFoundError:
        return ()
    except ConfigurationError:
        raise
    except SnapshotError as error:
        raise ConfigurationError(str(error)) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigurationError(
            f"{path}: it cannot be read ({type(error).__name__}); restore it, or remove it"
        ) from error


def write(folder: Path, tokens: Iterable[Token], keys: Keys = NO_KEYS) -> None:
    """Replace the tokens of a data folder.

    Raises:
        OSError: the file cannot be written.
    """
    values = {"format": _FORMAT, "tokens": [_value(token) for token in tokens]}
    raw = checked_json.encode(values, FILE_NAME, keys, _INDENT)
    replace(folder / FILE_NAME, lambda descriptor: write_all(descriptor, raw))


def renew(folder: Path, keys: Keys) -> None:
    """Write the file with the current key, if it has another one or none.

    Raises:
        ConfigurationError: see read.
        OSError: it cannot be written.
    """
    if (folder / FILE_NAME).exists():
        with changing(folder):
            tokens = read(folder, keys)
            if checked_json.key_id_of((folder / FILE_NAME).read_bytes()) != keys.key_id:
                write(folder, tokens, keys)


@contextlib.contextmanager
def changing(folder: Path) -> Iterator[None]:
    """Let only one process at a time change the tokens of a data folder."""
    descriptor = os.open(folder / _LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _value(token: Token) -> dict[str, object]:
    limits = {name: limit for name, limit in token.limits._asdict().items() if limit is not None}
    return {
        "name": token.name,
        "sha256": token.digest,
        "expires": token.expires.astimezone(UTC).isoformat(),
        "grants": {model: scope.name.lower() for model, scope in token.grants.items()},
        **({"limits": limits} if limits else {}),
    }


def _token(value: dict[str, Any]) -> Token:
    """Return a token of the file.

    Raises:
        ValueError, KeyError, TypeError, AttributeError: the file is damaged.
    """
    grants = {model: Scope[scope.upper()] for model, scope in value["grants"].items()}
    limits = TokenLimits(**value.get("limits", {}))  # an unknown limit is damage: it must not be left out
    token = Token(value["name"], value["sha256"], datetime.fromisoformat(value["expires"]), grants, limits)
    is_known = _NAME.fullmatch(token.name) and _DIGEST.fullmatch(token.digest) and token.expires.tzinfo is not None
    if not is_known or not all(model == EVERY_MODEL or is_model_name(model) for model in grants):
        raise ValueError("damaged")
    if not all(limit is None or (type(limit) in (int, float) and 0 < limit < math.inf) for limit in limits):
        raise ValueError("damaged")
    return token
