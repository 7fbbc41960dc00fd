"""The open round of a model of the mode "sync": the pushes that it holds. Imports the keys of pushes.

Round r makes version r of the model. It takes gradients that were computed from version r - 1, one of each worker. So
the base version of a push says which round it is for: there is no other number of a round. A round that is aborted
leaves the version as it is, and the next pushes begin it once more.

Deterministic like the ledger, which it is a part of. It is not in the ledger's record: what it holds was not
acknowledged, and a journal has it as events.
"""

from __future__ import annotations

from typing import NamedTuple

from numba_adam.server.model.push_key import Content, PushKey


class Held(NamedTuple):
    """There is no answer yet: the push waits in its round."""

    round: int
    """The round, which is also the version that it makes."""


class HeldPush(NamedTuple):
    """A push in the open round."""

    key: PushKey
    """Identifies it."""

    present: tuple[bool, ...]
    """For each array of the model, whether it has a gradient."""

    content: Content
    """Digests of its content."""

    gradient: int
    """The number of the slot that has the gradient."""


class OpenRound:
    """The pushes that the open round holds, at most one of each worker."""

    def __init__(self) -> None:
        self._held: dict[str, HeldPush] = {}
        self.attempt = 0
        """Number of rounds that were begun so far. A timeout names the one that it belongs to."""

    def __len__(self) -> int:
        return len(self._held)

    def of(self, worker_id: str) -> HeldPush | None:
        """Return the push of a worker, if the round holds one."""
        return self._held.get(worker_id)

    def hold(self, push: HeldPush) -> None:
        """Hold a push."""
        self.attempt += not self._held
        self._held[push.key.worker_id] = push

    def withdraw(self, worker_id: str) -> None:
        """Drop the push of a worker, whose session is over."""
        self._held.pop(worker_id, None)

    def in_order(self) -> list[HeldPush]:
        """Return the pushes in the order of the workers' ids, by code points: the order of the sum."""
        return [self._held[worker_id] for worker_id in sorted(self._held)]

    def take(self) -> list[HeldPush]:
        """End the round; return its pushes in order."""
        pushes = self.in_order()
        self._held.clear()
        return pushes
