"""How many calls may wait for something to happen. Imports the error tree."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from numba_adam.errors import BudgetExceededError
from numba_adam.ps.detail import with_detail

_RETRY_MILLISECONDS = 50


class Waiters:
    """Bounds how many calls wait, so that threads remain for those that push.

    Args:
        most: how many.
    """

    def __init__(self, most: int) -> None:
        self.free = most
        """How many more may wait now."""

        self._lock = threading.Lock()

    @contextlib.contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        """Count the body as a call that waits.

        Args:
            what: names what the call waits for, in the message.

        Raises:
            BudgetExceededError: too many wait already.
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
