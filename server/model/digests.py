"""Digests that tell a repeated push from another push under the same number.

Snapshots hold the header's digest, and a newer server compares it. So it depends on the values of the fields alone,
never on how a version of protobuf encodes them. Imports the checksum library.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

import xxhash

from numba_adam.server.model.push_ledger import Content
from numba_adam.server.model.requests import PushRequest
from numba_adam.server.model.tensors import Tensor


def describe(tensors: Iterable[Tensor]) -> bytes:
    """Return names and shapes of arrays as text."""
    return _encoded([[tensor.name, list(tensor.shape)] for tensor in tensors])


def content_of(push: PushRequest, arrays: bytes) -> Content:
    """Return the digest of what a push's header says beside the push's key.

    Args:
        push: the header.
        arrays: `describe` of its arrays.
    """
    absent = sorted(push.absent)  # a set: its order means nothing, and may differ between two tries
    others = (push.base_version, push.dtype, push.total_bytes, push.checksum_kind, absent)
    return Content(xxhash.xxh3_64_hexdigest(_encoded(others) + arrays))


def with_payload(content: Content, checksum: int) -> Content:
    """Return the content of a push whose payload has arrived, too."""
    return content._replace(payload=f"{checksum:016x}")


def initial_values(checksum_kind: int, checksum: int) -> str:
    """Return the digest of a new model's initial values. It is kept beside the id of the request that sent them."""
    return f"{checksum_kind}:{checksum:016x}"


def _encoded(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode("ascii")
