"""A segment of the journal on disk: records of events, each with the gradient that its update uses.

    0     "NBADSEG2"
    8     the records: a head of 56 bytes, the event, the gradient

A head has a mark, the sizes of event and gradient, their checksums, how much of the segment was known to be on disk
when it was written, and a checksum of all that and of its position. Heads begin at multiples of 8. A large gradient
begins at a multiple of 4096, and so does the record after it, so that it can be written past the page cache. The bytes
between are FILL, because zeros say that a record is torn. ("NBADSEG1" has zeros there, and nothing begins at 4096.)

When the power fails, what was not yet fsynced may be there, be missing or be zeros, sector by sector. So a bad record
is *torn* if it is cut short or if one of its sectors is zero, and if no later record says that it was on disk. It was
never acknowledged. Every other bad record is *damage*. Imports NumPy, the checksum library, the seals, the layout,
direct files and the error tree.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import xxhash

from numba_adam.errors import CorruptSnapshotError
from numba_adam.server.storage.direct_file import BLOCK, DirectFile
from numba_adam.server.storage.durable import sync
from numba_adam.server.storage.record_layout import (
    CHECK,
    FIELDS,
    FILL,
    HEAD_BYTES,
    MAGIC,
    MARK,
    OLD_MAGIC,
    SECTOR,
    SMALL_ALIGNMENT,
    alignment_of,
    places,
)
from numba_adam.server.storage.seal import Seal

_PIECE_BYTES = 1 << 22

Flat = npt.NDArray[Any]


class Record(NamedTuple):
    """One record of a segment."""

    event: bytes
    """The event."""

    gradient_bytes: int
    """Size of its gradient."""

    gradient_at: int
    """Position of its gradient in the file."""

    gradient_xxh3: int
    """Checksum of its gradient."""

    synced: int
    """Bytes of the segment that were on disk before it was written. Not 0: so was all of the segments before it."""

    begin: int
    """Its position."""

    end: int
    """Position after it."""

    seal_bytes: int = 0
    """Size of the seal before its event."""

    gradient_sha256: bytes = b""
    """SHA-256 of its gradient, which its seal covers; empty without a seal."""


class Writer:
    """A segment that is being written.

    Args:
        path: the file; it must not exist.

    Raises:
        OSError: it cannot be created.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_APPEND
        self._descriptor = os.open(path, flags, 0o600)
        self._direct: DirectFile | None = None
        self._is_broken = False
        self.synced = 0
        """Bytes that are on disk."""

        self.size = 0
        """Bytes that were written."""

        self.seal: Seal | None = None
        """Seals the records, if the data folder has keys."""

        try:
            os.fchmod(self._descriptor, 0o600)
            self._write([memoryview(MAGIC)])
            self.size = len(MAGIC)
        except BaseException:
            self.close()
            path.unlink(missing_ok=True)
            raise

    @property
    def inode(self) -> int:
        """The number of the file."""
        return os.fstat(self._descriptor).st_ino

    def append(self, event: bytes, gradient: Flat | None = None, checksum: int | None = None) -> None:
        """Write a record. It is on disk after `sync`.

        Args:
            event: the event.
            gradient: its gradient.
            checksum: the gradient's checksum, if it is known.

        Raises:
            OSError: it was not written, as if nobody had tried.
        """
        self._check_whole()
        parts = self._parts(event, gradient, checksum)
        try:
            self._put(parts)
        except OSError:
            self._is_broken = True
            os.ftruncate(self._descriptor, self.size)  # part of it may have been written
            self._is_broken = False
            if self._direct is not None:
                self._direct.forget_room()
            raise

    def begin(self, event: bytes, gradient: Flat, checksum: int | None = None) -> Callable[[], None] | None:
        """Reserve room for a record. Return the function that writes it; None: only `append` can.

        The function may run on another thread, before any other call. An OSError of it is final: the disk is at fault.

        Raises:
            OSError: there is no room, and nothing was changed.
        """
        self._check_whole()
        if alignment_of(gradient.nbytes) != BLOCK:
            return None
        self._direct = self._direct or DirectFile(self.path)
        end = self.size + HEAD_BYTES + len(event) + gradient.nbytes + 3 * BLOCK  # with a seal, and what is between
        if not self._direct.reserve(self._descriptor, end, self.size):
            return None

        def write() -> None:
            self._is_broken = True
            self._put(self._parts(event, gradient, checksum))
            self._is_broken = False

        return write

    def sync(self) -> None:
        """Wait until all that was written before is on disk.

        Raises:
            OSError: it may not be, and another try would not say so.
        """
        size = self.size
        sync(self._descriptor, self.path, data_only=True)
        self.synced = max(self.synced, size)

    def close(self) -> None:
        """Close the file."""
        descriptor, self._descriptor = self._descriptor, -1
        if self._direct is not None:
            self._direct.close()
            with contextlib.suppress(OSError):
                os.ftruncate(descriptor, os.fstat(descriptor).st_size)  # gives reserved room back
        os.close(descriptor)

    def _check_whole(self) -> None:
        if self._is_broken:
            raise OSError(f"{str(self.path)!r}: an earlier record could not be written or cut off")

    def _parts(self, event: bytes, gradient: Flat | None, checksum: int | None) -> tuple[bytes, memoryview, bytes]:
        """Return a record: what is before its gradient, the gradient, and what is after it."""
        raw = memoryview(b"") if gradient is None else gradient.view(np.uint8).data
        if self.seal is not None:
            event = self.seal.sealed(event, raw, self.size)
        if checksum is None:
            checksum = xxhash.xxh3_64_intdigest(raw)
        fields = FIELDS.pack(MARK, len(event), len(raw), self.synced, xxhash.xxh3_64_intdigest(event), checksum)
        start = fields + CHECK.pack(_check(fields, self.size)) + event
        gradient_at, end = places(self.size, len(event), len(raw), alignment_of(len(raw)))
        head = start + FILL * (gradient_at - self.size - len(start))
        return head, raw, FILL * (end - gradient_at - len(raw))

    def _put(self, parts: tuple[bytes, memoryview, bytes]) -> None:
        """Write a record. A large gradient goes past the page cache."""
        head, raw, tail = parts
        if alignment_of(raw.nbytes) != BLOCK:
            self._write([memoryview(head), raw, memoryview(tail)])
        else:
            self._direct = self._direct or DirectFile(self.path)
            position, whole = self.size, raw.nbytes - raw.nbytes % BLOCK
            body, rest = raw[:whole], bytes(raw[whole:]) + tail
            if position % BLOCK:  # the page of the record before
                self._write([memoryview(head)])
                position, head = position + len(head), b""
            if not self._direct.write(position, head, body, rest):
                self._write([memoryview(head), body, memoryview(rest)])
        self.size += len(parts[0]) + raw.nbytes + len(tail)

    def _write(self, parts: list[memoryview]) -> None:
        parts = [part for part in parts if part.nbytes]
        while parts:
            written = os.writev(self._descriptor, parts)
            while parts and written >= parts[0].nbytes:
                written -= parts.pop(0).nbytes
            if parts:
                parts[0] = parts[0][written:]


class Reader:
    """Reads a segment that an earlier process left; a context manager that closes it.

    Args:
        path: the file.
        is_kept: True: nothing is written to the disk or cut off. For commands that only look at it.

    Raises:
        OSError: it cannot be read.
    """

    def __init__(self, path: Path, *, is_kept: bool = False) -> None:
        self.path = path
        how = os.O_RDONLY if is_kept else os.O_RDWR
        self._descriptor = os.open(path, how | os.O_CLOEXEC | os.O_NOFOLLOW)
        if not is_kept:
            sync(self._descriptor, path)  # what was written and not fsynced is about to become part of the model
        # Then read the disk, not the cache: after a failed fsync only the cache has it.
        os.posix_fadvise(self._descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        self.status = os.fstat(self._descriptor)
        self._is_old = False
        self.torn_at: int | None = None
        """Where a torn record begins, once the records before it were read."""

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)

    def records(self) -> Iterator[Record]:
        """Yield the records, in order, until the end or a torn one. Gradients are not verified yet.

        Raises:
            CorruptSnapshotError: a record is damaged.
        """
        position, size = len(MAGIC), self.status.st_size
        magic = self._read(0, len(MAGIC))
        self._is_old = magic == OLD_MAGIC
        if magic not in (MAGIC, OLD_MAGIC):
            self._tear_or_raise(0, len(MAGIC), "it does not begin as a segment of this release")
            return
        while position < size:
            record = self._record(position)
            if record is None:
                return
            yield record
            position = record.end

    def gradient(self, record: Record, target: Flat) -> bool:
        """Read the gradient of the last record that was yielded; return False if it is torn.

        Args:
            record: the record.
            target: gets the gradient; of its size.

        Raises:
            CorruptSnapshotError: it is damaged.
        """
        position, digest = record.gradient_at, xxhash.xxh3_64()
        raw = target.view(np.uint8)
        for start in range(0, len(raw), _PIECE_BYTES):
            piece = raw[start : start + _PIECE_BYTES].data
            done = 0
            while done < len(piece):
                count = os.preadv(self._descriptor, [piece[done:]], position + start + done)
                if not count:
                    break
                done += count
            digest.update(piece)
        if len(raw) == record.gradient_bytes and digest.intdigest() == record.gradient_xxh3:
            self._check_sealed(record, raw)
            return True
        self._tear_or_raise(record.begin, record.end, "a gradient's checksum is wrong")
        return False

    def _check_sealed(self, record: Record, raw: Flat) -> None:
        """Check a gradient against its record's seal.

        Raises:
            CorruptSnapshotError: someone without the key changed it.
        """
        if record.gradient_sha256 and hashlib.sha256(raw.data).digest() != record.gradient_sha256:
            raise CorruptSnapshotError(
                f"{str(self.path)!r}, offset {record.begin}: the gradient was changed by someone without the key. "
                "Put the file back from a backup"
            )

    def is_filled(self, record: Record) -> bool:
        """Return whether the bytes around a record's gradient are as written. No checksum has them; they are unused."""
        fill = b"\0" if self._is_old else FILL
        before = record.begin + HEAD_BYTES + record.seal_bytes + len(record.event), record.gradient_at
        after = record.gradient_at + record.gradient_bytes, record.end
        return all(self._read(begin, end - begin) == fill * (end - begin) for begin, end in (before, after))

    def cut(self, size: int) -> None:
        """Cut the file off at a torn record, and wait until that is on disk.

        Raises:
            OSError: it cannot be changed.
        """
        os.ftruncate(self._descriptor, size)
        sync(self._descriptor, self.path)

    def _record(self, position: int) -> Record | None:
        """Return the record at a position; None if it is torn."""
        found = self._head(position)
        if found is None:
            self._tear_or_raise(position, position + HEAD_BYTES, "the head of a record is invalid")
            return None
        event_bytes, gradient_bytes, synced, event_xxh3, gradient_xxh3 = found
        alignment = SMALL_ALIGNMENT if self._is_old else alignment_of(gradient_bytes)
        gradient_at, end = places(position, event_bytes, gradient_bytes, alignment)
        if gradient_at > self.status.st_size:
            self._tear_or_raise(position, end, "a record goes beyond the end")
            return None
        event = self._read(position + HEAD_BYTES, event_bytes)
        if xxhash.xxh3_64_intdigest(event) != event_xxh3:
            self._tear_or_raise(position, end, "an event's checksum is wrong")
            return None
        if end > self.status.st_size:
            self._tear_or_raise(position, end, "a record goes beyond the end")
            return None
        return Record(event, gradient_bytes, gradient_at, gradient_xxh3, synced, position, end)

    def _head(self, position: int) -> tuple[int, int, int, int, int] | None:
        """Return the fields of a valid head at a position."""
        raw = self._read(position, HEAD_BYTES)
        if len(raw) < HEAD_BYTES:
            return None
        mark, *fields = FIELDS.unpack_from(raw)
        (check,) = CHECK.unpack_from(raw, FIELDS.size)
        if mark != MARK or check != _check(raw[: FIELDS.size], position):
            return None
        return tuple(fields)

    def _tear_or_raise(self, begin: int, end: int, what: str) -> None:
        """Note that the record is torn, or raise that it is damaged."""
        if not self._is_torn(begin, end) or self._synced_after(begin) > begin:
            raise CorruptSnapshotError(
                f"{str(self.path)!r} is damaged at offset {begin}: {what}. Put the file back from a backup. To go back "
                f"to what is before it, and lose the rest, cut it off: truncate -s {begin} {self.path}"
            )
        self.torn_at = begin

    def _is_torn(self, begin: int, end: int) -> bool:
        """Return whether a record is cut short, or one of its sectors is zero."""
        if end > self.status.st_size:
            return True
        first = begin - begin % SECTOR
        for start in range(first, end, SECTOR):
            low, high = max(start, begin), min(start + SECTOR, end)
            if not any(self._read(low, high - low)):
                return True
        return False

    def _synced_after(self, begin: int) -> int:
        """Return how much of the segment was on disk, as the valid heads after a position say."""
        most, position, overlap = 0, begin + 1, len(MARK) - 1
        while position < self.status.st_size:
            piece = self._read(position, _PIECE_BYTES)
            place = piece.find(MARK)
            while place >= 0:
                if (head := self._head(position + place)) is not None:
                    most = max(most, head[2])
                place = piece.find(MARK, place + 1)
            position += max(1, len(piece) - overlap)
        return most

    def _read(self, position: int, size: int) -> bytes:
        """Return bytes from a position, fewer at the end of the file."""
        parts = []
        while size and (part := os.pread(self._descriptor, size, position)):
            parts.append(part)
            position += len(part)
            size -= len(part)
        return b"".join(parts)


def _check(fields: bytes, position: int) -> int:
    """Return the checksum of a head, which is valid at one position only."""
    return xxhash.xxh3_64_intdigest(fields + CHECK.pack(position))
