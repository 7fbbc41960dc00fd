"""Checksums of a transfer's payload, one class for each ChecksumKind of the protocol.

May import the generated messages. Imports a checksum library only when its kind is used.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from numba_adam.ps.v1.transfer_pb2 import ChecksumKind

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

XXH3_64: int = ChecksumKind.Value("CHECKSUM_KIND_XXH3_64")
CRC32C: int = ChecksumKind.Value("CHECKSUM_KIND_CRC32C")


class Checksum(Protocol):
    """An incremental checksum."""

    def update(self, data: ReadableBuffer, /) -> None:
        """Add the next bytes: contiguous memory of any format."""

    def value(self) -> int:
        """Return the checksum of all bytes so far, for a TransferTrailer."""


class _Xxh3:
    """XXH3, 64 bits, seed 0."""

    def __init__(self) -> None:
        import xxhash

        state = xxhash.xxh3_64()
        self.update: Callable[[ReadableBuffer], None] = state.update
        self.value: Callable[[], int] = state.intdigest


class _Crc32c:
    """CRC-32C (Castagnoli)."""

    def __init__(self) -> None:
        import google_crc32c

        self._extend: Callable[[int, bytes], int] = google_crc32c.extend
        self._value = 0

    def update(self, data: ReadableBuffer, /) -> None:
        """Add the next bytes. The copy is necessary because the library takes only `bytes`."""
        self._value = self._extend(self._value, memoryview(data).tobytes())

    def value(self) -> int:
        """Return the checksum of all bytes so far."""
        return self._value


_MAKERS: dict[int, Callable[[], Checksum]] = {XXH3_64: _Xxh3, CRC32C: _Crc32c}

SUPPORTED: tuple[int, ...] = tuple(_MAKERS)
"""The kinds that `new_checksum` accepts."""


def new_checksum(kind: int) -> Checksum:
    """Return an empty checksum.

    Args:
        kind: a ChecksumKind other than UNSPECIFIED.

    Raises:
        ValueError: this version does not know the kind.
        ImportError: CRC-32C needs the google-crc32c package.
    """
    maker = _MAKERS.get(kind)
    if maker is None:
        known = ", ".join(f"{ChecksumKind.Name(number)} ({number})" for number in SUPPORTED)
        raise ValueError(f"checksum_kind={kind}: expected one of {known}")
    return maker()
