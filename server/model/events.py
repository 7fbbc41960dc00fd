"""What happened to a push ledger, as records: replayed in order, they give the same ledger.

Imports the ledger and the settings.

A record is a kind, numbers of fixed size, and texts with their lengths, all little-endian. A model's state id is not in
it: a journal belongs to one state.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from typing import NamedTuple

from numba_adam.server.model.push_ledger import Content, PushKey, PushLedger
from numba_adam.server.model.steering import Steering


class Opening(NamedTuple):
    """A session was opened."""

    worker_id: str
    """The worker."""

    nonce: str
    """Id of the request; empty if it had none."""


class Acceptance(NamedTuple):
    """A push is applied as the next version."""

    key: PushKey
    """Identifies it."""

    base_version: int
    """Version that the gradient was computed from."""

    present: tuple[bool, ...]
    """For each array of the model, whether it has a gradient."""

    content: Content
    """Digests of its content."""

    gradient: int
    """The number of the file that has the gradient."""

    loss_scale: float = 1.0
    """Divides the gradient."""


class Rejection(NamedTuple):
    """A push was rejected."""

    key: PushKey
    """Identifies it."""

    reason: int
    """A Reason of the protocol."""

    message: str
    """The error message."""

    content: Content
    """Digests of its content."""


class Change(NamedTuple):
    """The settings are changed."""

    request_id: str
    """Id of the request."""

    digest: str
    """Digest of its content."""

    settings: str
    """The record of the new settings, as JSON."""


Event = Opening | Acceptance | Rejection | Change

_KINDS = (Opening, Acceptance, Rejection, Change)
_SCALED = 16  # added to the kind of an acceptance with a loss scale
_SCALE = struct.Struct("<d")
_HEAD = struct.Struct("<B4Q")  # kind; epoch, sequence, base version or reason, gradient
_LENGTH = struct.Struct("<I")
_NO_TEXT = 0xFFFFFFFF


def encode(event: Event) -> bytes:
    """Return an event's record."""
    kind = _KINDS.index(type(event))
    if isinstance(event, Opening):
        return b"".join((_HEAD.pack(kind, 0, 0, 0, 0), *_texts(event.worker_id, event.nonce)))
    if isinstance(event, Change):
        return b"".join((_HEAD.pack(kind, 0, 0, 0, 0), *_texts(*event)))
    key, content = event.key, event.content
    texts = _texts(key.worker_id, content.header, content.payload)
    if isinstance(event, Acceptance):
        is_scaled = event.loss_scale != 1.0
        kind += _SCALED if is_scaled else 0
        head = _HEAD.pack(kind, key.epoch, key.sequence, event.base_version, event.gradient)
        scale = _SCALE.pack(event.loss_scale) if is_scaled else b""
        return b"".join((head, *texts, bytes(event.present), scale))
    head = _HEAD.pack(kind, key.epoch, key.sequence, event.reason, 0)
    return b"".join((head, *texts, *_texts(event.message)))


def decode(record: bytes, state_id: str) -> Event:
    """Return the event of a record.

    Raises:
        ValueError: it is not a record that `encode` returned.
    """
    try:
        kind, epoch, sequence, number, gradient = _HEAD.unpack_from(record)
        is_scaled = kind >= _SCALED
        kind -= _SCALED if is_scaled else 0
        texts = _Texts(record)
        worker_id = texts.next()
        if _KINDS[kind] is Opening:
            event: Event = Opening(worker_id, texts.next())
        elif _KINDS[kind] is Change:
            event = Change(worker_id, texts.next(), texts.next())
        else:
            key, content = PushKey(state_id, worker_id, epoch, sequence), Content(texts.next(), texts.optional())
            if _KINDS[kind] is Acceptance:
                end = len(record) - (_SCALE.size if is_scaled else 0)
                present = tuple(map(bool, record[texts.position : end]))
                (scale,) = _SCALE.unpack_from(record, end) if is_scaled else (1.0,)
                event = Acceptance(key, number, present, content, gradient, scale)
            else:
                event = Rejection(key, number, texts.next(), content)
    except (struct.error, IndexError, TypeError) as error:
        raise ValueError(f"a record of {len(record)} bytes is not an event: {error}") from error
    if encode(event) != record:
        raise ValueError(f"a record of {len(record)} bytes is not an event of this release")
    return event


def replay(ledger: PushLedger, event: Event) -> None:
    """Let an event happen to a ledger once more."""
    if isinstance(event, Opening):
        ledger.add_session(event.worker_id, event.nonce)
    elif isinstance(event, Acceptance):
        ledger.accept(event.key, event.base_version, event.present, event.content)
    elif isinstance(event, Change):
        settings = Steering.from_record(json.loads(event.settings))
        ledger.changes.make(event.request_id, event.digest, settings, ledger.version)
    else:
        ledger.reject(event.key, event.reason, event.message, event.content)


def _texts(*texts: str | None) -> Iterator[bytes]:
    """Yield the length of each text, and the text."""
    for text in texts:
        raw = b"" if text is None else text.encode("utf-8", "surrogatepass")
        yield _LENGTH.pack(_NO_TEXT if text is None else len(raw))
        yield raw


class _Texts:
    """Reads the texts of a record."""

    def __init__(self, record: bytes) -> None:
        self._record = record
        self.position = _HEAD.size

    def optional(self) -> str | None:
        """Return the next text; None if there is none."""
        (length,) = _LENGTH.unpack_from(self._record, self.position)
        self.position += _LENGTH.size
        if length == _NO_TEXT:
            return None
        if length > len(self._record) - self.position:
            raise ValueError("a text is longer than its record")
        self.position += length
        return self._record[self.position - length : self.position].decode("utf-8", "surrogatepass")

    def next(self) -> str:
        """Return the next text, which must exist."""
        text = self.optional()
        if text is None:
            raise ValueError("a text is missing")
        return text
