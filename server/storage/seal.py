"""Seals the records of a journal with a key: the tag of each covers its segment, its place, its event and its gradient.

    0     "NBADSEAL"
    8     SHA-256 of the gradient
    40    HMAC-SHA256
    72    the event

A record in another place, of another segment or of another model has a wrong tag. The segment is named by a random
number in its first record, which has the id of the key too. The end of a journal can be cut off by whoever can write
it, as a power failure does; see docs/security.md. Imports the keys and the error tree.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
import struct

from numba_adam.errors import CorruptSnapshotError, SnapshotError
from numba_adam.server.storage.keys import Keys

MARK = b"NBADSEAL"
_DIGEST_BYTES = 32
SEAL_BYTES = len(MARK) + 2 * _DIGEST_BYTES
_KIND = "journal"
_NONCE = re.compile(r"[0-9a-f]{32}")
_PLACE = struct.Struct("<2Q")  # position of the record, size of its gradient


class Seal:
    """Seals the records of one segment, or opens them.

    Args:
        keys: of the data folder.
        key_id: the key; empty: the records have no seal.
        nonce: the random number of the segment, of 32 digits.
    """

    def __init__(self, keys: Keys, key_id: str, nonce: str) -> None:
        self._keys, self.key_id, self.nonce = keys, key_id, nonce

    def sealed(self, event: bytes, gradient: memoryview | bytes, position: int) -> bytes:
        """Return an event with its seal.

        Args:
            event: the event.
            gradient: that follows it.
            position: of the record in its segment.
        """
        if not self.key_id:
            return event
        digest = hashlib.sha256(gradient).digest()
        content = self._content(position, len(gradient), digest, event)
        return MARK + digest + bytes.fromhex(self._keys.tag(_KIND, content)) + event

    def opened(self, raw: bytes, gradient_bytes: int, position: int, what: str) -> tuple[bytes, bytes]:
        """Return the event and the SHA-256 of its gradient; that is empty without a seal.

        Raises:
            CorruptSnapshotError: the seal is missing or wrong.
        """
        if not self.key_id:
            return raw, b""
        if raw[: len(MARK)] != MARK or len(raw) < SEAL_BYTES:
            raise CorruptSnapshotError(f"{what}, offset {position}: the record has no seal, and others have one")
        digest, tag, event = _split(raw)
        content = self._content(position, gradient_bytes, digest, event)
        why = self._keys.why_refused(what, _KIND, self.key_id, tag.hex(), content)
        if why:
            raise CorruptSnapshotError(f"{what}, offset {position}: {why}")
        return event, digest

    def _content(self, position: int, gradient_bytes: int, digest: bytes, event: bytes) -> bytes:
        """Return what the tag covers. All parts but the last one have a fixed length."""
        return self.nonce.encode() + _PLACE.pack(position, gradient_bytes) + digest + event


def new_seal(keys: Keys) -> Seal:
    """Return the seal of a new segment."""
    return Seal(keys, keys.key_id, secrets.token_hex(16))


def seal_of(first: bytes, keys: Keys, what: str, position: int) -> Seal:
    """Return the seal that the first record of a segment names.

    Args:
        first: the record's event, with its seal.
        keys: of the data folder.
        what: name of the file, for messages.
        position: of the record.

    Raises:
        SnapshotError: the keys refuse the segment, or the record is damaged.
    """
    if first[: len(MARK)] != MARK:
        why = keys.why_refused(what, _KIND, "", "", b"")
        if why:
            raise SnapshotError(f"{what}: {why}")
        return Seal(keys, "", "")
    try:
        content = json.loads(_split(first)[2])
        key_id, nonce = str(content["key_id"]), str(content["nonce"])
        if not _NONCE.fullmatch(nonce):
            raise ValueError("its nonce is none")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CorruptSnapshotError(f"{what}: its first record is damaged ({error})") from error
    seal = Seal(keys, key_id, nonce)
    seal.opened(first, 0, position, what)
    return seal


def _split(raw: bytes) -> tuple[bytes, bytes, bytes]:
    """Return the SHA-256 of the gradient, the tag and the event."""
    begin = len(MARK)
    return raw[begin : begin + _DIGEST_BYTES], raw[begin + _DIGEST_BYTES : SEAL_BYTES], raw[SEAL_BYTES:]
