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

from numba_adam.server.model.push_key import Content, PushKey
from numba_adam.server.model.push_ledger import PushLedger
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


class Holding(NamedTuple):
    """A push is taken into the open round."""

    key: PushKey
    """Identifies it."""

    present: tuple[bool, ...]
    """For each array of the model, whether it has a gradient."""

    content: Content
    """Digests of its content."""

    gradient: int
    """The number of the slot that has the gradient."""


class Closing(NamedTuple):
    """The mean of the gradients of the open round is applied as the next version."""


class Abortion(NamedTuple):
    """The pushes of the open round are rejected."""

    message: str
    """The error message."""


class Departure(NamedTuple):
    """Nobody waits for a worker any more: its lease is over, or it left."""

    worker_id: str
    """The worker."""


Event = Opening | Acceptance | Rejection | Change | Holding | Closing | Abortion | Departure

_KINDS = (Opening, Acceptance, Rejection, Change, Holding, Closing, Abortion, Departure)
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
    if isinstance(event, Closing):
        return _HEAD.pack(kind, 0, 0, 0, 0)
    if isinstance(event, Abortion):
        return b"".join((_HEAD.pack(kind, 0, 0, 0, 0), *_texts(event.message)))
    if isinstance(event, Departure):
        return b"".join((_HEAD.pack(kind, 0, 0, 0, 0), *_texts(event.worker_id)))
    key, content = event.key, event.content
    texts = _texts(key.worker_id, content.header, content.payload)
    if isinstance(event, Acceptance):
        is_scaled = event.loss_scale != 1.0
        kind += _SCALED if is_scaled else 0
        head = _HEAD.pack(kind, key.epoch, key.sequence, event.base_version, event.gradient)
        scale = _SCALE.pack(event.loss_scale) if is_scaled else b""
        return b"".join((head, *texts, bytes(event.present), scale))
    if isinstance(event, Holding):
        head = _HEAD.pack(kind, key.epoch, key.sequence, 0, event.gradient)
        return b"".join((head, *texts, bytes(event.present)))
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
        event: Event
        if _KINDS[kind] is Closing:
            event = Closing()
        elif _KINDS[kind] is Abortion:
            event = Abortion(texts.next())
        elif _KINDS[kind] is Departure:
            event = Departure(texts.next())
        elif _KINDS[kind] is Opening:
            event = Opening(texts.next(), texts.next())
        elif _KINDS[kind] is Change:
            event = Change(texts.next(), texts.next(), texts.next())
        else:
            worker_id = texts.next()
            key, content = PushKey(state_id, worker_id, epoch, sequence), Content(texts.next(), texts.optional())
            if _KINDS[kind] is Acceptance:
                end = len(record) - (_SCALE.size if is_scaled else 0)
                present = tuple(map(bool, record[texts.position : end]))
                (scale,) = _SCALE.unpack_from(record, end) if is_scaled else (1.0,)
                event = Acceptance(key, number, present, content, gradient, scale)
            elif _KINDS[kind] is Holding:
                event = Holding(key, tuple(map(bool, record[texts.position :])), content, gradient)
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
        ledger.change(event.request_id, event.digest, settings)
    elif isinstance(event, Holding):
        ledger.hold(event.key, event.present, event.content, event.gradient)
    elif isinstance(event, Closing):
        ledger.close_round()
    elif isinstance(event, Abortion):
        ledger.abort_round(event.message)
    elif isinstance(event, Departure):
        ledger.depart(event.worker_id)
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
