"""Digests that distinguish a repeated push from a different push with the same number.

Snapshots hold the header's digest, and a newer server compares it. So it depends only on the values of the fields, not
on how a version of protobuf encodes them. Imports the checksum library.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

import xxhash

from numba_adam.server.model.push_key import Content
from numba_adam.server.model.requests import PushRequest
from numba_adam.server.model.tensors import Tensor


def describe(tensors: Iterable[Tensor]) -> bytes:
    """Return names and shapes of arrays as text."""
    return _encoded([[tensor.name, list(tensor.shape)] for tensor in tensors])


def content_of(push: PushRequest, arrays: bytes) -> Content:
    """Return the digest of a push's header without its key.

    Args:
        push: the header.
        arrays: `describe` of its arrays.
    """
    absent = sorted(push.absent)  # two tries may list the names in different orders
    others: tuple[object, ...] = (push.base_version, push.dtype, push.total_bytes, push.checksum_kind, absent)
    if push.loss_scale != 1.0:  # without one, the digest is that of earlier releases
        others = (*others, repr(push.loss_scale))
    return Content(xxhash.xxh3_64_hexdigest(_encoded(others) + arrays))


def with_payload(content: Content, checksum: int) -> Content:
    """Return the content of a push, completed with its payload's checksum."""
    return content._replace(payload=f"{checksum:016x}")


def initial_values(checksum_kind: int, checksum: int) -> str:
    """Return the digest of a new model's initial values. It is stored with the id of the request that sent them."""
    return f"{checksum_kind}:{checksum:016x}"


def _encoded(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode("ascii")
