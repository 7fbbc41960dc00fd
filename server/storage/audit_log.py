"""The audit log of a data folder: one JSON object a line, readable by the server's user only, rotated by size.

    DIR/audit.jsonl             administrative calls and changes of tokens, newest last; audit.jsonl.1 is older
    DIR/audit-refused.jsonl     administrative calls that a token did not allow

Refused calls have a file of their own, so that whoever may do nothing cannot rotate the others away. Imports its
neighbours.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path

from numba_adam.server.storage.durable import check_file, write_all

_log = logging.getLogger(__name__)
FILE_NAME, REFUSED_NAME = "audit.jsonl", "audit-refused.jsonl"
_LARGEST_BYTES = 4 << 20
_KEPT = 4  # older files
_LONGEST_TEXT = 500


def note(folder: Path, name: str, record: Mapping[str, str | int], largest_bytes: int = _LARGEST_BYTES) -> None:
    """Append a record, with the time. A record that cannot be written is logged: it does not stop the call.

    Args:
        folder: the data folder.
        name: of the file.
        record: what happened.
        largest_bytes: size from which on the file is rotated.
    """
    short = {key: value[:_LONGEST_TEXT] if isinstance(value, str) else value for key, value in record.items()}
    line = json.dumps({"when": datetime.now(UTC).isoformat(timespec="milliseconds"), **short}) + "\n"
    try:
        check_file(folder / name)
        with _locked(folder, name):
            _rotate(folder / name, largest_bytes - len(line))
            _append(folder / name, line)
    except (OSError, ValueError) as error:
        _log.error("the audit log cannot be written (%s): %s", error, line.rstrip())


def _append(path: Path, line: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        os.fchmod(descriptor, 0o600)
        write_all(descriptor, line.encode())
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _locked(folder: Path, name: str) -> Iterator[None]:
    """Let only one thread of one process at a time write: the server and the commands share the file."""
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    descriptor = os.open(folder / f"{name}.lock", flags, 0o600)
    try:
        os.fchmod(descriptor, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _rotate(path: Path, free_bytes: int) -> None:
    """Rename a file that has no room, and those before it; the oldest ends."""
    with contextlib.suppress(FileNotFoundError):
        if path.stat().st_size <= max(free_bytes, 0):
            return
        for number in range(_KEPT, 0, -1):
            older = path.with_name(f"{path.name}.{number - 1}") if number > 1 else path
            with contextlib.suppress(FileNotFoundError):
                older.replace(path.with_name(f"{path.name}.{number}"))
