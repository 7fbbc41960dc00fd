"""What identifies a push, and what tells one content from another. Imports the standard library."""

from __future__ import annotations

from typing import NamedTuple


class PushKey(NamedTuple):
    """Identifies one push."""

    state_id: str
    """State that the gradient was computed for."""

    worker_id: str
    """The worker."""

    epoch: int
    """The worker's session."""

    sequence: int
    """Number of the push within the session, from 1."""


class Content(NamedTuple):
    """Digests of a push, without its key."""

    header: str
    """Digest of the header: base version, dtype, arrays, sizes, kind of checksum."""

    payload: str | None = None
    """Checksum of the payload. None: not known yet, or the answer did not depend on it."""
