"""The arrays of a model: names, shapes, and limits on their number and size. Imports the error tree."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from numba_adam.errors import InvalidRequestError

MOST_ARRAYS = 1 << 16
"""Largest number of arrays of one model."""

_MOST_DIMENSIONS = 32
_LONGEST_TENSOR_NAME = 256
_LONGEST_NAMES = 6 << 20  # characters of all names together in JSON; they must fit a snapshot's header
_MOST_BYTES = 1 << 62  # of one array: sizes and offsets fit a signed 64-bit number


class Tensor(NamedTuple):
    """One array of a model."""

    name: str
    """Unique within the model."""

    shape: tuple[int, ...]
    """Extents in C order."""

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


class Described(Protocol):
    """An array as a caller describes it, not checked yet."""

    @property
    def name(self) -> str:
        """Its name."""

    @property
    def shape(self) -> Sequence[int]:
        """Its extents."""


def check_count(arrays: Sequence[Described], others: int = 0) -> None:
    """Refuse descriptions that no model can have, before they are converted.

    Args:
        arrays: the descriptions.
        others: number of further arrays that are named.

    Raises:
        InvalidRequestError: they are too many, or one of them has too many dimensions.
    """
    if len(arrays) + others > MOST_ARRAYS:
        raise InvalidRequestError(f"{len(arrays) + others} arrays are named: a model has at most {MOST_ARRAYS}")
    for array in arrays:
        if len(array.shape) > _MOST_DIMENSIONS:
            raise InvalidRequestError(
                f"array {array.name[:300]!r} has {len(array.shape)} dimensions: at most {_MOST_DIMENSIONS} are allowed"
            )


def to_tensors(arrays: Sequence[Described]) -> list[Tensor]:
    """Return descriptions as plain values."""
    return [Tensor(array.name, tuple(array.shape)) for array in arrays]


def check_tensors(arrays: Sequence[Described], itemsize: int) -> tuple[Tensor, ...]:
    """Return the arrays of a new model.

    Args:
        arrays: their descriptions.
        itemsize: size of an element in bytes.

    Raises:
        InvalidRequestError: there are none, too many or too large ones, or their names cannot be used.
    """
    check_count(arrays)
    tensors = tuple(to_tensors(arrays))
    if not tensors:
        raise InvalidRequestError("tensors is empty: a model has at least one array")
    if len(json.dumps([tensor.name for tensor in tensors])) > _LONGEST_NAMES:
        raise InvalidRequestError(f"the arrays' names take more than {_LONGEST_NAMES} characters: use shorter ones")
    names: set[str] = set()
    for tensor in tensors:
        if not 1 <= len(tensor.name) <= _LONGEST_TENSOR_NAME or not tensor.name.isprintable():
            raise InvalidRequestError(
                f"array name {tensor.name[:300]!r}: it must be 1 to {_LONGEST_TENSOR_NAME} printable characters"
            )
        if tensor.name in names:
            raise InvalidRequestError(f"array name {tensor.name!r} is given twice: names must differ")
        names.add(tensor.name)
    if sum(tensor.size for tensor in tensors) * itemsize >= _MOST_BYTES or any(
        extent >= _MOST_BYTES for tensor in tensors for extent in tensor.shape
    ):
        raise InvalidRequestError("the arrays together are larger than 2**62 bytes; use smaller arrays")
    return tensors
