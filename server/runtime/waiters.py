"""Limits how many calls wait for an event. Imports the error tree."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from numba_adam.errors import BudgetExceededError
from numba_adam.ps.detail import with_detail

_RETRY_MILLISECONDS = 50


class Waiters:
    """Limits how many calls wait, so that threads remain for pushes.

    Args:
        most: the limit.
    """

    def __init__(self, most: int) -> None:
        self.free = most
        """How many more calls may wait now."""

        self._lock = threading.Lock()

    @contextlib.contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        """Count a waiting call during the body.

        Args:
            what: what the call waits for, in error messages.

        Raises:
            BudgetExceededError: too many calls wait already.
        """
        with self._lock:
            has_room = self.free > 0
            self.free -= has_room
        if not has_room:
            error = BudgetExceededError(
                f"{what}: too many calls wait already, for versions and for snapshots; try again later"
            )
            raise with_detail(error, retry_after_milliseconds=_RETRY_MILLISECONDS)
        try:
            yield
        finally:
            with self._lock:
                self.free += 1
