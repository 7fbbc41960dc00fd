"""What the commands that talk to a server share: --server, --timeout-seconds, --json, and a client made from them.

May import the standard library; the client is imported when it is made.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from numba_adam.client import ParameterClient

DEFAULT_SERVER = "127.0.0.1:50051"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that every such command has."""
    parser.add_argument(
        "--server", metavar="HOST:PORT", default=DEFAULT_SERVER, help="the server to ask (default: %(default)s)"
    )
    parser.add_argument(
        "--timeout-seconds", metavar="S", type=float, default=10.0, help="give up after so long (default: %(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object, for programs")


def connect(arguments: argparse.Namespace) -> ParameterClient:
    """Return a client of the server that the arguments name."""
    from numba_adam.client import ParameterClient

    return ParameterClient(arguments.server, timeout_seconds=arguments.timeout_seconds)


def print_json(record: object) -> None:
    """Print a record, or a list of them, as JSON with the names of its fields."""
    print(json.dumps(_plain(record), indent=2))


def _plain(value: object) -> object:
    """Return a value as JSON knows it; what JSON does not know (a dtype) becomes its text."""
    if is_dataclass(value):
        return {item.name: _plain(getattr(value, item.name)) for item in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)


def bytes_in_words(count: int) -> str:
    """Return a number of bytes as a person would say it.

    >>> bytes_in_words(0), bytes_in_words(28_000_000), bytes_in_words(1 << 40)
    ('0 B', '28.0 MB', '1.1 TB')
    """
    size = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{count} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
