"""The journal of a model at the level `disk`: segments in the folder of its snapshots, numbered in order.

    DIR/models/NAME/00000007.journal

The first record of a segment says which state it begins with, which runs of the data folder it continues, and which
files it belongs to, so that a copy is recognised. Imports segments, durable files and the check of records.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from numba_adam.errors import CorruptSnapshotError
from numba_adam.server.model.records import check_keys
from numba_adam.server.storage.durable import sync_folder
from numba_adam.server.storage.keys import NO_KEYS, Keys
from numba_adam.server.storage.seal import Seal, new_seal, seal_of
from numba_adam.server.storage.segment import Reader, Record, Writer

FORMAT = 1
_NAME = re.compile(r"([0-9]{8,})\.journal")
_KEYS = ("format", "lock_inode", "inode", "runs", "is_previous_synced", "ledger")
_SEALED_KEYS = ("key_id", "nonce")


class Beginning(NamedTuple):
    """The first record of a segment."""

    runs: Sequence[str]
    """The runs of the data folder that it continues."""

    ledger: Mapping[str, Any]
    """The ledger's record where the segment begins."""

    is_previous_synced: bool
    """Whether the segment before was on disk when this one began."""

    is_original: bool
    """Whether the file is where it was written: no copy, link or part of another data folder."""

    key_id: str = ""
    """Id of the key that its records are sealed with; empty: they have no seal."""


class Segments:
    """The segments of one model.

    Args:
        folder: the folder of its snapshots.
        lock: the lock file of the data folder.
        keys: of the data folder.
        is_kept: True: only to look at them; see Reader.
    """

    def __init__(self, folder: Path, lock: Path, keys: Keys = NO_KEYS, *, is_kept: bool = False) -> None:
        self._folder, self._lock, self._keys, self._is_kept = folder, lock, keys, is_kept

    def paths(self) -> list[Path]:
        """Return the files, the oldest first."""
        found = {int(match.group(1)): path for path in self._folder.iterdir() if (match := _NAME.fullmatch(path.name))}
        return [found[number] for number in sorted(found)]

    def create(self) -> Writer:
        """Create the next segment, and wait until its name is on disk. Nothing else of it is.

        Raises:
            OSError: it cannot be created.
        """
        number = max((int(path.stem) for path in self.paths()), default=0) + 1
        writer = Writer(self._folder / f"{number:08d}.journal")
        try:
            sync_folder(self._folder)
        except BaseException:
            self.discard(writer)
            raise
        return writer

    def begin(
        self, writer: Writer, runs: Sequence[str], ledger: Mapping[str, Any], *, is_previous_synced: bool
    ) -> None:
        """Write the first record of a segment.

        Raises:
            OSError: it was not written.
        """
        seal = new_seal(self._keys)
        writer.seal = seal if seal.key_id else None
        content = {
            **({"key_id": seal.key_id, "nonce": seal.nonce} if seal.key_id else {}),
            "format": FORMAT,
            "lock_inode": self._lock.stat().st_ino,
            "inode": writer.inode,
            "runs": runs,
            "is_previous_synced": is_previous_synced,
            "ledger": ledger,
        }
        writer.append(json.dumps(content, separators=(",", ":")).encode())

    def read(self, path: Path) -> tuple[Beginning | None, Iterator[Record], Reader]:
        """Open a segment; return its first record, the records after it, and the reader, which must be closed.

        Without a first record nothing in the segment was acknowledged.

        Raises:
            CorruptSnapshotError: it is damaged, or of another release.
            SnapshotError: the keys refuse it.
            OSError: it cannot be read.
        """
        reader = Reader(path, is_kept=self._is_kept)
        try:
            records = reader.records()
            first = next(records, None)
            if first is None:
                return None, records, reader
            seal = seal_of(first.event, self._keys, str(path), first.begin)
            beginning = self._beginning(reader, _opened(first, seal, path))
            return beginning, (_opened(record, seal, path) for record in records), reader
        except BaseException:
            reader.__exit__()
            raise

    def discard(self, writer: Writer) -> None:
        """Remove a segment that nobody needs."""
        writer.close()
        writer.path.unlink(missing_ok=True)

    def free_bytes(self) -> int:
        """Return how many bytes the disk has room for."""
        found = os.statvfs(self._folder)
        return found.f_bavail * found.f_frsize

    def remove_before(self, path: Path) -> None:
        """Remove the segments before one."""
        for old in self.paths():
            if int(old.stem) < int(path.stem):
                old.unlink()

    def _beginning(self, reader: Reader, first: Record) -> Beginning:
        try:
            content = json.loads(first.event)
            known = content["format"]
        except (ValueError, KeyError, TypeError) as error:
            raise CorruptSnapshotError(f"{str(reader.path)!r}: its first record is damaged ({error})") from error
        if known != FORMAT:
            raise CorruptSnapshotError(
                f"{str(reader.path)!r} has format {known!r}, and this numba-adam reads {FORMAT}: start the release "
                "that wrote it and stop it, which saves the model"
            )
        check_keys(content, f"the first record of {str(reader.path)!r}", _KEYS, _SEALED_KEYS)
        is_original = self._is_original(content, reader.status)
        values = content["runs"], content["ledger"], content["is_previous_synced"]
        return Beginning(*values, is_original, content.get("key_id", ""))

    def _is_original(self, content: Mapping[str, Any], status: os.stat_result) -> bool:
        """Return whether a segment is the file that was written, in its own data folder."""
        lock = self._lock.stat()
        written = content["lock_inode"], content["inode"]
        return written == (lock.st_ino, status.st_ino) and lock.st_nlink == status.st_nlink == 1


def _opened(record: Record, seal: Seal, path: Path) -> Record:
    """Return a record without its seal.

    Raises:
        CorruptSnapshotError: the seal is missing or wrong.
    """
    event, gradient_sha256 = seal.opened(record.event, record.gradient_bytes, record.begin, str(path))
    seal_bytes = len(record.event) - len(event)
    return record._replace(event=event, seal_bytes=seal_bytes, gradient_sha256=gradient_sha256)


def is_segment(path: os.PathLike[str]) -> bool:
    """Return whether a file has the name of a segment."""
    return _NAME.fullmatch(os.path.basename(path)) is not None
