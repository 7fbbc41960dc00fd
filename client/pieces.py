"""Bytes to send: memory as it is, and bytes that are made when they are needed. Imports NumPy."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

_NOTHING = memoryview(bytearray())


class Made(Protocol):
    """Bytes that are made when they are needed."""

    @property
    def nbytes(self) -> int:
        """The number of bytes."""

    def write(self, start: int, target: memoryview) -> None:
        """Write the bytes from `start` on into a target, which they fill."""


Piece = memoryview | Made


class Part(NamedTuple):
    """Some of a piece's bytes."""

    piece: Piece
    """The piece."""

    start: int
    """The first of them."""

    nbytes: int
    """How many."""


def bytes_of(array: npt.NDArray[Any]) -> memoryview:
    """Return a C-contiguous array's memory as bytes."""
    return array.data.cast("B") if array.size else _NOTHING  # memoryview cannot cast an empty array


def piece_of(source: npt.NDArray[Any] | Made) -> Piece:
    """Return an array's memory as bytes; what is made as it is."""
    return bytes_of(source) if isinstance(source, np.ndarray) else source


def cut(pieces: Iterable[Piece], most_bytes: int) -> Iterator[list[Part]]:
    """Cut the concatenated pieces into runs of `most_bytes`; the last one may be shorter."""
    run: list[Part] = []
    room = most_bytes
    for piece in pieces:
        start = 0
        while start < piece.nbytes:
            part = Part(piece, start, min(room, piece.nbytes - start))
            run.append(part)
            start += part.nbytes
            room -= part.nbytes
            if not room:
                yield run
                run, room = [], most_bytes
    if run:
        yield run


def whole(pieces: Iterable[Piece]) -> list[Part]:
    """Return the pieces as one run."""
    return [Part(piece, 0, piece.nbytes) for piece in pieces if piece.nbytes]


def views(run: Sequence[Part], scratch: memoryview) -> list[memoryview]:
    """Return a run's bytes: memory as it is, and in the scratch what is made, at its place in the run."""
    found, at = [], 0
    for piece, start, nbytes in run:
        if isinstance(piece, memoryview):
            found.append(piece[start : start + nbytes])
        else:
            found.append(scratch[at : at + nbytes])
            piece.write(start, found[-1])
        at += nbytes
    return found


def write(run: Sequence[Part], target: memoryview) -> int:
    """Copy a run to the beginning of memory; return its size."""
    flat, at = np.frombuffer(target, np.uint8), 0
    for piece, start, nbytes in run:
        if isinstance(piece, memoryview):
            flat[at : at + nbytes] = np.frombuffer(piece[start : start + nbytes], np.uint8)
        else:
            piece.write(start, target[at : at + nbytes])
        at += nbytes
    return at


def is_made(run: Sequence[Part]) -> bool:
    """Return whether something in a run is made when it is needed."""
    return not all(isinstance(part.piece, memoryview) for part in run)
