"""Receives a transfer of values: copies each chunk into memory and checks it while it is in the cache.

Non-finite values are reported only after the checksum is verified, so that a flipped bit is not reported as the
sender's NaN. Imports NumPy, the finite check, the transfer and the error tree.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import numpy.typing as npt

from numba_adam.cpu.kernels.finite import first_beyond
from numba_adam.errors import GradientTooLargeError, NonFiniteError
from numba_adam.ps.transfer import Reader
from numba_adam.server.model.tensors import Tensor


class Receiver(Reader):
    """Receives one transfer of values.

    Args:
        target: one-dimensional bytes to fill, of the declared size.
        dtype: element type of the target, and of the payload unless a subclass converts it.
        tensors: the arrays in the payload, in order; error messages name them.
        checksum_kind: a ChecksumKind of the protocol.
        what: "gradient" or "initial value", for error messages.
        limit: values of this magnitude or more are refused; infinity allows every finite value.
        item_bytes: size of an element in the payload. None: that of `dtype`.
        largest: the model's guard: values of a larger magnitude are refused; infinity: there is none.

    Raises:
        InvalidRequestError: an unknown kind of checksum.
    """

    def __init__(
        self,
        target: npt.NDArray[np.uint8],
        dtype: np.dtype[Any],
        tensors: Sequence[Tensor],
        checksum_kind: int,
        what: str,
        limit: float = math.inf,
        item_bytes: int | None = None,
        largest: float = math.inf,
    ) -> None:
        self._item_bytes = item_bytes or dtype.itemsize
        super().__init__(target.nbytes // dtype.itemsize * self._item_bytes, checksum_kind)
        self._target = target
        self._elements = target.view(dtype)
        self._tensors = tensors
        self._what = what
        self._hard_limit, self._largest = dtype.type(limit), largest
        self._limit = self._hard_limit
        if largest < math.inf:
            self._limit = min(self._hard_limit, _next_above(dtype, largest))
        self._checked_elements = 0
        self._bad_element = -1

    def _take_piece(self, data: memoryview) -> None:
        super()._take_piece(data)
        self._check_finite()

    def finish(self, checksum: int | None) -> None:
        """Check the whole payload against its trailer; raises as Reader.finish does, and then for the first bad value.

        Raises:
            NonFiniteError: it is not finite, or its square overflows.
            GradientTooLargeError: it exceeds the guard.
        """
        super().finish(checksum)
        if self._bad_element >= 0:
            is_only_large = abs(self._elements[self._bad_element]) < self._hard_limit
            raise (GradientTooLargeError if is_only_large else NonFiniteError)(self._describe_bad_element())

    def _put(self, data: memoryview) -> memoryview:
        piece = self._target[self.received_bytes : self.received_bytes + data.nbytes]
        piece[:] = np.frombuffer(data, np.uint8)
        return piece.data

    def _check_finite(self) -> None:
        """Check the complete elements; a chunk may end within one."""
        complete = self.received_bytes // self._item_bytes
        if self._bad_element < 0 and complete > self._checked_elements:
            found = first_beyond(self._elements[self._checked_elements : complete], self._limit)
            if found >= 0:
                self._bad_element = self._checked_elements + found
        self._checked_elements = complete

    def _describe_bad_element(self) -> str:
        ends = list(accumulate(tensor.size for tensor in self._tensors))
        index = bisect_right(ends, self._bad_element)
        tensor = self._tensors[index]
        place = self._bad_element - (ends[index] - tensor.size)
        where = tuple(int(position) for position in np.unravel_index(place, tensor.shape)) if tensor.shape else ()
        value = self._elements[self._bad_element]
        needed = "every value must be finite"
        if abs(value) < self._hard_limit:
            needed = (
                f"the model's guard largest_element={self._largest:g} refuses larger magnitudes; clip the gradients, "
                "or create the model with another guard"
            )
        elif np.isfinite(value):
            needed = (
                f"its square overflows {self._elements.dtype.name}, and the second moment would stay infinite; every "
                f"magnitude must be below {self._hard_limit:.2g}: check the loss, or clip the gradients"
            )
        return (
            f"{self._what} {tensor.name!r} holds {value} at element {place}"
            f"{f' (index {list(where)})' if len(where) > 1 else ''}: {needed}"
        )


def _next_above(dtype: np.dtype[Any], number: float) -> Any:
    """Return the smallest value of a dtype that exceeds a number; infinity if there is none."""
    if number >= np.finfo(dtype).max:
        return dtype.type(math.inf)
    value = dtype.type(number)
    return value if float(value) > number else np.nextafter(value, dtype.type(math.inf))
