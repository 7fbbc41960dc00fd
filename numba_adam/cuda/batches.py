"""Groups arrays by layout, and launches one kernel for each group."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from numba_adam.cuda import seam
from numba_adam.cuda.kernels.grid import Kernels
from numba_adam.cuda.kernels.layout import CHUNK, CONSTANTS, KEYS_BYTES, Layout
from numba_adam.cuda.memory import Array, Buffer, buffer_of, stream_of

_BLOCKS_AT_MOST = 2**20


class Batch(NamedTuple):
    """Arrays of one layout, for one launch."""

    layout: Layout
    rows: list[int]
    chunks: Buffer


class Work(NamedTuple):
    """A launch plan: the addresses and sizes that a launch works through."""

    table: Array  # (COLUMNS, arrays) int64: all addresses, in the order of Addresses
    addresses: Buffer  # the same, on the GPU
    sizes: Sequence[int]  # numbers of elements
    lengths: Buffer  # the same, (arrays,) int64 on the GPU
    constants: Buffer  # (arrays, CONSTANTS)
    keys: Buffer  # (arrays, KEYS) uint32
    skip: int  # the address of an int64 that is not 0 when the launch must do nothing


def batches(layouts: Sequence[Layout | None], lengths: Sequence[int], device: int, stream: int) -> list[Batch]:
    """Return the batches to launch, given each array's layout; None skips an array."""
    by_layout: dict[Layout, list[int]] = {}
    for row, layout in enumerate(layouts):
        if layout is not None and lengths[row]:
            by_layout.setdefault(layout, []).append(row)
    return [Batch(layout, rows, pieces(rows, lengths, CHUNK, device, stream)) for layout, rows in by_layout.items()]


def pieces(rows: Sequence[int], lengths: Sequence[int], size: int, device: int, stream: int) -> Buffer:
    """Divide arrays into pieces: return (pieces, 2) int64, an array's index and the piece's first element."""
    found = [(row, begin) for row in rows for begin in range(0, lengths[row], size)]
    return buffer_of(np.array(found, dtype=np.int64).reshape(-1, 2), device, stream)


def launch(kernels: Kernels, batch: Batch, work: Work, stream: int) -> None:
    """Queue kernels on a batch."""
    device, count = work.addresses.device, work.table.shape[1]
    if len(batch.rows) == 1:
        row = batch.rows[0]
        size = work.sizes[row]
        arguments: tuple[Any, ...] = (tuple(int(address) for address in work.table[:, row]), size)
        constants = work.constants.address + CONSTANTS * work.constants.dtype.itemsize * row
        arguments += (constants, work.keys.address + KEYS_BYTES * row, work.skip)
        queue(kernels.flat, math.ceil(size / CHUNK), seam.THREADS, device, stream, *arguments)
        return
    chunks = batch.chunks.shape[0]
    addresses = (work.addresses.address, work.lengths.address, count, batch.chunks.address, chunks)
    arguments = (*addresses, work.constants.address, work.keys.address, work.skip)
    queue(kernels.table, chunks, seam.THREADS, device, stream, *arguments)


def queue(kernel: Any, blocks: int, threads: int, device: int, stream: int, *arguments: Any) -> None:
    """Queue a kernel on a stream."""
    configured = seam.configured(kernel, max(1, min(blocks, _BLOCKS_AT_MOST)), threads, stream_of(stream, device))
    configured(*arguments)
