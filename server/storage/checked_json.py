"""JSON with the checksum of its other fields as the last one. Imports the checksum library."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import xxhash

FIELD = "xxh3_64"
"""Name of the field with the checksum."""


def encode(content: Mapping[str, Any], indent: int | None = None) -> bytes:
    """Return an object as JSON; without `indent`, in one line."""
    checksum = xxhash.xxh3_64_hexdigest(_dumps(content, None))
    return _dumps({**content, FIELD: checksum}, indent) + b"\n"


def decode(raw: bytes, indent: int | None = None) -> dict[str, Any]:
    """Return the object that was encoded, without its checksum.

    Raises:
        ValueError: it is damaged, or has no checksum.
    """
    try:
        content: dict[str, Any] = json.loads(raw)
        del content[FIELD]
        is_whole = encode(content, indent) == raw
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"it is not JSON with a checksum ({type(error).__name__})") from error
    if not is_whole:
        raise ValueError("its checksum differs")
    return content


def _dumps(content: Mapping[str, Any], indent: int | None) -> bytes:
    return json.dumps(content, separators=(",", ": " if indent else ":"), indent=indent).encode("ascii")
