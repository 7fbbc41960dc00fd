"""JSON with the checksum of its other fields as the last one, and with the tag of a key before it.

Imports the checksum library, the keys and the error tree.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import xxhash

from numba_adam.errors import SnapshotError
from numba_adam.server.storage.keys import NO_KEYS, Keys

FIELD = "xxh3_64"
"""Name of the field with the checksum."""

KEY_ID, TAG = "key_id", "hmac_sha256"
"""Names of the fields of a file with a tag."""


def encode(content: Mapping[str, Any], kind: str, keys: Keys = NO_KEYS, indent: int | None = None) -> bytes:
    """Return an object as JSON; without `indent`, in one line.

    Args:
        content: the object.
        kind: of the file, which the tag covers.
        keys: of the data folder.
        indent: spaces of each level, for files that people read.
    """
    if keys.key_id:
        named = {**content, KEY_ID: keys.key_id}
        content = {**named, TAG: keys.tag(kind, _dumps(named, None))}
    return _checked(content, indent)


def decode(
    raw: bytes,
    what: str,
    kind: str,
    keys: Keys = NO_KEYS,
    indent: int | None = None,
    *,
    may_lack_checksum: bool = False,
) -> dict[str, Any]:
    """Return the object that was encoded, without its checksum and tag.

    Args:
        raw: the file's content.
        what: its name, for messages.
        kind: of the file.
        keys: of the data folder.
        indent: as it was encoded.
        may_lack_checksum: whether the first release wrote such files, without a checksum.

    Raises:
        SnapshotError: it has no valid tag.
        ValueError: it is damaged, or has no checksum.
    """
    try:
        content: dict[str, Any] = json.loads(raw)
        if may_lack_checksum and not {FIELD, KEY_ID, TAG} & content.keys():
            is_whole = True
        else:
            del content[FIELD]
            is_whole = _checked(content, indent) == raw
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"it is not JSON with a checksum ({type(error).__name__})") from error
    if not is_whole:
        raise ValueError("its checksum differs")
    tag, key_id = content.pop(TAG, ""), content.get(KEY_ID, "")
    why = keys.why_refused(what, kind, str(key_id), str(tag), _dumps(content, None))
    if why:
        raise SnapshotError(f"{what}: {why}")
    content.pop(KEY_ID, None)
    return content


def key_id_of(raw: bytes) -> str:
    """Return the id of the key of a file that was decoded; empty if it has no tag."""
    return str(json.loads(raw).get(KEY_ID, ""))


def _checked(content: Mapping[str, Any], indent: int | None) -> bytes:
    checksum = xxhash.xxh3_64_hexdigest(_dumps(content, None))
    return _dumps({**content, FIELD: checksum}, indent) + b"\n"


def _dumps(content: Mapping[str, Any], indent: int | None) -> bytes:
    return json.dumps(content, separators=(",", ": " if indent else ":"), indent=indent).encode("ascii")
