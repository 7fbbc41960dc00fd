"""Pushes with so many rows that each thread sorts its own: they match the dense step for any distribution."""

from __future__ import annotations

import hashlib

import numba
import numpy as np
import pytest

import numba_adam as na
from numba_adam.errors import ShapeError
from numba_adam.rows.functional import adam_update_rows
from numba_adam.rows.kernels.partition import cuts, tally

COUNT, WIDTH = 40_000, 8  # of a table
OPTIONS = {"lr": 0.03, "weight_decay": 0.1, "eps": 1e-6, "grad_scale": 0.5}
MANY = 10_007  # places of a push, which no number of threads divides


RNG = np.random.default_rng(5)
SPREADS = {
    "in no order": RNG.permutation(COUNT)[:MANY],
    "all of the table": RNG.permutation(COUNT),
    "ascending": np.arange(COUNT)[:MANY],
    "descending": np.arange(COUNT)[:-MANY:-1],
    "some twice": RNG.integers(COUNT, size=MANY),
    "as words of a language": np.minimum(RNG.zipf(1.2, MANY), COUNT) - 1,
    "half are one row": np.where(RNG.random(MANY) < 0.5, 7, RNG.integers(COUNT, size=MANY)),
    "all the first row": np.zeros(MANY, int),
    "all the last row": np.full(MANY, COUNT - 1),
    "the first and the last": RNG.integers(2, size=MANY) * (COUNT - 1),
    "three rows in turn": np.arange(MANY) % 3 + COUNT // 2,
    "ascending, then a few from the beginning": np.arange(COUNT - MANY, COUNT + 100) % COUNT,
    "far apart, then neighbours": np.r_[np.arange(0, COUNT, 8), np.arange(MANY)],
}


def push(spread, dtype):
    """Return a table's three arrays, rows, and their gradients."""
    rng = np.random.default_rng(6)
    rows = SPREADS[spread].copy()
    arrays = [rng.normal(size=(COUNT, WIDTH)).astype(dtype) ** 2 for _ in range(3)]
    return arrays, rows, rng.normal(size=(rows.size, WIDTH)).astype(dtype)


def dense_twin(arrays, rows, grads):
    """Return the table after the dense step on the given rows."""
    twins, total, named = [array.copy() for array in arrays], np.zeros_like(arrays[0]), np.unique(rows)
    np.add.at(total, rows, grads)  # one after the other, in their order
    na.adam_update(twins[0], total, *twins[1:], 7, **OPTIONS)
    expected = [array.copy() for array in arrays]
    for ours, twin in zip(expected, twins, strict=True):
        ours[named] = twin[named]
    return expected


@pytest.mark.parametrize("spread", SPREADS)
def test_any_distribution_of_rows_matches_the_dense_step(spread, dtype):
    arrays, rows, grads = push(spread, dtype)
    expected = dense_twin(arrays, rows, grads)
    adam_update_rows(arrays[0], rows, grads, *arrays[1:], 7, **OPTIONS)
    assert [array.tobytes() for array in arrays] == [twin.tobytes() for twin in expected]


@pytest.mark.parametrize("size", [4095, 4096, 4097, 6143, 6144, 8192, 8193])
def test_calls_near_the_threshold_match_the_dense_step(size):
    arrays, rows, grads = push("in no order", "float32")
    expected = dense_twin(arrays, rows[:size], grads[:size])
    adam_update_rows(arrays[0], rows[:size], grads[:size], *arrays[1:], 7, **OPTIONS)
    assert [array.tobytes() for array in arrays] == [twin.tobytes() for twin in expected]


@pytest.mark.parametrize("row", [-1, COUNT, 2**40, -(2**63), 2**63 - 1])
@pytest.mark.parametrize("places", [[0], [1, 2], [MANY // 2, MANY - 1], [MANY // 2 + 1], [MANY - 1, 3]])
def test_a_row_outside_the_table_changes_nothing(places, row):
    arrays, rows, grads = push("some twice", "float32")
    before = [array.tobytes() for array in arrays]
    rows[places] = row
    with pytest.raises(ShapeError, match=rf"rows\[{min(places)}\] is {row}: it must be from 0 to {COUNT - 1}"):
        adam_update_rows(arrays[0], rows, grads, *arrays[1:], 7)
    assert [array.tobytes() for array in arrays] == before


def digest():
    """Return a digest of a table after pushes with all distributions."""
    digests = hashlib.sha256()
    for spread in SPREADS:
        arrays, rows, grads = push(spread, "float32")
        adam_update_rows(arrays[0], rows, grads, *arrays[1:], 7, **OPTIONS)
        for array in arrays:
            digests.update(array.tobytes())
    return digests.hexdigest()


THREADS = """
import sys
sys.path[:0] = [{library!r}]
import numba
from test_rows_many import digest
for threads in (1, 2, 3, 5):
    numba.set_num_threads(threads)
    print(digest())
"""


def test_any_number_of_threads_gives_the_same_bits(run_python, request):
    one, *others = run_python(THREADS.format(library=str(request.path.parent)), NUMBA_NUM_THREADS="5").split()
    assert others == [one] * 3


@numba.njit
def _shares(rows, parts):
    """Return how many positions of a push each part gets."""
    cut, tallies = np.empty(parts - 1, np.int64), np.zeros(parts, np.int64)
    cuts(rows, cut, np.empty(3 * rows.size, np.int64))
    tally(rows, 0, rows.size, cut, tallies)
    return tallies


@pytest.mark.parametrize("parts", [2, 3, 8])
@pytest.mark.parametrize(("features", "examples"), [(1, 100_000), (8, 8_192), (26, 10_240), (26, 65_536), (64, 4_096)])
def test_periodic_rows_are_divided_evenly_among_threads(features, examples, parts):
    """Each example has one row per feature, in the feature's own range; a sample must not have the same period."""
    rows = RNG.integers(COUNT, size=(examples, features)) + np.arange(features) * COUNT
    assert _shares(rows.reshape(-1), parts).max() < 1.25 * rows.size / parts
