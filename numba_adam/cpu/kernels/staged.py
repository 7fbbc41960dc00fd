"""The update that survives the death of its process at any instruction, in memory that outlives it. Imports Numba.

An update in place cannot be repeated: half of the elements are new already. So the new values of a block go into a
staging first; a word says that the staging is complete; then it is copied into place; the word says that too. Whoever
finds the memory later copies a complete staging once more, which changes nothing, and goes on from there, with the same
function.

A chunk has its own word and its own staging, whichever thread updates it. A word holds the number of the update and how
far the chunk is, so nothing is reset between updates:

    number * STATES + 2 * k        the first k blocks are in place
    number * STATES + 2 * k + 1    and the staging of the next block is complete

A process that dies has executed its instructions in order, up to one of them. So the compiler must not move a load or
store across the store of a word; the CPU may.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from numba_adam.cpu.kernels.compile import array_inlined, inline, inlined, kernel, noalias
from numba_adam.cpu.kernels.constants import constants_of
from numba_adam.cpu.kernels.element import adam, adapt, amsgrad, bare_constants, is_bare, moments
from numba_adam.cpu.kernels.intrinsics import array_at, enter_ieee, leave_ieee
from numba_adam.cpu.kernels.launch_plan import PARAM, unpack
from numba_adam.cpu.kernels.prefetch import STRETCH, prefetch_stretch, prefetched_of
from numba_adam.numerics.staging import BLOCK

STATES = 1 << 10  # more than a chunk goes through in one update
MOST_COLUMNS = 4
NUMBER, WORDS, STAGING, ELEMENTS, CHUNK_ELEMENTS, FIRST, STOP, COLUMNS = range(8)
"""Entries of a job, uint64: the number of the update; the addresses of the words and of the stagings; the elements of a
column; those of a chunk, a multiple of BLOCK; the first chunk; the one after the last; the number of columns. Then the
addresses of the columns: param, exp_avg, exp_avg_sq and max_exp_avg_sq."""
JOB = COLUMNS + 1 + MOST_COLUMNS


@intrinsic
def store_word(typingctx: Any, address: Any, word: Any) -> Any:
    """Store a word after all earlier loads and stores of the program, and before all later ones.

    The empty assembly keeps the compiler from moving anything across it. It is no instruction.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        barrier = ir.InlineAsm(ir.FunctionType(ir.VoidType(), []), "", "~{memory}", side_effect=True)
        builder.call(barrier, [])
        builder.store_atomic(args[1], builder.inttoptr(args[0], ir.IntType(64).as_pointer()), "release", 8)
        builder.call(barrier, [])
        return context.get_dummy_value()

    return types.void(types.uint64, types.uint64), codegen


@inlined
def _adam_one(new, old, grad, i, c):  # type: ignore[no-untyped-def]
    """Put the new values of one element elsewhere; `new` and `old` are (param, exp_avg, exp_avg_sq)."""
    exp_avg, exp_avg_sq = moments(old[0][i], grad[i], old[1][i], old[2][i], c)
    new[1][i], new[2][i] = exp_avg, exp_avg_sq
    new[0][i] = adapt(old[0][i], exp_avg, exp_avg_sq, c)


@noalias
def _adam_bare_into(  # type: ignore[no-untyped-def]
    new_param, new_exp_avg, new_exp_avg_sq, param, grad, exp_avg, exp_avg_sq, prefetched, constants
):
    """Put the new values of one array elsewhere, in a step that `is_bare`; `prefetched` as for `adam_bare`."""
    c = bare_constants(constants)
    new, old = (new_param, new_exp_avg, new_exp_avg_sq), (param, exp_avg, exp_avg_sq)
    rest = np.uint64(prefetched * STRETCH)
    for begin in range(np.uint64(0), rest, np.uint64(STRETCH)):
        prefetch_stretch(param, begin)
        prefetch_stretch(grad, begin)
        prefetch_stretch(exp_avg, begin)
        prefetch_stretch(exp_avg_sq, begin)
        for k in range(STRETCH):
            _adam_one(new, old, grad, begin + np.uint64(k), c)
    for i in range(rest, np.uint64(param.size)):
        _adam_one(new, old, grad, i, c)


@noalias
def _copy(source, target):  # type: ignore[no-untyped-def]
    """Copy an array's elements."""
    for i in range(source.size):
        target[i] = source[i]


@array_inlined
def _staged(job, chunk, column, begin, size, like):  # type: ignore[no-untyped-def]
    """Return `size` elements of one column of a chunk's staging, from element `begin` on."""
    first = (chunk * job[COLUMNS] + np.uint64(column)) * np.uint64(BLOCK) + begin
    return array_at(job[STAGING] + first * np.uint64(like.itemsize), size, like)


@array_inlined
def _placed(job, column, begin, size, like):  # type: ignore[no-untyped-def]
    """Return `size` elements of one column, from element `begin` on."""
    return array_at(job[COLUMNS + 1 + column] + begin * np.uint64(like.itemsize), size, like)


@inline
def _start(plan, job, row):  # type: ignore[no-untyped-def]
    """Return where a plan's array begins in its column, in elements."""
    return (plan.addresses[row][PARAM] - job[COLUMNS + 1]) // np.uint64(plan.constants.itemsize)


@inline
def _update_whole(plan, job, k, chunk, begin, size):  # type: ignore[no-untyped-def]
    """Stage a block that lies in one array, in a step that `is_bare`."""
    like, row = plan.constants, plan.rows[k]
    offset, zero = begin - _start(plan, job, row), np.uint64(0)
    grad = array_at(plan.grads[row] + offset * np.uint64(like.itemsize), size, like)
    _adam_bare_into(
        _staged(job, chunk, 0, zero, size, like),
        _staged(job, chunk, 1, zero, size, like),
        _staged(job, chunk, 2, zero, size, like),
        _placed(job, 0, begin, size, like),
        grad,
        _placed(job, 1, begin, size, like),
        _placed(job, 2, begin, size, like),
        prefetched_of(np.int64(size), np.int64(plan.lengths[row] - offset)),
        constants_of(plan.constants[plan.which[k]]),
    )


@inline
def _update_piece(plan, job, k, chunk, begin, left, right):  # type: ignore[no-untyped-def]
    """Update, in the staging of the block at `begin`, the part of array k from element `left` to `right`."""
    like, row = plan.constants, plan.rows[k]
    skip, size = left - begin, right - left
    grad = array_at(plan.grads[row] + (left - _start(plan, job, row)) * np.uint64(like.itemsize), size, like)
    c = constants_of(plan.constants[plan.which[k]])
    param = _staged(job, chunk, 0, skip, size, like)
    exp_avg = _staged(job, chunk, 1, skip, size, like)
    exp_avg_sq = _staged(job, chunk, 2, skip, size, like)
    if job[COLUMNS] == np.uint64(MOST_COLUMNS):
        amsgrad(param, grad, exp_avg, exp_avg_sq, _staged(job, chunk, 3, skip, size, like), c)
    else:
        adam(param, grad, exp_avg, exp_avg_sq, c)


@inline
def _stage(plan, job, count, k, chunk, begin, size):  # type: ignore[no-untyped-def]
    """Put a block's new values into the chunk's staging; k is the first array that ends after `begin`."""
    like, end = plan.constants, begin + size
    row = plan.rows[min(k, count - 1)]
    start = _start(plan, job, row)
    is_whole = k < count and start <= begin and end <= start + np.uint64(plan.lengths[row])
    if is_whole and job[COLUMNS] < np.uint64(MOST_COLUMNS) and is_bare(constants_of(plan.constants[plan.which[k]])):
        _update_whole(plan, job, k, chunk, begin, size)
        return
    for column in range(job[COLUMNS]):
        _copy(_placed(job, column, begin, size, like), _staged(job, chunk, column, np.uint64(0), size, like))
    while k < count:
        row = plan.rows[k]
        start = _start(plan, job, row)
        if start >= end:
            return
        left, right = max(start, begin), min(start + np.uint64(plan.lengths[row]), end)
        if left < right:
            _update_piece(plan, job, k, chunk, begin, left, right)
        k += 1


@inline
def _update_chunk(plan, job, count, chunk):  # type: ignore[no-untyped-def]
    """Update one chunk from wherever it is."""
    like = plan.constants
    address, first = job[WORDS] + chunk * np.uint64(8), job[NUMBER] * np.uint64(STATES)
    word = array_at(address, 1, plan.grads)[0]
    begin = chunk * job[CHUNK_ELEMENTS]
    end = min(begin + job[CHUNK_ELEMENTS], job[ELEMENTS])
    state = word - first if word > first else np.uint64(0)
    begin += (state >> np.uint64(1)) * np.uint64(BLOCK)
    k = 0
    while begin < end:
        size = min(np.uint64(BLOCK), end - begin)
        if state & np.uint64(1) == np.uint64(0):
            while k < count and _start(plan, job, plan.rows[k]) + np.uint64(plan.lengths[plan.rows[k]]) <= begin:
                k += 1
            _stage(plan, job, count, k, chunk, begin, size)
            state += np.uint64(1)
            store_word(address, first + state)
        for column in range(job[COLUMNS]):
            _copy(_staged(job, chunk, column, np.uint64(0), size, like), _placed(job, column, begin, size, like))
        state += np.uint64(1)
        store_word(address, first + state)
        begin += size


@kernel
def update_staged(packed, like, job, count, task, tasks):  # type: ignore[no-untyped-def]
    """Update one share of the chunks of a job; see `threads.launch` for the arguments.

    Args:
        packed: from `launch_plan.pack`. Its arrays have the compute dtype, and follow each other in the job's columns.
        like: any array of the compute dtype.
        job: (JOB,) uint64, see NUMBER.
        count: number of arrays that have a gradient.
        task: which share.
        tasks: number of shares.
    """
    plan = unpack(packed, like)
    if task < tasks:
        chunks = job[STOP] - job[FIRST]
        environment = enter_ieee()
        for chunk in range(
            job[FIRST] + chunks * np.uint64(task) // np.uint64(tasks),
            job[FIRST] + chunks * np.uint64(task + 1) // np.uint64(tasks),
        ):
            _update_chunk(plan, job, count, chunk)
        leave_ieee(environment)
