"""Measures the global norm of a push's gradients as the library does, to clip it: same blocks, same order, same bits.

Imports NumPy, the library's update table and its norm.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from numba_adam.cpu.kernels.norm import measure
from numba_adam.cpu.table import UpdateTable
from numba_adam.interop.arrays import Extents
from numba_adam.numerics.norm import PLAIN_SQUARES, scale_of_squares
from numba_adam.server.model.arena import FlatArray
from numba_adam.settings.hyperparameters import Hyperparameters
from numba_adam.settings.scaling import AS_THEY_ARE, Scaling


class Measuring:
    """Clips the norm of the gradients of a model's arrays. One thread at a time may use it.

    Args:
        params: the parameters, in the order of the sum: group by group.
        order: the place of each in the model.
    """

    def __init__(self, params: Sequence[FlatArray], order: Sequence[int]) -> None:
        # Only the gradients are read. So any arrays of their sizes do as moments.
        self._table = UpdateTable(
            params, params, params, hyperparameters=[Hyperparameters()], extents=Extents((), ()), owners=None
        )
        self._order = list(order)
        self._steps = np.zeros(len(self._order), np.int64)

    def clipped(self, gradients: Sequence[FlatArray | None], scaling: Scaling) -> Scaling:
        """Return the scaling of a step whose norm does not exceed the scaling's `max_norm`.

        Args:
            gradients: one for each of the model's arrays; None: without one.
            scaling: the treatment of the gradients.
        """
        table, ordered = self._table, [gradients[place] for place in self._order]
        self._steps[:] = 0
        plan = table.plan(ordered, self._steps, AS_THEY_ARE)
        total, scale = table.sum_of_squares(plan), PLAIN_SQUARES
        if table.dtype == "float64":
            scale = scale_of_squares(total)
            if scale != PLAIN_SQUARES:  # squares overflow or lose digits: read again
                total = table.look_again(plan, scale)[0]
        _, factor = measure(np.array([total]), scaling.factor, scaling.max_norm, scale)
        return scaling.with_factor(float(factor))
