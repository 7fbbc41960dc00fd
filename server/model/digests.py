"""Digests by which a push that comes again is told from another one under the same number.

The header's digest is written down in snapshots and compared after an update of the server: it depends on the values
of the fields alone, never on how a version of protobuf encodes them. Imports the checksum library.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

import xxhash

from numba_adam.ps.v1.parameter_service_pb2 import PushHeader
from numba_adam.server.model.push_ledger import Content
from numba_adam.server.model.spec import Tensor


def describe(tensors: Iterable[Tensor]) -> bytes:
    """Return names and shapes of arrays as text."""
    return _encoded([[tensor.name, list(tensor.shape)] for tensor in tensors])


def content_of(header: PushHeader, arrays: bytes) -> Content:
    """Return the digest of what a header says beside the push's name.

    Args:
        header: the header.
        arrays: `describe` of its arrays.
    """
    absent = sorted(header.absent)  # a set: its order says nothing, and may differ between two tries
    others = (header.base_version, header.dtype, header.total_bytes, header.checksum_kind, absent)
    return Content(xxhash.xxh3_64_hexdigest(_encoded(others) + arrays))


def with_payload(content: Content, checksum: int) -> Content:
    """Return the content of a push whose payload has come, too."""
    return content._replace(payload=f"{checksum:016x}")


def initial_values(checksum_kind: int, checksum: int) -> str:
    """Return the digest of a new model's initial values, to be kept beside the id of the request that sent them."""
    return f"{checksum_kind}:{checksum:016x}"


def _encoded(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode("ascii")
