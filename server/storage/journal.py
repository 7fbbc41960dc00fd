"""A file of records that are written one after the other and read after a crash.

    0     "NBADJRN1"
    8     the records: length, checksum of the length, checksum of the content, content

A process that dies while it writes leaves the beginning of a record at the end: it is cut off, for it was never
acknowledged. Any other damage is an error, which names file and offset. Imports durable files and the error tree.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path

import xxhash

from numba_adam.errors import CorruptSnapshotError
from numba_adam.server.storage.durable import TEMPORARY, write_all

MAGIC = b"NBADJRN1"
_HEAD = struct.Struct("<QIQ")  # length of the content, checksum of length and position, checksum of the content


class Journal:
    """A journal that is being written.

    Args:
        path: the file. An existing one is replaced at once, and is complete or untouched after a crash.
        first: its first record.

    Raises:
        OSError: it cannot be written.
    """

    def __init__(self, path: Path, first: bytes) -> None:
        self.path = path
        temporary = path.with_name(path.name + TEMPORARY)
        flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_APPEND
        self._descriptor = os.open(temporary, flags, 0o600)
        self._is_broken = False
        try:
            self.size = write_all(self._descriptor, MAGIC)
            self.append(first)
            temporary.rename(path)
        except BaseException:
            os.close(self._descriptor)
            temporary.unlink(missing_ok=True)
            raise

    def append(self, record: bytes) -> None:
        """Write a record. When this returns, it survives the death of the process.

        Raises:
            OSError: it was not written, as if nobody had tried.
        """
        if self._is_broken:
            raise OSError(f"{str(self.path)!r}: an earlier record could not be written or cut off")
        raw = _HEAD.pack(len(record), _check(len(record), self.size), xxhash.xxh3_64_intdigest(record)) + record
        try:
            self.size += write_all(self._descriptor, raw)
        except OSError:
            self._is_broken = True
            os.ftruncate(self._descriptor, self.size)  # part of it may have been written
            self._is_broken = False
            raise

    def close(self) -> None:
        """Close the file."""
        descriptor, self._descriptor = self._descriptor, -1
        os.close(descriptor)


def read(path: Path) -> list[bytes]:
    """Return the records of a journal.

    Raises:
        CorruptSnapshotError: it is damaged before its end.
        OSError: it cannot be read.
    """
    raw = path.read_bytes()
    if raw[: len(MAGIC)] != MAGIC:
        raise CorruptSnapshotError(f"{str(path)!r} begins with {raw[:8]!r}: it is not a journal of this release")
    return list(_records(path, memoryview(raw)))


def _records(path: Path, raw: memoryview) -> Iterator[bytes]:
    position = len(MAGIC)
    while position + _HEAD.size <= len(raw):
        length, check, checksum = _HEAD.unpack_from(raw, position)
        if check != _check(length, position):
            raise CorruptSnapshotError(
                f"{str(path)!r} is damaged at offset {position}: the head of a record is invalid"
            )
        content = raw[position + _HEAD.size : position + _HEAD.size + length]
        if len(content) < length:
            return
        if xxhash.xxh3_64_intdigest(content) != checksum:
            raise CorruptSnapshotError(f"{str(path)!r} is damaged at offset {position}: a record's checksum is wrong")
        yield bytes(content)
        position += _HEAD.size + length


def _check(length: int, position: int) -> int:
    """Return the checksum of a record's length, which is valid at one position only."""
    return xxhash.xxh32_intdigest(struct.pack("<QQ", length, position))
