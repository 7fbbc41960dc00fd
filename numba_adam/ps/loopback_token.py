"""The token of a server on loopback, in a file that only its user can read: the server writes it, clients find it.

    ~/.config/numba-adam/loopback/HOST-PORT.token       $XDG_CONFIG_HOME replaces ~/.config

HOST is the name of this machine, because machines may share a home folder. The file has the token and a newline. Each
start of a server makes a new one. Imports the standard library.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from collections.abc import Mapping
from pathlib import Path

_LONGEST_BYTES = 256


def configuration_folder(environ: Mapping[str, str]) -> Path:
    """Return the folder of this user's settings, whether or not it exists."""
    folder = environ.get("XDG_CONFIG_HOME", "")
    if os.path.isabs(folder):
        return Path(folder, "numba-adam")
    try:
        return Path.home() / ".config" / "numba-adam"
    except RuntimeError:  # a user without a home folder has no settings
        return Path("/nonexistent")


def file(environ: Mapping[str, str], port: int) -> Path:
    """Return the path of the token of the server on a port of this machine, whether or not it exists."""
    host = os.uname().nodename.replace("/", "_") if hasattr(os, "uname") else "localhost"
    return configuration_folder(environ) / "loopback" / f"{host}-{port}.token"


def write(path: Path, token: str) -> None:
    """Write a token, readable by this user only.

    Raises:
        OSError: the file cannot be written.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        with open(descriptor, "w", encoding="ascii") as opened:
            os.fchmod(descriptor, 0o600)
            opened.write(token + "\n")
        temporary.replace(path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def read(path: Path) -> str | None:
    """Return the token in a file; None if there is none, or other users may read or write the file."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except (OSError, ValueError):
        return None
    with open(descriptor, "rb") as opened:
        if not _is_ours_alone(os.fstat(descriptor)):
            return None
        return opened.read(_LONGEST_BYTES).decode("ascii", "replace").strip() or None


def remove(path: Path, token: str) -> None:
    """Remove a token's file, unless a later server has written another token."""
    if read(path) == token:
        with contextlib.suppress(OSError):
            path.unlink()


def _is_ours_alone(status: os.stat_result) -> bool:
    is_private = not status.st_mode & (stat.S_IRWXG | stat.S_IRWXO)
    return stat.S_ISREG(status.st_mode) and is_private and status.st_uid == os.geteuid()
