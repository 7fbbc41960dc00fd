"""Definitions that all ways to access a GPU's memory share. Imports nothing of ours."""

from __future__ import annotations

from typing import Any, NamedTuple

WIDE_BYTES = 16  # of one wide load or store; its address is a multiple of it
CODES = ("uint8", "uint16")  # dtypes whose registers hold codes


class Access(NamedTuple):
    """How a thread loads and stores elements of one dtype; its registers are local arrays.

    Elements of 8 and 16 bits go to and from `codes`, an array of uint16. All others go to and from `reals`, an array
    of the compute dtype.
    """

    load: Any  # (address, reals, codes): all lanes, from a multiple of WIDE_BYTES
    store: Any  # (address, reals, codes)
    load_one: Any  # (address, k, reals, codes): lane k
    store_one: Any  # (address, k, reals, codes)
