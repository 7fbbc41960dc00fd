"""Keeps servers away from a data folder while a command reads or changes its files. Imports the error tree."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from numba_adam.errors import ConfigurationError


@contextlib.contextmanager
def unused(folder: Path, otherwise: str, *, is_exclusive: bool) -> Iterator[None]:
    """Hold the lock of a data folder.

    Args:
        folder: the folder.
        otherwise: what else the caller may do, for the message.
        is_exclusive: False: others may read at the same time.

    Raises:
        ConfigurationError: it is not a data folder, or a server uses it.
    """
    try:
        lock = os.open(folder / "lock", (os.O_RDWR if is_exclusive else os.O_RDONLY) | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError as error:
        raise ConfigurationError(
            f"{str(folder)!r} is not a data folder of a server ({error}): name the folder that --data-dir named"
        ) from error
    try:
        fcntl.flock(lock, (fcntl.LOCK_EX if is_exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise ConfigurationError(
            f"{str(folder)!r}: a server uses it and changes its files; stop the server, or {otherwise}"
        ) from error
    finally:
        os.close(lock)
