"""The update in slices of arrays in mixed formats, and its form that survives the death of its process. Imports Numba.

The protocol is that of `staged`: a block's new state is made in a staging, a word says that it is complete, it is
copied into place, and the word says that too. Here a block is a part of one array that begins at a multiple of a
block's size, because the scales of moments in 8 bits, and the random numbers of the rounding, belong to places in an
array. A block's state is copied into the staging first, and updated there by the functions that update arrays in place.

The arrays with a gradient are one range of elements, which is divided into chunks. A word holds the number of the
update, and how many blocks of its chunk are in place:

    number * STATES + 2 * k        the first k blocks are in place
    number * STATES + 2 * k + 1    and the staging of the next block is complete
    number * STATES + DONE         all blocks are in place

Without a staging, blocks are as large as they can be, and are updated in place.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from numba_adam.cpu.kernels.compile import inline, kernel, merged, noalias
from numba_adam.cpu.kernels.constants import constants_of
from numba_adam.cpu.kernels.eight_bit import blocks_of
from numba_adam.cpu.kernels.formats import Operand, bytes_of
from numba_adam.cpu.kernels.intrinsics import array_at, buffer, enter_ieee, leave_ieee
from numba_adam.cpu.kernels.launch_plan import (
    COLUMNS,
    EMA,
    EXP_AVG,
    EXP_AVG_SQ,
    MAX_EXP_AVG_SQ,
    PARAM,
    SCALE,
    unpack,
)
from numba_adam.cpu.kernels.mixed_formats import update_fast, update_float64_tiles, update_tiles
from numba_adam.cpu.kernels.search import count_below
from numba_adam.cpu.kernels.staged import store_word
from numba_adam.cpu.kernels.tiles import SCRATCH, Operands, operands_of
from numba_adam.numerics.eight_bit import BLOCK
from numba_adam.numerics.formats import EIGHT_BIT

STATES = 1 << 20  # more than a chunk goes through in one update
DONE = STATES - 2
NUMBER, WORDS, STAGING, STAGING_BYTES, CHUNK_ELEMENTS, BLOCK_ELEMENTS, FIRST, STOP, STEPS, OFFSETS = range(10)
"""Entries of a job, uint64: the number of the update; the addresses of the words and of the stagings (0: the update is
in place); the bytes of a chunk's staging; the elements of a chunk and of a block; the first chunk; the one after the
last; the address of the updates made so far, (n,) int64. Then, for each column of `LaunchPlan.addresses`, where it
begins in a staging, in bytes."""
JOB = OFFSETS + COLUMNS
_SCALE_BYTES = np.uint64(4)
_BYTES = np.empty(0, np.uint8)


@noalias
def _copy(source, target):  # type: ignore[no-untyped-def]
    """Copy an array's elements."""
    for i in range(source.size):
        target[i] = source[i]


@inline
def _begin_of(plan, count, block, element):  # type: ignore[no-untyped-def]
    """Return where the block begins that has an element, both counted over the arrays with a gradient."""
    offsets = plan.offsets
    if element >= offsets[count]:
        return offsets[count]
    first = offsets[count_below(offsets, count + 1, element + 1) - 1]
    return first + (element - first) // block * block


@inline
def _staged(operand, staging, job, column, begin):  # type: ignore[no-untyped-def]
    """Return an operand whose block at element `begin` is in a staging."""
    if operand.address == 0:
        return operand
    address = staging + job[OFFSETS + column] - begin * bytes_of(operand.format)
    scales = staging + job[OFFSETS + column + SCALE] - begin // np.uint64(BLOCK) * _SCALE_BYTES
    return Operand(address, scales, operand.format, operand.is_stochastic, operand.key)


@inline
def _all_staged(o, staging, job, begin, like):  # type: ignore[no-untyped-def]
    """Return the operands of a block whose state is in a staging; that at address 0 is the state in place."""
    if staging == 0:
        return o
    width = np.uint64(like.itemsize)
    return Operands(
        _staged(o.param, staging, job, PARAM, begin),
        o.grad,
        _staged(o.exp_avg, staging, job, EXP_AVG, begin),
        _staged(o.exp_avg_sq, staging, job, EXP_AVG_SQ, begin),
        _staged(o.max_exp_avg_sq, staging, job, MAX_EXP_AVG_SQ, begin),
        o.ema if o.ema == 0 else staging + job[OFFSETS + EMA] - begin * width,
        o.copy,
        o.is_large,
        o.zero_grad,
        o.scratch,
    )


@inline
def _copy_bytes(place, staged, size, is_back):  # type: ignore[no-untyped-def]
    """Copy bytes from a place into a staging, or back."""
    if is_back:
        _copy(array_at(staged, size, _BYTES), array_at(place, size, _BYTES))
    else:
        _copy(array_at(place, size, _BYTES), array_at(staged, size, _BYTES))


@inline
def _copy_block(plan, row, job, staging, begin, size, is_back):  # type: ignore[no-untyped-def]
    """Copy the state of a block of one array into a staging, or back."""
    for column in range(EMA + 1):
        address, format_ = plan.addresses[row, column], plan.formats[row, column]
        if address != 0:
            width = np.uint64(plan.constants.itemsize) if column == EMA else bytes_of(format_)
            _copy_bytes(address + begin * width, staging + job[OFFSETS + column], size * width, is_back)
        scales = plan.addresses[row, column + SCALE]
        if address != 0 and format_ == EIGHT_BIT:
            skip = begin // np.uint64(BLOCK) * _SCALE_BYTES
            bytes_ = np.uint64(blocks_of(np.int64(size))) * _SCALE_BYTES
            _copy_bytes(scales + skip, staging + job[OFFSETS + column + SCALE], bytes_, is_back)


def _chunk_updater(update_elements: Any) -> Any:
    """Return a function that updates a chunk, compiled around what it does to elements of one array."""

    @merged
    def update_chunk(plan, job, count, chunk, scratch):  # type: ignore[no-untyped-def]
        """Update one chunk from wherever it is."""
        block, each = np.int64(job[BLOCK_ELEMENTS]), np.int64(job[CHUNK_ELEMENTS])
        begin, end = _begin_of(plan, count, block, chunk * each), _begin_of(plan, count, block, (chunk + 1) * each)
        is_staged, staging = job[STAGING] != 0, np.uint64(0)
        address, first, state = np.uint64(0), job[NUMBER] * np.uint64(STATES), np.uint64(0)
        if is_staged:
            staging = job[STAGING] + np.uint64(chunk) * job[STAGING_BYTES]
            address = job[WORDS] + np.uint64(chunk) * np.uint64(8)
            word = array_at(address, np.uint64(1), plan.grads)[0]
            state = word - first if word > first else np.uint64(0)
            if begin == end:
                store_word(address, first + np.uint64(DONE))
            if state == np.uint64(DONE):
                begin = end
        steps = array_at(job[STEPS], np.uint64(plan.lengths.size), plan.lengths)
        k, done = count_below(plan.offsets, count + 1, begin + 1) - 1, np.uint64(0)
        while begin < end:
            stop = min(plan.offsets[k + 1], end)
            size = min(stop - begin, block) if is_staged else stop - begin
            if size > 0:
                row, here = plan.rows[k], np.uint64(begin - plan.offsets[k])
                if state < done + np.uint64(1):
                    if is_staged:
                        _copy_block(plan, row, job, staging, here, np.uint64(size), False)
                    operands = operands_of(plan, row, steps[row] + 1, np.uint64(scratch.ctypes.data))
                    operands = _all_staged(operands, staging, job, here, plan.constants)
                    c = constants_of(plan.constants[plan.which[k]])
                    update_elements(operands, np.int64(here), size, c, plan.constants)
                    if is_staged:
                        store_word(address, first + done + np.uint64(1))
                done += np.uint64(2)
                if is_staged and state < done:
                    _copy_block(plan, row, job, staging, here, np.uint64(size), True)
                    store_word(address, first + (done if begin + size < end else np.uint64(DONE)))
            begin += size
            if begin == plan.offsets[k + 1]:
                k += 1

    return update_chunk


@merged
def _update_elements(operands, begin, size, c, like):  # type: ignore[no-untyped-def]
    """Update `size` elements of one array, from element `begin` on."""
    done = update_fast(operands, begin, size, c, like)
    update_tiles(operands, begin + done, size - done, c, like)


@merged
def _update_float64_elements(operands, begin, size, c, like):  # type: ignore[no-untyped-def]
    """The same for what is computed in float64."""
    update_float64_tiles(operands, begin, size, c, like)


_update_chunk, _update_float64_chunk = _chunk_updater(_update_elements), _chunk_updater(_update_float64_elements)


@inline
def _cut(job, task, tasks):  # type: ignore[no-untyped-def]
    """Return the chunk at which a task begins."""
    first = np.int64(job[FIRST])
    return first + (np.int64(job[STOP]) - first) * task // tasks


@kernel
def update_formats(packed, like, job, count, task, tasks):  # type: ignore[no-untyped-def]
    """Update one share of the chunks of a job that is computed in float32; see `threads.launch` for the arguments.

    Args:
        packed: from `launch_plan.pack`.
        like: any array of the compute dtype.
        job: (JOB,) uint64, see NUMBER.
        count: number of arrays that have a gradient.
        task: which share.
        tasks: number of shares.
    """
    plan = unpack(packed, like)
    if task < tasks:
        scratch = buffer(SCRATCH, plan.constants)
        environment = enter_ieee()
        for chunk in range(_cut(job, task, tasks), _cut(job, task + 1, tasks)):
            _update_chunk(plan, job, count, chunk, scratch)
        leave_ieee(environment)


@kernel
def update_formats_float64(packed, like, job, count, task, tasks):  # type: ignore[no-untyped-def]
    """The same for a job that is computed in float64."""
    plan = unpack(packed, like)
    if task < tasks:
        scratch = buffer(SCRATCH, plan.constants)
        environment = enter_ieee()
        for chunk in range(_cut(job, task, tasks), _cut(job, task + 1, tasks)):
            _update_float64_chunk(plan, job, count, chunk, scratch)
        leave_ieee(environment)
