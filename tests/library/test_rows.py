"""Updates of some rows of a table: the lazy and the exact mode, bit for bit, and their cost."""

from __future__ import annotations

import hashlib

import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import adam_step

import numba_adam as na
from numba_adam.rows.functional import adam_catch_up_rows, adam_update_rows
from numba_adam.rows.history import RowHistory

WIDTHS = [(), (1,), (3,), (16,), (17,), (2, 5), (1_500,)]
VARIANTS = {
    "adam": {},
    "algorithm1": {"eps_mode": "algorithm1", "betas": (0.8, 0.97)},
    "l2": {"weight_decay": 0.1, "maximize": True},
    "adamw": {"weight_decay": 0.1, "decoupled_weight_decay": True, "lr": 0.03},
    "amsgrad": {},
    "amsgrad and decay": {"weight_decay": 0.01, "eps": 1e-3},
}


class Table:
    """A table with its state, and the ways to update it."""

    def __init__(self, count, shape, dtype, variant, seed=0):
        rng = np.random.default_rng(seed)
        self.amsgrad = "amsgrad" in variant
        self.options = VARIANTS[variant]
        self.param = rng.normal(size=(count, *shape)).astype(dtype)
        self.moments = [np.zeros_like(self.param) for _ in range(3)]
        self.last_step = np.zeros(count, np.int64)

    def keywords(self, given):
        return self.options | given | ({"max_exp_avg_sq": self.moments[2]} if self.amsgrad else {})

    def dense(self, grad, step, **given):
        na.adam_update(self.param, grad, *self.moments[:2], step, **self.keywords(given))

    def lazy(self, rows, grads, step, **given):
        adam_update_rows(self.param, rows, grads, *self.moments[:2], step, **self.keywords(given))

    def exact(self, rows, grads, step, **given):
        given |= {"mode": "exact", "last_step": self.last_step}
        adam_update_rows(self.param, rows, grads, *self.moments[:2], step, **self.keywords(given))

    def catch_up(self, rows, step, **given):
        given |= {"last_step": self.last_step}
        adam_catch_up_rows(self.param, rows, *self.moments[:2], step, **self.keywords(given))

    def bits(self, rows=slice(None)):
        return b"".join(array[rows].tobytes() for array in (self.param, *self.moments))


def draw(rng, count, shape, dtype, most=12):
    """Return rows, some of them twice, and a gradient for each."""
    size = int(rng.integers(0, most))
    magnitudes = np.exp(rng.uniform(-20, 5, (size, *[1 for _ in shape])))
    return rng.integers(0, count, size), (rng.normal(size=(size, *shape)) * magnitudes).astype(dtype)


def dense_of(rows, grads, param):
    """Return the gradient of a whole table; repeated rows get the sum, added in order."""
    dense = np.zeros_like(param)
    for row in np.unique(rows):
        total, *others = grads[rows == row]
        for other in others:
            total = total + other
        dense[row] = total
    return dense


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("shape", WIDTHS, ids=str)
def test_lazy_mode_is_the_dense_step_on_the_given_rows_only(shape, dtype, variant):
    rng = np.random.default_rng(1)
    table, twin = (Table(30, shape, dtype, variant) for _ in range(2))
    for step in range(1, 9):
        rows, grads = draw(rng, 30, shape, dtype)
        named, others = np.unique(rows), np.setdiff1d(np.arange(30), rows)
        twin.dense(dense_of(rows, grads, twin.param), step, grad_scale=0.7)
        before = table.bits(others)
        table.lazy(rows, grads, step, grad_scale=0.7)
        assert table.bits(named) == twin.bits(named)
        assert table.bits(others) == before
        for mine, other in zip((table.param, *table.moments), (twin.param, *twin.moments), strict=True):
            other[...] = mine


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("shape", WIDTHS, ids=str)
def test_exact_mode_is_the_dense_step_with_zero_gradients(shape, dtype, variant):
    rng = np.random.default_rng(2)
    table, twin = (Table(30, shape, dtype, variant) for _ in range(2))
    for step in range(1, 40):
        rows, grads = draw(rng, 30, shape, dtype)
        twin.dense(dense_of(rows, grads, twin.param), step, grad_scale=0.7)
        table.exact(rows, grads, step, grad_scale=0.7)
        assert table.bits(np.unique(rows)) == twin.bits(np.unique(rows))
        assert (table.last_step[rows] == step).all()
    table.catch_up(None, 39)
    assert table.bits() == twin.bits()
    assert (table.last_step == 39).all()


def test_exact_mode_follows_the_papers_formulas():
    rng = np.random.default_rng(3)
    options = {"lr": 0.02, "weight_decay": 0.1, "decoupled_weight_decay": True, "eps_mode": "algorithm1"}
    table = Table(6, (4,), np.float64, "adam")
    expected = [table.param.copy(), *(moment.copy() for moment in table.moments[:2])]
    for step in range(1, 60):
        rows, grads = draw(rng, 6, (4,), np.float64, most=3)
        after = adam_step(expected[0], dense_of(rows, grads, table.param), *expected[1:], step, **options)
        expected = [after.param, after.exp_avg, after.exp_avg_sq]
        table.exact(rows, grads, step, **options)
    table.catch_up(None, 59, **options)
    for mine, theirs in zip((table.param, *table.moments), expected, strict=False):
        np.testing.assert_allclose(mine, theirs, rtol=1e-11, atol=1e-13)


@settings(max_examples=60)
@given(
    pushes=st.lists(st.lists(st.integers(0, 7), max_size=9), min_size=1, max_size=25),
    gaps=st.lists(st.integers(1, 90), min_size=25, max_size=25),
    width=st.sampled_from([1, 3, 16, 17]),
    variant=st.sampled_from(sorted(VARIANTS)),
    dtype=st.sampled_from(["float32", "float64"]),
)
def test_any_sequence_of_pushes_matches_the_dense_update(pushes, gaps, width, variant, dtype):
    """Exact mode on one table, dense updates on its twin, with steps in between that the first misses."""
    rng = np.random.default_rng(4)
    table, twin = (Table(8, (width,), dtype, variant) for _ in range(2))
    step = 0
    for rows, gap in zip(pushes, gaps, strict=False):
        for _ in range(gap):
            step += 1
            if _ + 1 < gap:
                twin.dense(np.zeros_like(twin.param), step)
        grads = rng.normal(size=(len(rows), width)).astype(dtype)
        twin.dense(dense_of(np.array(rows, np.int64), grads, twin.param), step)
        table.exact(rows, grads, step)
    table.catch_up(None, step)
    assert table.bits() == twin.bits()


@pytest.mark.parametrize("variant", ["adam", "amsgrad", "l2"])
def test_long_gaps_match_the_dense_update(dtype, variant):
    """Rows with different numbers of missed steps in one tile; fast decay makes their moments zero."""
    options = {"betas": (0.5, 0.8) if dtype == np.float32 else (0.3, 0.4)}
    rng = np.random.default_rng(5)
    table, twin = (Table(70, (5,), dtype, variant) for _ in range(2))
    every = rng.normal(size=(70, 5)).astype(dtype)
    for step in range(1, 1_202):
        rows = np.array([step // 50 * 3 % 69] if step % 50 == 0 else [69] if step == 1_201 else [], np.int64)
        rows = np.arange(35) if step == 3 else rows
        twin.dense(dense_of(rows, every[rows], twin.param), step, **options)
        if rows.size:
            table.exact(rows, every[rows], step, **options)
    table.catch_up(None, 1_201, **options)
    assert table.bits() == twin.bits()
    if variant == "adam":
        assert (table.moments[0] == 0).all(axis=1).sum() > 20, "they did not fade, and this test saw nothing"


def test_more_missed_steps_than_one_replay_match_the_dense_update():
    table, twin = (Table(3, (2,), "float32", "adam") for _ in range(2))
    options = {"betas": (0.9, 0.9999), "lr": 1e-5}
    grads = np.ones((3, 2), np.float32)
    for one in (table, twin):
        one.exact([0, 1, 2], grads, 1, **options)
    for step in range(20_000, 80_001, 20_000):
        twin.catch_up(None, step, **options)
        twin.exact([], grads[:0], step + 1, **options)
    table.catch_up([1], 30_000, **options)
    table.exact([1, 0], grads[:2], 80_001, **options)
    twin.exact([0, 1], grads[:2], 80_001, **options)
    assert table.bits([0, 1]) == twin.bits([0, 1])
    assert table.last_step.tolist() == [80_001, 80_001, 1]


def test_an_untouched_row_skips_a_billion_steps_at_once():
    table = Table(2, (16,), "float32", "adam")
    before = table.param[0].copy()
    table.exact([0], np.ones((1, 16), np.float32), 10**9)
    assert table.last_step.tolist() == [10**9, 0]
    assert (table.param[0] < before).all()


def test_a_row_at_rest_does_not_change_without_eps():
    """Without moments and eps, 0 / 0 makes no step, in the dense and in the exact mode."""
    table, twin = (Table(2, (3,), "float32", "adam") for _ in range(2))
    before = table.param.copy()
    for step in range(1, 50):
        twin.dense(np.zeros_like(twin.param), step, eps=0.0)
    table.catch_up(None, 49, eps=0.0)
    assert (table.param == before).all()
    assert table.bits() == twin.bits()


def test_catching_up_some_rows_does_not_change_the_others(dtype):
    table, twin = (Table(10, (4,), dtype, "adamw") for _ in range(2))
    grads = np.ones((10, 4), dtype)
    table.exact(np.arange(10), grads, 1)
    twin.dense(grads, 1)
    others = table.bits([0, 9])
    for step in (2, 3):
        twin.dense(np.zeros_like(grads), step)
    table.catch_up([4, 4, 2], 3)
    table.catch_up([4], 3)
    assert table.bits([2, 4]) == twin.bits([2, 4])
    assert table.bits([0, 9]) == others
    assert table.last_step.tolist() == [1, 1, 3, 1, 3, 1, 1, 1, 1, 1]


@pytest.mark.parametrize("kind", ["int8", "uint8", "int32", "uint32", "int64", "uint64", ">i4"])
def test_rows_may_have_any_integer_type(kind):
    table, twin = (Table(100, (3,), "float32", "adam") for _ in range(2))
    rows, grads = np.array([99, 3, 99, 0]), np.ones((4, 3), np.float32)
    table.lazy(rows.astype(kind), grads, 1)
    twin.lazy(rows.tolist(), grads, 1)
    assert table.bits() == twin.bits()


def test_rows_may_be_read_only_or_strided():
    table, twin = (Table(100, (3,), "float32", "adam") for _ in range(2))
    rows, grads = np.array([5, 0, 7, 0, 5, 0]), np.ones((3, 3), np.float32)
    rows.flags.writeable = grads.flags.writeable = False
    table.lazy(rows[::2], grads, 1)
    twin.lazy([5, 7, 5], grads, 1)
    assert table.bits() == twin.bits()


@pytest.mark.parametrize("count", [0, 7])
@pytest.mark.parametrize("shape", [(0,), (3,)])
def test_an_empty_call_changes_nothing(count, shape):
    table = Table(count, shape, "float32", "adam")
    before = table.bits()
    table.lazy([], np.zeros((0, *shape), np.float32), 1)
    table.exact(np.zeros(0, np.int32), np.zeros((0, *shape), np.float32), 1)
    assert table.bits() == before
    assert not table.last_step.any()


def test_a_table_without_columns_counts_its_steps():
    table = Table(3, (0,), "float32", "adam")
    table.exact([1], np.zeros((1, 0), np.float32), 5)
    assert table.last_step.tolist() == [0, 5, 0]


# --- bits ---


@pytest.fixture
def _threads_as_they_were():
    before = numba.get_num_threads()
    yield
    numba.set_num_threads(before)


def digest(width, dtype):
    """Return a digest of many rows after updates on the current number of threads."""
    rng = np.random.default_rng(6)
    count = 90_000 // width
    table, lazy = (Table(count, (width,), dtype, "amsgrad and decay") for _ in range(2))
    for step in (1, 2, 7):
        rows = rng.integers(0, count, count)
        rows[: count // 10] = 3
        grads = rng.normal(size=(count, width)).astype(dtype)
        table.exact(rows, grads, step)
        lazy.lazy(rows, grads, step)
    table.catch_up(None, 9)
    return hashlib.sha256(table.bits() + lazy.bits()).hexdigest()


@pytest.mark.usefixtures("_threads_as_they_were")
@pytest.mark.parametrize("width", [1, 3, 16, 17, 3_000])
def test_the_number_of_threads_does_not_change_the_bits(width, dtype):
    seen = set()
    for threads in range(1, numba.config.NUMBA_NUM_THREADS + 1):
        numba.set_num_threads(threads)
        seen.add(digest(width, dtype))
    assert len(seen) == 1


THREADS = """
import sys
sys.path[:0] = [{tests!r}, {library!r}]
import numba
from test_rows import digest
numba.set_num_threads(int(sys.argv[1]))
print(digest(16, "float32"), digest(3_000, "float64"))
"""


def test_one_two_and_four_threads_give_the_same_bits(run_python, request):
    library = request.path.parent
    program = THREADS.format(tests=str(library.parent), library=str(library))
    seen = {run_python(program, str(threads), NUMBA_NUM_THREADS="4") for threads in (1, 2, 4)}
    assert len(seen) == 1


def test_unaligned_tables_give_the_same_bits():
    twin = Table(50, (16,), "float32", "adam")
    room = [np.full(50 * 16 + 3, 77.0, np.float32) for _ in range(3)]
    views = [array[1:-2].reshape(50, 16) for array in room]
    for view, array in zip(views, (twin.param, *twin.moments), strict=False):
        view[...] = array
    rows, grads = np.array([49, 0, 7, 49]), np.ones((4, 16), np.float32)
    adam_update_rows(views[0], rows, grads, *views[1:], 1)
    twin.lazy(rows, grads, 1)
    assert b"".join(view.tobytes() for view in views) + twin.moments[2].tobytes() == twin.bits()
    assert all(array[0] == array[-1] == array[-2] == 77 for array in room)


def test_the_lazy_mode_reads_only_the_given_rows(tmp_path):
    """A table of 128 GB in sparse files, where only the given rows exist."""
    paths = [tmp_path / name for name in ("param", "exp_avg", "exp_avg_sq")]
    arrays = [np.memmap(path, np.float32, "w+", shape=(2**31, 16)) for path in paths]
    adam_update_rows(arrays[0], [2**31 - 1, 5], np.ones((2, 16), np.float32), *arrays[1:], 1, lr=0.5)
    np.testing.assert_allclose(arrays[0][[5, -1, 6]][:, 0], [-0.5, -0.5, 0], atol=1e-6)
    for array in arrays:
        array.flush()
    assert sum(path.stat().st_blocks * 512 for path in paths) < 10_000_000


# --- hyperparameters that change ---


def test_a_history_replays_each_step_with_its_own_hyperparameters(dtype):
    rng = np.random.default_rng(7)
    table, twin = (Table(12, (3,), dtype, "adam") for _ in range(2))
    history = RowHistory()
    for step in range(1, 60):
        options = {"lr": 0.1 / step, "weight_decay": 0.1 if step > 30 else 0.0, "betas": (0.9, 0.99 - step / 1e4)}
        rows, grads = draw(rng, 12, (3,), dtype, most=4)
        twin.dense(dense_of(rows, grads, twin.param), step, **options)
        table.exact(rows, grads, step, history=history, **options)
        assert table.bits(rows) == twin.bits(rows)
    table.catch_up(None, 59, history=history, **options)
    assert table.bits() == twin.bits()
    assert len(history.entries) == 59


def test_a_history_may_be_a_list_of_pairs():
    pairs = [
        (1, na.Hyperparameters(lr=0.1)),
        (4, na.Hyperparameters(lr=0.2, weight_decay=0.5)),
        (9, na.Hyperparameters()),
    ]
    table, twin = (Table(4, (3,), "float32", "adam") for _ in range(2))
    grads = np.ones((4, 3), np.float32)
    for step in range(1, 12):
        held = [entry for first_step, entry in pairs if first_step <= step][-1]
        options = {"lr": held.lr, "weight_decay": held.weight_decay}
        twin.dense(grads if step in (1, 11) else np.zeros_like(grads), step, **options)
    table.exact([0, 1, 2, 3], grads, 1, lr=0.1)
    table.exact([0, 1, 2, 3], grads, 11, history=pairs)
    assert table.bits() == twin.bits()


def test_one_history_serves_two_tables_and_survives_a_checkpoint():
    history = RowHistory()
    one, other, twin = (Table(2, (3,), "float32", "adam", seed) for seed in (0, 1, 1))
    grads = np.ones((2, 3), np.float32)
    for step, lr in enumerate((0.1, 0.2, 0.3, 0.3), 1):
        one.exact([0], grads[:1], step, lr=lr, history=history)
        twin.dense(grads if step == 4 else 0 * grads, step, lr=lr)
    other.exact([0, 1], grads, 4, lr=0.3, history=RowHistory(history.entries))
    assert other.bits() == twin.bits()
    assert [first_step for first_step, _ in history.entries] == [1, 2, 3]


def test_without_a_history_changed_hyperparameters_are_refused():
    table = Table(3, (2,), "float32", "adam")
    grads = np.ones((1, 2), np.float32)
    table.exact([0], grads, 1, lr=0.1)
    before = table.bits()
    with pytest.raises(na.errors.HyperparameterError, match=r"changed from \(lr=0.1\) to \(lr=0.2\).*history="):
        table.exact([0], grads, 2, lr=0.2)
    with pytest.raises(na.errors.HyperparameterError, match="changed"):
        table.catch_up(None, 2, lr=0.2)
    assert table.bits() == before
    assert table.last_step.tolist() == [1, 0, 0]
    table.exact([0], grads, 2, lr=0.1)


def test_after_a_call_with_a_history_calls_without_one_are_refused():
    table = Table(3, (2,), "float32", "adam")
    grads = np.ones((1, 2), np.float32)
    table.exact([0], grads, 1, lr=0.1)
    table.exact([0], grads, 2, lr=0.2, history=[(1, na.Hyperparameters(lr=0.1))])
    with pytest.raises(na.errors.HyperparameterError, match="have changed while rows waited"):
        table.exact([0], grads, 3, lr=0.2)


def test_a_view_of_last_step_is_recognized():
    table = Table(3, (2,), "float32", "adam")
    grads, whole = np.ones((1, 2), np.float32), table.last_step
    table.last_step = whole[:]
    table.exact([0], grads, 1, lr=0.1)
    table.last_step = whole[:]
    with pytest.raises(na.errors.HyperparameterError, match="changed"):
        table.exact([0], grads, 2, lr=0.2)


def test_hyperparameters_can_change_when_all_rows_are_up_to_date():
    table, twin = (Table(3, (2,), "float32", "adam") for _ in range(2))
    grads = np.ones((3, 2), np.float32)
    table.exact([0], grads[:1], 1, lr=0.1)
    table.catch_up(None, 2, lr=0.1)
    table.exact([2], grads[:1], 3, lr=0.2)
    table.catch_up(None, 3, lr=0.2)
    for step, (row, lr) in enumerate([(0, 0.1), (None, 0.1), (2, 0.2)], 1):
        grad = np.zeros_like(grads)
        grad[row if row is not None else [], :] = 1
        twin.dense(grad, step, lr=lr)
    assert table.bits() == twin.bits()


def test_a_history_that_lacks_needed_steps_is_refused():
    table, grads, history = Table(3, (2,), "float32", "adam"), np.ones((1, 2), np.float32), RowHistory()
    table.exact([0], grads, 1, lr=0.1, history=history)
    table.exact([0], grads, 5, lr=0.1, history=history)
    before, entries = table.bits(), history.entries
    with pytest.raises(na.errors.HyperparameterError, match=r"step 9 differ from those of step 5.*record"):
        table.exact([0], grads, 9, lr=0.2, history=history)
    with pytest.raises(na.errors.HyperparameterError, match=r"step 5 had \(lr=0.1\), this call has \(lr=0.3\)"):
        table.exact([1], grads, 5, lr=0.3, history=history)
    with pytest.raises(na.errors.HyperparameterError, match=r"missed step 1, and the history begins with step 4"):
        table.exact([2], grads, 9, history=[(4, na.Hyperparameters())])
    assert table.bits() == before
    assert history.entries == entries
    history.record(7, na.Hyperparameters(lr=0.2))
    table.exact([0], grads, 9, lr=0.2, history=history)
    assert [(first_step, entry.lr) for first_step, entry in history.entries] == [(1, 0.1), (7, 0.2)]


def test_a_history_drops_entries_that_no_row_needs():
    history = RowHistory((step, na.Hyperparameters(lr=step)) for step in range(1, 11))
    history.forget(4)
    assert [first_step for first_step, _ in history.entries] == [4, 5, 6, 7, 8, 9, 10]
    history = RowHistory([(1, na.Hyperparameters(lr=1)), (9, na.Hyperparameters(lr=2))])
    history.forget(4)
    assert [(first_step, entry.lr) for first_step, entry in history.entries] == [(4, 1), (9, 2)]
    with pytest.raises(na.errors.HyperparameterError, match="knows of step 9"):
        history.record(9, na.Hyperparameters())


def test_a_history_can_grow_without_limit():
    table, twin, history = Table(2, (2,), "float64", "adam"), Table(2, (2,), "float64", "adam"), RowHistory()
    grads = np.ones((1, 2))
    for step in range(1, 300):
        grad = np.zeros((2, 2))
        grad[1 if step == 299 else 0] = 1
        table.exact([1 if step == 299 else 0], grads, step, lr=1 / step, history=history)
        twin.dense(grad, step, lr=1 / step)
    assert table.bits([1]) == twin.bits([1])


def test_an_empty_history_uses_its_first_call_for_all_earlier_steps():
    history, grads = RowHistory(), np.ones((1, 2), np.float32)
    table, twin, other = (Table(2, (2,), "float32", "adam") for _ in range(3))
    table.exact([0], grads, 5, lr=0.25, history=history)
    assert history.entries == ((1, na.Hyperparameters(lr=0.25)),)
    twin.exact([0], grads, 5, lr=0.25)
    assert table.bits() == twin.bits()
    table.exact([1], grads, 6, lr=0.5, history=history)  # row 1 makes up for steps 1 to 5, with 0.25
    assert [(first, entry.lr) for first, entry in history.entries] == [(1, 0.25), (6, 0.5)]
    other.exact([1], grads, 6, lr=0.5, history=[(1, na.Hyperparameters(lr=0.25)), (6, na.Hyperparameters(lr=0.5))])
    assert table.bits([1]) == other.bits([1])
    with pytest.raises(na.errors.HyperparameterError, match="step 3 had"):
        other.exact([0], grads, 3, lr=0.5, history=history)


def test_an_empty_history_works_for_a_late_catch_up():
    history, table, twin = RowHistory(), Table(2, (2,), "float32", "adamw"), Table(2, (2,), "float32", "adamw")
    table.catch_up(None, 7, history=history)
    twin.catch_up(None, 7)
    assert [first for first, _ in history.entries] == [1]
    assert table.bits() == twin.bits()
    assert table.last_step.tolist() == [7, 7]
