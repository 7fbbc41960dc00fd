"""Entry points: one array, or many arrays in one launch; and how threads share an array's elements.

`update`, `eight_bit` and `accumulate` pass in what updates an element or a thread's share of an array.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from numba_adam.cuda import seam
from numba_adam.cuda.kernels import access, formats
from numba_adam.cuda.kernels.columns import columns
from numba_adam.cuda.kernels.layout import CHUNK, CONSTANTS, KEYS_BYTES, Addresses, Keys, Lanes, Layout
from numba_adam.numerics.constants import Constants

cuda = seam.cuda
_within = seam.within
_load_int64 = access.scalar("int64")[0]
_load_uint32 = access.scalar("uint32")[0]


class Kernels(NamedTuple):
    """The kernels for arrays of a layout; each is compiled at its first launch."""

    flat: Any  # one array
    table: Any  # many


def _registers(layout: Layout) -> Any:
    lanes, real = formats.LANES[layout.real], getattr(np, layout.real)

    @seam.device
    def registers():  # type: ignore[no-untyped-def]
        """Return registers for a group: numbers, and codes."""
        reals = Lanes(
            _within.local.array(lanes, real),
            _within.local.array(lanes, real),
            _within.local.array(lanes, real),
            _within.local.array(lanes, real),
            _within.local.array(lanes, real),
            _within.local.array(lanes, real),
            _within.local.array(1, real),
        )
        codes = Lanes(
            _within.local.array(lanes, np.uint16),
            _within.local.array(lanes, np.uint16),
            _within.local.array(lanes, np.uint16),
            _within.local.array(lanes, np.uint16),
            _within.local.array(lanes, np.uint16),
            _within.local.array(lanes, np.uint16),
            _within.local.array(lanes, np.uint16),
        )
        return reals, codes

    return registers


def _constants_at(layout: Layout) -> Any:
    load, item_bytes = access.scalar(layout.real)[0], np.dtype(layout.real).itemsize
    zero = getattr(np, layout.real)(0)

    @seam.device
    def constants_at(address):  # type: ignore[no-untyped-def]
        """Return the constants at an address. All threads of a block load the same ones, so each is read once."""
        return Constants(
            load(address),
            load(address + item_bytes),
            load(address + item_bytes * 2),
            load(address + item_bytes * 3),
            load(address + item_bytes * 4),
            load(address + item_bytes * 5),
            load(address + item_bytes * 6),
            load(address + item_bytes * 7),
            load(address + item_bytes * 8),
            load(address + item_bytes * 9),
            load(address + item_bytes * 10),
            load(address + item_bytes * 11),
            load(address + item_bytes * 12),
            load(address + item_bytes * 13),
            load(address + item_bytes * 14),
            zero,
        )

    return constants_at


@seam.device
def _keys_at(address):  # type: ignore[no-untyped-def]
    """Return the keys at an address; the compiler removes the loads of those that a layout does not use."""
    return Keys(
        _load_uint32(address),
        _load_uint32(address + 4),
        _load_uint32(address + 8),
        _load_uint32(address + 12),
        _load_uint32(address + 16),
        _load_uint32(address + 20),
    )


def group(layout: Layout, update_lane: Any) -> Any:
    """Return the compiled function that updates a group of elements, given the one that updates an element."""
    move, lanes = columns(layout), formats.LANES[layout.real]
    load_group, load_element, store_group, store_element, decode, encode, _ = move

    @seam.device
    def update_group(addresses, index, bounds, is_wide, work):  # type: ignore[no-untyped-def]
        """Update the group with element `index` as first lane; unless `is_wide`, only elements within the bounds."""
        reals, codes, c, keys = work
        begin, end = bounds
        if is_wide:
            load_group(addresses, index, reals, codes)
        else:
            for k in range(lanes):
                if begin <= index + k < end:
                    load_element(addresses, index + k, k, reals, codes)
        decode(reals, codes)
        for k in range(lanes):
            if is_wide or begin <= index + k < end:
                update_lane(reals, k, c)
        encode(reals, codes, keys, index)
        if is_wide:
            store_group(addresses, index, reals, codes)
        else:
            for k in range(lanes):
                if begin <= index + k < end:
                    store_element(addresses, index + k, k, reals, codes)

    return update_group


def span(layout: Layout, update_lane: Any) -> Any:
    """Return the compiled function that updates a thread's share of an array, given the one for an element."""
    update_group, first_group, lanes = (
        group(layout, update_lane),
        columns(layout).first_group,
        formats.LANES[layout.real],
    )

    @seam.device
    def update_span(addresses, begin, end, thread, threads, work):  # type: ignore[no-untyped-def]
        """Update one thread's share of the elements from `begin` to `end`, which `threads` threads divide."""
        first = first_group(addresses, begin)
        is_aligned = first >= 0
        first = first if is_aligned else begin
        if first > begin:
            first -= lanes  # the first group is not whole: only its last lanes are within the bounds
        bounds = (begin, end)
        for index in range(first + thread * lanes, end, threads * lanes):
            is_wide = is_aligned and begin <= index and index + lanes <= end
            update_group(addresses, index, bounds, is_wide, work)

    return update_span


def flat(layout: Layout, update_span: Any) -> Any:
    """Return the entry point for one array, given the function that updates a thread's share."""
    registers, constants_at = _registers(layout), _constants_at(layout)

    def update_flat(given, count, constants, keys, skip):  # type: ignore[no-untyped-def]
        """Update one array.

        Args:
            given: the addresses of its columns, in the order of Addresses; 0 for a column that the layout lacks.
            count: number of elements.
            constants: the address of a row of CONSTANTS: the folded constants.
            keys: the address of a row of KEYS uint32: the keys of the random numbers.
            skip: the address of an int64 that is not 0 when the step must be left out.
        """
        if _load_int64(skip) != 0:
            return
        reals, codes = registers()
        addresses = Addresses(
            given[0],
            given[1],
            given[2],
            given[3],
            given[4],
            given[5],
            given[6],
            given[7],
            given[8],
            given[9],
        )
        work = (reals, codes, constants_at(constants), _keys_at(keys))
        threads = np.int64(cuda.gridDim.x) * np.int64(cuda.blockDim.x)
        thread = np.int64(cuda.blockIdx.x) * np.int64(cuda.blockDim.x) + np.int64(cuda.threadIdx.x)
        update_span(addresses, np.int64(0), count, thread, threads, work)

    return update_flat


def table(layout: Layout, update_span: Any) -> Any:
    """Return the entry point for many arrays, given what updates a thread's share of one."""
    registers, constants_at, item_bytes = _registers(layout), _constants_at(layout), np.dtype(layout.real).itemsize

    def update_table(given, lengths, count, chunks, chunk_count, constants, keys, skip):  # type: ignore[no-untyped-def]
        """Update many arrays, a chunk at a time.

        Args:
            given: the address of (COLUMNS, count) int64: the addresses of every array's columns, in the order of
                Addresses; an array whose gradient's address is 0 is left out.
            lengths: the address of (count,) int64: numbers of elements.
            count: how many arrays there are.
            chunks: the address of (chunk_count, 2) int64: an array, and the chunk's first element.
            chunk_count: how many chunks there are.
            constants: the address of the folded constants, a row of CONSTANTS for each array.
            keys: the address of the keys of the random numbers, a row of KEYS uint32 for each array.
            skip: the address of an int64 that is not 0 when the step must be left out.
        """
        if _load_int64(skip) != 0:
            return
        reals, codes = registers()
        column = count * 8
        for chunk in range(np.int64(cuda.blockIdx.x), chunk_count, np.int64(cuda.gridDim.x)):
            row, begin = _load_int64(chunks + chunk * 16), _load_int64(chunks + chunk * 16 + 8)
            entry = given + row * 8
            addresses = Addresses(
                _load_int64(entry),
                _load_int64(entry + column),
                _load_int64(entry + column * 2),
                _load_int64(entry + column * 3),
                _load_int64(entry + column * 4),
                _load_int64(entry + column * 5),
                _load_int64(entry + column * 6),
                _load_int64(entry + column * 7),
                _load_int64(entry + column * 8),
                _load_int64(entry + column * 9),
            )
            if addresses.grad != 0:
                end = min(begin + CHUNK, _load_int64(lengths + row * 8))
                c = constants_at(constants + row * (CONSTANTS * item_bytes))
                work = (reals, codes, c, _keys_at(keys + row * KEYS_BYTES))
                update_span(addresses, begin, end, np.int64(cuda.threadIdx.x), np.int64(cuda.blockDim.x), work)

    return update_table


# The types of the entry points' arguments, for compilation without a launch.
FLAT_ARGUMENTS = ("10 int64", "int64", "int64", "int64", "int64")
TABLE_ARGUMENTS = ("int64",) * 8
