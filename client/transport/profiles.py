"""The profiles of servers in the user's configuration folder: TLS settings by address. Imports the standard library.

The file numba-adam/servers.toml decides whom a client trusts. So a file that others may write to is refused.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import stat
import tomllib
from collections.abc import Collection, Mapping
from pathlib import Path

from numba_adam.errors import ConfigurationError

Profiles = dict[str, dict[str, str]]


def file(environ: Mapping[str, str]) -> Path:
    """Return the path of the file, whether or not it exists."""
    folder = environ.get("XDG_CONFIG_HOME", "")
    if os.path.isabs(folder):
        return Path(folder, "numba-adam", "servers.toml")
    try:
        return Path.home() / ".config" / "numba-adam" / "servers.toml"
    except RuntimeError:  # a user without a home folder has no profiles
        return Path("/nonexistent/servers.toml")


def read(environ: Mapping[str, str], names: Collection[str]) -> Profiles:
    """Return the profiles: settings by address.

    Args:
        environ: such as os.environ.
        names: the settings that exist.

    Raises:
        ConfigurationError: others may write to the file, or its content is not what `write` writes.
    """
    path = file(environ)
    try:
        with path.open("rb") as opened:
            if _is_of_others(os.fstat(opened.fileno())):
                raise ConfigurationError(
                    f"{path}: others may write to this file, which decides whom clients trust; run: chmod go-w {path}"
                )
            values = tomllib.load(opened)
    except FileNotFoundError:
        return {}
    except NotADirectoryError:
        return {}
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path}: it must be a readable TOML file ({error}); see numba-adam login") from error
    return _checked(path, values, names)


def write(environ: Mapping[str, str], profiles: Profiles) -> Path:
    """Replace the profiles; return the file's path.

    Raises:
        ConfigurationError: the file cannot be written.
    """
    path = file(environ)
    lines = ["# Written by numba-adam login: TLS settings by the address of the server."]
    for address, settings in sorted(profiles.items()):
        lines += [
            "",
            f"[servers.{_quoted(address)}]",
            *(f"{name} = {_quoted(text)}" for name, text in settings.items()),
        ]
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}.writing")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(descriptor, "w", encoding="utf-8") as opened:
            os.fchmod(descriptor, 0o600)
            opened.write("\n".join(lines) + "\n")
        temporary.replace(path)
    except OSError as error:
        raise ConfigurationError(f"{path}: it cannot be written ({error.strerror})") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
    return path


def _is_of_others(status: os.stat_result) -> bool:
    """Return whether another user may write to a file. Root may write everywhere."""
    if not hasattr(os, "geteuid"):
        return False
    return status.st_uid not in (0, os.geteuid()) or bool(status.st_mode & (stat.S_IWGRP | stat.S_IWOTH))


def _quoted(text: str) -> str:
    """Return a text as a TOML string. Those of JSON in ASCII are TOML's too, but for the delete character."""
    return json.dumps(text).replace("\x7f", "\\u007f")


def _checked(path: Path, values: Mapping[str, object], names: Collection[str]) -> Profiles:
    servers = values.get("servers", {})
    if not isinstance(servers, dict) or set(values) - {"servers"}:
        raise ConfigurationError(f'{path}: expected tables [servers."HOST:PORT"] only')
    for address, settings in servers.items():
        if not isinstance(settings, dict) or not all(isinstance(value, str) for value in settings.values()):
            raise ConfigurationError(f"{path}: the settings of {address!r} must be texts in a table")
        strange = sorted(set(settings) - set(names))
        if strange:
            raise ConfigurationError(f"{path} sets {strange[0]!r}: the settings are {', '.join(names)}")
    return {address.lower(): settings for address, settings in servers.items()}
