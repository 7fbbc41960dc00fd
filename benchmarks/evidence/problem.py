"""What is trained: parameters as NumPy arrays, and a gradient at each step. May import NumPy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from benchmarks.workload import Array


class Losses(NamedTuple):
    """Mean cross-entropies after training, in nats."""

    training: float
    """Over what was trained on."""

    held_out: float
    """Over what was not."""


class Problem(Protocol):
    """One seed of something that is trained. Batches depend on the seed and the step alone."""

    params: list[Array]
    """Where training begins; float32."""

    weight_decay: float
    """Decoupled."""

    def gradients(self, params: Sequence[Array], step: int) -> list[Array]:
        """Return the gradient at `params` over the batch of a step, 0 for the first."""

    def losses(self, params: Sequence[Array]) -> Losses:
        """Return the losses at `params`."""
