"""The columns of a group of neighbouring elements: from memory into a thread's registers, and back.

A thread issues wide loads for all of a group's columns before it waits for any of them. A group that is not whole, or
not aligned to 16 bytes, moves element by element.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np

from numba_adam.cuda import seam
from numba_adam.cuda.kernels import formats
from numba_adam.cuda.kernels.layout import Lanes, Layout


class Columns(NamedTuple):
    """The compiled functions that load and store the columns of a layout."""

    load_group: Any  # (addresses, index, reals, codes): a whole group; element `index` is the first lane's
    load_element: Any  # (addresses, index, k, reals, codes): element `index` into lane k
    store_group: Any  # (addresses, index, reals, codes)
    store_element: Any  # (addresses, index, k, reals, codes)
    decode: Any  # (reals, codes): all lanes
    encode: Any  # (reals, codes, keys, index): all lanes
    first_group: Any  # (addresses, begin): the first element whose group is aligned, -1 without one


@functools.cache
def columns(layout: Layout) -> Columns:
    """Return the functions for the columns of a layout."""
    known = formats.formats(layout.real)
    read = Lanes(*[known[getattr(layout, name)] for name in Lanes._fields])
    if layout.param == "float32":  # copy the parameter as it is stored
        read = read._replace(copy=formats.formats(layout.real, by_way_of_float32=True)[layout.copy])
    written = read if layout.zero_grad else read._replace(grad=known[""])
    return Columns(
        load_group=_load_group(read),
        load_element=_load_element(read),
        store_group=_store_group(written),
        store_element=_store_element(written),
        decode=_decode(read),
        encode=_encode(written),
        first_group=_first_group(read),
    )


def _load_group(columns: Lanes) -> Any:
    param, grad, exp_avg, exp_avg_sq, max_exp_avg_sq, ema, _ = (column.load for column in columns)

    @seam.device
    def load_group(addresses, index, reals, codes):  # type: ignore[no-untyped-def]
        param(addresses.param, index, reals.param, codes.param)
        grad(addresses.grad, index, reals.grad, codes.grad)
        exp_avg(addresses.exp_avg, index, reals.exp_avg, codes.exp_avg)
        exp_avg_sq(addresses.exp_avg_sq, index, reals.exp_avg_sq, codes.exp_avg_sq)
        max_exp_avg_sq(addresses.max_exp_avg_sq, index, reals.max_exp_avg_sq, codes.max_exp_avg_sq)
        ema(addresses.ema, index, reals.ema, codes.ema)

    return load_group


def _load_element(columns: Lanes) -> Any:
    param, grad, exp_avg, exp_avg_sq, max_exp_avg_sq, ema, _ = (column.load_element for column in columns)

    @seam.device
    def load_element(addresses, index, k, reals, codes):  # type: ignore[no-untyped-def]
        param(addresses.param, index, k, reals.param, codes.param)
        grad(addresses.grad, index, k, reals.grad, codes.grad)
        exp_avg(addresses.exp_avg, index, k, reals.exp_avg, codes.exp_avg)
        exp_avg_sq(addresses.exp_avg_sq, index, k, reals.exp_avg_sq, codes.exp_avg_sq)
        max_exp_avg_sq(addresses.max_exp_avg_sq, index, k, reals.max_exp_avg_sq, codes.max_exp_avg_sq)
        ema(addresses.ema, index, k, reals.ema, codes.ema)

    return load_element


def _store_group(columns: Lanes) -> Any:
    param, grad, exp_avg, exp_avg_sq, max_exp_avg_sq, ema, copy = (column.store for column in columns)

    @seam.device
    def store_group(addresses, index, reals, codes):  # type: ignore[no-untyped-def]
        param(addresses.param, index, reals.param, codes.param)
        exp_avg(addresses.exp_avg, index, reals.exp_avg, codes.exp_avg)
        exp_avg_sq(addresses.exp_avg_sq, index, reals.exp_avg_sq, codes.exp_avg_sq)
        max_exp_avg_sq(addresses.max_exp_avg_sq, index, reals.max_exp_avg_sq, codes.max_exp_avg_sq)
        ema(addresses.ema, index, reals.ema, codes.ema)
        copy(addresses.copy, index, reals.param, codes.copy)
        grad(addresses.grad, index, reals.grad, codes.grad)

    return store_group


def _store_element(columns: Lanes) -> Any:
    param, grad, exp_avg, exp_avg_sq, max_exp_avg_sq, ema, copy = (column.store_element for column in columns)

    @seam.device
    def store_element(addresses, index, k, reals, codes):  # type: ignore[no-untyped-def]
        param(addresses.param, index, k, reals.param, codes.param)
        exp_avg(addresses.exp_avg, index, k, reals.exp_avg, codes.exp_avg)
        exp_avg_sq(addresses.exp_avg_sq, index, k, reals.exp_avg_sq, codes.exp_avg_sq)
        max_exp_avg_sq(addresses.max_exp_avg_sq, index, k, reals.max_exp_avg_sq, codes.max_exp_avg_sq)
        ema(addresses.ema, index, k, reals.ema, codes.ema)
        copy(addresses.copy, index, k, reals.param, codes.copy)
        grad(addresses.grad, index, k, reals.grad, codes.grad)

    return store_element


def _decode(columns: Lanes) -> Any:
    param, grad, exp_avg, exp_avg_sq, max_exp_avg_sq, ema, _ = (column.decode for column in columns)

    @seam.device
    def decode(reals, codes):  # type: ignore[no-untyped-def]
        param(reals.param, codes.param)
        grad(reals.grad, codes.grad)
        exp_avg(reals.exp_avg, codes.exp_avg)
        exp_avg_sq(reals.exp_avg_sq, codes.exp_avg_sq)
        max_exp_avg_sq(reals.max_exp_avg_sq, codes.max_exp_avg_sq)
        ema(reals.ema, codes.ema)

    return decode


def _encode(columns: Lanes) -> Any:
    param, grad, exp_avg, exp_avg_sq, max_exp_avg_sq, ema, copy = (column.encode for column in columns)

    @seam.device
    def encode(reals, codes, keys, index):  # type: ignore[no-untyped-def]
        param(reals.param, codes.param, keys.param, index)
        exp_avg(reals.exp_avg, codes.exp_avg, keys.exp_avg, index)
        exp_avg_sq(reals.exp_avg_sq, codes.exp_avg_sq, keys.exp_avg_sq, index)
        max_exp_avg_sq(reals.max_exp_avg_sq, codes.max_exp_avg_sq, keys.max_exp_avg_sq, index)
        ema(reals.ema, codes.ema, keys.param, index)
        copy(reals.param, codes.copy, keys.param, index)
        grad(reals.grad, codes.grad, keys.param, index)

    return encode


def _first_group(columns: Lanes) -> Any:
    param, grad, exp_avg, exp_avg_sq, max_exp_avg_sq, ema, copy = (column.item_bytes for column in columns)

    @seam.device
    def first_group(addresses, begin):  # type: ignore[no-untyped-def]
        """Return the first element from `begin` on, less than LANES away, where every column is aligned to 16 bytes."""
        first = begin + ((-(addresses.param + begin * param)) & 15) // param
        low = (addresses.param + first * param) | (addresses.grad + first * grad)
        low |= (addresses.exp_avg + first * exp_avg) | (addresses.exp_avg_sq + first * exp_avg_sq)
        low |= (addresses.max_exp_avg_sq + first * max_exp_avg_sq) | (addresses.ema + first * ema)
        low |= addresses.copy + first * copy
        return np.int64(-1) if low & 15 else first

    return first_group
