"""Memory in which a push is put in order, kept for the next call."""

from __future__ import annotations

import threading

import numpy as np

from numba_adam.numerics.array import Array
from numba_adam.rows.kernels.grouping import ROOM

_MOST_KEPT = 1 << 21  # numbers of 64 bits that a thread keeps: 16 MB
_NONE = np.empty(0, dtype=np.int64)


class _Kept(threading.local):
    free: Array = _NONE


_kept = _Kept()


def take(places: int, parts: int = 1) -> Array:
    """Return room for so many places, in so many parts; nobody else has it until it is given back.

    Fresh memory takes as long as what is done in it.
    """
    room, _kept.free = _kept.free, _NONE
    size = ROOM * places + parts
    return room if size <= room.size else np.empty(size, dtype=np.int64)


def give_back(room: Array) -> None:
    """Keep room for this thread's next call, unless it is large."""
    _kept.free = room if room.size <= _MOST_KEPT else _NONE
