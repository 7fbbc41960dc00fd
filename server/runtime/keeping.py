"""What a model needs of whatever keeps what it acknowledges. Imports the events and the budget."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

from numba_adam.server.model.arena import FlatArray
from numba_adam.server.model.events import Acceptance, Event
from numba_adam.server.runtime.budget import Bytes

PENDING = 0
"""The number of the gradient that is in the arena. Others have memory of their own."""


class Keeping(ABC):
    """Keeps what one model acknowledges."""

    @abstractmethod
    def note(self, event: Event, gradient: FlatArray | None = None) -> None:
        """Write an event that is about to happen, and the gradient of its update. Runs in the apply queue.

        Raises:
            ServerUnavailableError: it cannot be written, and must not happen.
        """

    @contextmanager
    def noting(self, event: Acceptance, gradient: FlatArray, checksum: int | None = None) -> Iterator[None]:  # noqa: ARG002
        """Note a push; its update runs in the body, and may run while the push is written. Both are done at the end.

        Args:
            event: the push.
            gradient: its gradient.
            checksum: the gradient's XXH3 checksum, if it is known.

        Raises:
            ServiceError: it cannot be written. Before the body: it must not happen. After: the model is broken.
        """
        self.note(event, gradient)
        yield

    @abstractmethod
    def gradient(self, what: str) -> AbstractContextManager[tuple[int, Bytes]]:
        """Yield the number and the memory of a gradient.

        Raises:
            BudgetExceededError: there is no memory for it.
        """

    @abstractmethod
    def close(self, *, remove: bool) -> None:
        """Close the files; remove them, if nothing in them is needed any more."""

    def check_room(self, nbytes: int) -> None:  # noqa: B027 - not every level needs it
        """Refuse a push of that size early, if it could not be kept.

        Raises:
            DiskFullError: there is no room for it.
        """

    @property
    def wants_snapshot(self) -> bool:
        """Whether a snapshot should be written soon."""
        return False

    def settle(self) -> None:  # noqa: B027 - not every level needs it
        """Wait until all that was noted before is kept. Only then may anybody learn of it.

        Raises:
            ServiceError: it may not be kept.
        """

    def settled_version(self, version: int) -> int:
        """Return the newest version that is kept; `version`: that of the model."""
        return version

    def prepare_snapshot(self) -> None:  # noqa: B027 - not every level needs it
        """Prepare for a snapshot. Runs before the model's state is copied, outside its apply queue.

        Raises:
            OSError: it cannot be prepared.
        """

    def begin_snapshot(self) -> None:  # noqa: B027 - not every level needs it
        """Note that the model's state is copied now. Runs in the apply queue.

        Raises:
            OSError: it cannot be noted.
        """

    def end_snapshot(self) -> None:  # noqa: B027 - not every level needs it
        """Note that the snapshot that was begun is on disk."""
