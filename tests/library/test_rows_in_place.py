"""The update of rows in place: every width, address and order of rows matches the dense step bit for bit."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

import numba_adam as na
from numba_adam.rows.functional import adam_update_rows
from numba_adam.rows.kernels.in_place import PIECE

WIDTHS = [1, 15, 16, 17, 31, 32, 33, 48, PIECE, PIECE + 16, 2 * PIECE + 5]
OPTIONS = {"lr": 0.03, "weight_decay": 0.1, "eps": 1e-6, "grad_scale": 0.5}
COUNT = 60  # rows of a table
ROWS = {
    "none": [],
    "one": [59],
    "ascending": list(range(0, 60, 2)),
    "descending": list(range(59, -1, -1)),
    "in no order": np.random.default_rng(1).permutation(60).tolist(),
    "some twice": [5, 0, 59, 5, 7, 0, 5, 58],
    "all the same": [31] * 70,
    "neighbours": [3, 3, 4, 4, 5, 5],
}


def make(rng, shape, dtype, offset):
    """Return a random array that begins this many elements after a cache line's start."""
    size = int(np.prod(shape))
    room = np.empty(size + 80, dtype)
    begin = -room.ctypes.data % 64 // room.itemsize + offset
    array = room[begin : begin + size].reshape(shape)
    array[...] = rng.normal(size=shape) ** 2
    return array


def dense_twin(arrays, rows, grads, amsgrad):
    """Return the table after the dense step on the given rows."""
    twins, total = [array.copy() for array in arrays], np.zeros_like(arrays[0])
    for place, row in enumerate(rows):
        total[row] = grads[place] if row not in rows[:place] else total[row] + grads[place]
    largest = {"max_exp_avg_sq": twins[3]} if amsgrad else {}
    na.adam_update(twins[0], total, twins[1], twins[2], 7, **OPTIONS, **largest)
    others = np.setdiff1d(np.arange(COUNT), rows)
    for twin, array in zip(twins, arrays, strict=True):
        twin[others] = array[others]
    return twins


@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize("width", WIDTHS)
def test_any_width_at_any_address_matches_the_dense_step(width, amsgrad, dtype):
    rng = np.random.default_rng(2)
    for offset, rows in zip([0, 1, 3, 4, 7, 11, 15, 0], ROWS.values(), strict=True):
        arrays = [make(rng, (COUNT, width), dtype, offset + k) for k in range(4 if amsgrad else 3)]
        grads = make(rng, (len(rows), width), dtype, 15 - offset)
        expected = dense_twin(arrays, rows, grads, amsgrad)
        largest = {"max_exp_avg_sq": arrays[3]} if amsgrad else {}
        adam_update_rows(arrays[0], np.array(rows, int), grads, *arrays[1:3], 7, **OPTIONS, **largest)
        for array, twin in zip(arrays, expected, strict=True):
            assert array.tobytes() == twin.tobytes()


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("width", [16, 17])
def test_any_order_of_rows_matches_the_dense_step(name, width, dtype):
    rng, rows = np.random.default_rng(3), ROWS[name]
    arrays = [make(rng, (COUNT, width), dtype, 0) for _ in range(3)]
    grads = make(rng, (len(rows), width), dtype, 0)
    expected = dense_twin(arrays, rows, grads, amsgrad=False)
    adam_update_rows(arrays[0], np.array(rows, int), grads, *arrays[1:], 7, **OPTIONS)
    assert [array.tobytes() for array in arrays] == [twin.tobytes() for twin in expected]


def test_non_finite_values_stay_in_their_rows(dtype):
    rng = np.random.default_rng(4)
    arrays = [make(rng, (COUNT, 16), dtype, 0) for _ in range(3)]
    arrays[0][9], arrays[1][11, 3], arrays[2][13] = np.inf, np.nan, 0
    grads = make(rng, (COUNT, 16), dtype, 0)
    grads[20, 5] = np.nan
    rows = np.arange(COUNT)[::-1].copy()
    expected = dense_twin(arrays, rows.tolist(), grads, amsgrad=False)
    adam_update_rows(arrays[0], rows, grads, *arrays[1:], 7, **OPTIONS)
    assert [array.tobytes() for array in arrays] == [twin.tobytes() for twin in expected]
    assert np.flatnonzero(np.isnan(arrays[0]).any(axis=1)).tolist() == [9, 11, 39]


def digest(duplicates):
    """Return a digest of a table after several pushes that use several threads."""
    digests = hashlib.sha256()
    for width in (3, 16, 48, PIECE + 1):
        rng, count = np.random.default_rng(5), 150_000 // width
        arrays = [make(rng, (count, width), "float32", 4) for _ in range(3)]
        for step in range(1, 4):
            rows = rng.permutation(count)
            rows[: int(count * duplicates)] %= max(1, count // 9)
            adam_update_rows(arrays[0], rows, make(rng, (count, width), "float32", 4), *arrays[1:], step, **OPTIONS)
        for array in arrays:
            digests.update(array.tobytes())
    return digests.hexdigest()


THREADS = """
import sys
sys.path[:0] = [{library!r}]
import numba
from test_rows_in_place import digest
for threads in (1, 2, 4):
    numba.set_num_threads(threads)
    print(*[digest(duplicates) for duplicates in (0.0, 0.3, 1.0)])
"""


def test_one_two_and_four_threads_give_the_same_bits(run_python, request):
    program = THREADS.format(library=str(request.path.parent))
    one, *others = run_python(program, NUMBA_NUM_THREADS="4").splitlines()
    assert others == [one, one]
    assert len(set(one.split())) == 3, "duplicates made no difference, and this test saw nothing"
