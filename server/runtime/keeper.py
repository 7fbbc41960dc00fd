"""Keeps what a model acknowledged in files that outlive the process, and finds it again after a crash.

The journal begins with the model's records at one moment; then each event of the ledger follows, before it takes
effect. The arrays and the gradient of the last push lie in mapped files. So whatever the process was doing when it
died: the events, replayed, give the ledger, and the update of the last push, finished, gives the arrays.

Imports the journal, the memory folder, the events and the models' arrays.
"""

from __future__ import annotations

import contextlib
import json
import logging
import mmap
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from numba_adam.errors import BudgetExceededError, CorruptSnapshotError, ServerUnavailableError, TransferTooLargeError
from numba_adam.server.model.arena import FlatArray
from numba_adam.server.model.events import Event, decode, encode
from numba_adam.server.model.records import check_keys
from numba_adam.server.runtime.budget import Bytes, SlotPool
from numba_adam.server.runtime.keeping import PENDING, Keeping
from numba_adam.server.storage.journal import Journal, read
from numba_adam.server.storage.memory_folder import ModelMemory

_log = logging.getLogger(__name__)
FORMAT = 1

_LARGEST_JOURNAL_BYTES = 1 << 22  # beyond this, and twice its first record, it is begun anew
_IDLE_FILES = 1  # kept for the next push; fresh memory costs more than the copy into it
_KEYS = ("format", "boot_id", "runs", "model", "ledger")


class Left(NamedTuple):
    """What an earlier process left of a model."""

    boot_id: str
    """The machine's start in which it was written."""

    runs: Sequence[str]
    """The runs of the data folder that it continues."""

    model: Mapping[str, Any]
    """The model's record."""

    ledger: Mapping[str, Any]
    """The ledger's record at the beginning of the journal."""

    records: Sequence[bytes]
    """What happened since."""

    def events(self) -> list[Event]:
        """Return what happened since, in order.

        Raises:
            CorruptSnapshotError: a record is not an event of this release.
        """
        try:
            return [decode(record, self.ledger["state_id"]) for record in self.records]
        except ValueError as error:
            raise CorruptSnapshotError(f"a model's journal: {error}") from error


class Keeper(Keeping):
    """Keeps one model's events and gradients.

    Args:
        memory: the model's files.
        records: returns the records of the model as it is now, which begin a journal.
        nbytes: size of a gradient of all arrays.
        pool: the budget, in which files of gradients count.

    Raises:
        OSError: the journal cannot be written.
    """

    def __init__(
        self, memory: ModelMemory, records: Callable[[], Mapping[str, Any]], nbytes: int, pool: SlotPool
    ) -> None:
        self._memory, self._records, self._nbytes, self._pool = memory, records, nbytes, pool
        self._lock = threading.Lock()
        self._idle: list[tuple[int, Bytes]] = []
        self._last_number = PENDING
        self._journal = self._begin()
        memory.forget_gradients()  # of an earlier process; the journal does not need them any more

    def note(self, event: Event, gradient: FlatArray | None = None) -> None:  # noqa: ARG002 - it has a file
        """Write an event that is about to happen. It will have happened even if the process dies now.

        Raises:
            ServerUnavailableError: it cannot be written, and must not happen.
        """
        try:
            if self._journal.size > max(_LARGEST_JOURNAL_BYTES, 2 * self._first_bytes):
                self.begin_anew()
            self._journal.append(encode(event))
        except OSError as error:
            raise ServerUnavailableError(
                f"{str(self._memory.journal)!r} cannot be written ({error}); nothing was changed, try again when there "
                "is room"
            ) from error

    def begin_anew(self) -> None:
        """Begin a new journal with the model as it is now."""
        old, self._journal = self._journal, self._begin()
        old.close()

    @contextlib.contextmanager
    def gradient(self, what: str) -> Iterator[tuple[int, Bytes]]:
        """Yield the number and the memory of a gradient's file.

        Raises:
            BudgetExceededError: there is no memory for it.
        """
        file = self._take(what)
        try:
            yield file
        finally:
            self._give_back(*file)

    def close(self, *, remove: bool) -> None:
        """Close the files; remove them, if nothing in them is needed any more."""
        self._journal.close()
        if remove:
            self._memory.remove()

    def _begin(self) -> Journal:
        first = json.dumps({"format": FORMAT, **self._records()}, separators=(",", ":")).encode()
        self._first_bytes = len(first)
        return Journal(self._memory.journal, first)

    def _take(self, what: str) -> tuple[int, Bytes]:
        with self._lock:
            if self._idle:
                return self._idle.pop()
            self._last_number += 1
            number = self._last_number
        self._pool.admit(self._nbytes, what)
        try:
            return number, mapped(self._memory.create(_file_of(number), self._nbytes), self._nbytes)
        except TransferTooLargeError as error:  # the room is used by another gradient, which goes
            self._pool.give_back(self._nbytes)
            raise BudgetExceededError(f"{what} has to wait for another one: {error}") from error
        except BaseException:
            self._pool.give_back(self._nbytes)
            raise

    def _give_back(self, number: int, memory: Bytes) -> None:
        with self._lock:
            if len(self._idle) < _IDLE_FILES:
                self._idle.append((number, memory))
                return
        self._memory.forget(_file_of(number))
        self._pool.give_back(self._nbytes)


def left_in(memory: ModelMemory) -> Left:
    """Return what an earlier process left of a model.

    Raises:
        CorruptSnapshotError: its journal is damaged, or of another release.
        OSError: it cannot be read.
    """
    first, *records = read(memory.journal) or [b"{}"]
    try:
        content = json.loads(first)
        known = content.get("format")
    except (ValueError, AttributeError) as error:
        raise CorruptSnapshotError(f"{str(memory.journal)!r}: its first record is damaged ({error})") from error
    if known != FORMAT:
        raise CorruptSnapshotError(
            f"{str(memory.journal)!r} has format {known!r}, and this numba-adam reads {FORMAT}: start the release that "
            "wrote it and stop it, which saves the model"
        )
    check_keys(content, "the first record of a journal", _KEYS, ("held",))
    held = [bytes.fromhex(event) for event in content.get("held", ())]  # of the round that was open when it began
    return Left(content["boot_id"], content["runs"], content["model"], content["ledger"], [*held, *records])


def gradient_in(memory: ModelMemory, number: int, nbytes: int) -> Bytes:
    """Return the memory of a gradient that an earlier process left.

    Raises:
        ValueError, OSError: there is no such file.
    """
    return mapped(memory.open(_file_of(number), nbytes), nbytes)


def mapped(descriptor: int, nbytes: int) -> Bytes:
    """Map a file into memory, and close its descriptor."""
    try:
        if not nbytes:
            return np.empty(0, np.uint8)
        return np.frombuffer(mmap.mmap(descriptor, nbytes, flags=mmap.MAP_SHARED), np.uint8)
    finally:
        os.close(descriptor)


def _file_of(number: int) -> str:
    return f"gradient-{number}"
