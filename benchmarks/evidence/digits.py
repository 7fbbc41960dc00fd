"""The demonstration's network on the handwritten digits that scikit-learn ships. May import NumPy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from benchmarks.case import MissingError
from benchmarks.evidence.problem import Losses
from benchmarks.workload import Array
from numba_adam.demo import digits, network

BATCH = 64


class Digits:
    """One seed."""

    weight_decay = 0.0

    def __init__(self, seed: int) -> None:
        """Make a network of random weights.

        Raises:
            MissingError: scikit-learn is not installed.
        """
        try:
            self._training, self._test = digits.load()
        except ModuleNotFoundError as error:
            raise MissingError(f"{error.name} is not installed") from error
        self._seed = seed
        initial = network.initial_params(seed)
        self._names = list(initial)
        self.params: list[Array] = list(initial.values())

    def gradients(self, params: Sequence[Array], step: int) -> list[Array]:
        """Return the gradient over the batch of a step."""
        batch = self._training.batch(BATCH, np.random.default_rng([self._seed, step]))
        by_name = network.loss_and_gradients(self._named(params), batch)[1]
        return [by_name[name] for name in self._names]

    def losses(self, params: Sequence[Array]) -> Losses:
        """Return the losses over all training images and all test images."""
        named = self._named(params)
        return Losses(*(network.loss_and_gradients(named, images)[0] for images in (self._training, self._test)))

    def _named(self, params: Sequence[Array]) -> network.Params:
        return dict(zip(self._names, params, strict=True))
