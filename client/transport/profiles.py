"""The profiles of servers in the user's configuration folder: TLS settings and a token by address.

The file numba-adam/servers.toml decides whom a client trusts. So a file that others may write to is refused, and a file
with a token that others may read. Imports the place of the folder.
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
from numba_adam.ps.loopback_token import configuration_folder

TOKEN = "token"
"""The setting that is a secret. The others are paths and a name."""

Profiles = dict[str, dict[str, str]]


def file(environ: Mapping[str, str]) -> Path:
    """Return the path of the file, whether or not it exists."""
    return configuration_folder(environ) / "servers.toml"


def token_of(environ: Mapping[str, str], address: str) -> str | None:
    """Return the token that is kept for an address; None if there is none.

    Raises:
        ConfigurationError: the file cannot be used.
    """
    return read(environ, None).get(address.lower(), {}).get(TOKEN)


def read(environ: Mapping[str, str], names: Collection[str] | None) -> Profiles:
    """Return the profiles: settings by address.

    Args:
        environ: such as os.environ.
        names: the settings that exist besides the token; None: any.

    Raises:
        ConfigurationError: others may write to the file or read its tokens, or its content is not what `write` writes.
    """
    path = file(environ)
    try:
        with path.open("rb") as opened:
            status = os.fstat(opened.fileno())
            if _is_of_others(status):
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
    profiles = _checked(path, values, names)
    if status.st_mode & (stat.S_IRGRP | stat.S_IROTH) and any(TOKEN in settings for settings in profiles.values()):
        raise ConfigurationError(f"{path}: others may read this file, which has tokens; run: chmod 600 {path}")
    return profiles


def write(environ: Mapping[str, str], profiles: Profiles) -> Path:
    """Replace the profiles; return the file's path.

    Raises:
        ConfigurationError: the file cannot be written.
    """
    path = file(environ)
    lines = ["# Written by numba-adam login: TLS settings and tokens by the address of the server."]
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


def _checked(path: Path, values: Mapping[str, object], names: Collection[str] | None) -> Profiles:
    servers = values.get("servers", {})
    if not isinstance(servers, dict) or set(values) - {"servers"}:
        raise ConfigurationError(f'{path}: expected tables [servers."HOST:PORT"] only')
    for address, settings in servers.items():
        if not isinstance(settings, dict) or not all(isinstance(value, str) for value in settings.values()):
            raise ConfigurationError(f"{path}: the settings of {address!r} must be texts in a table")
        strange = [] if names is None else sorted(set(settings) - {*names, TOKEN})
        if names is not None and strange:
            raise ConfigurationError(f"{path} sets {strange[0]!r}: the settings are {', '.join(names)}")
    return {address.lower(): settings for address, settings in servers.items()}
