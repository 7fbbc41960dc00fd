"""The evidence on 8-bit state: comparisons, errors and tables. No peer is needed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from benchmarks.evidence import tables
from benchmarks.evidence.digits import Digits
from benchmarks.evidence.language import text
from benchmarks.evidence.measure import CHECKPOINT, Error, Streamed, Trained, error, stream_through, train
from benchmarks.evidence.optimizers import EIGHT_BIT, FLOAT32, NEAREST, missing_ones
from benchmarks.evidence.problem import Losses
from benchmarks.evidence.streams import SIZE, STREAMS, UNTIL_CHANGE, UNTIL_FALL, gradients
from benchmarks.workload import Array

OURS = (FLOAT32, EIGHT_BIT, NEAREST)
BY_NAME = {stream.name: stream for stream in STREAMS}


class Bowl:
    """A problem with the parameters plus noise as gradient."""

    weight_decay = 0.1

    def __init__(self) -> None:
        self.params: list[Array] = [np.linspace(-1, 1, 300, dtype=np.float32), np.ones((2, 3), np.float32)]

    def gradients(self, params: Sequence[Array], step: int) -> list[Array]:
        random = np.random.default_rng(step)
        return [param + random.normal(0, 0.1, param.shape).astype(np.float32) for param in params]

    def losses(self, params: Sequence[Array]) -> Losses:
        total = sum(float((param**2).sum()) for param in params)
        return Losses(total, 2 * total)


def test_errors_are_counted_in_learning_rates() -> None:
    own, exact = (
        [np.array([1.0, 1.002], "f4"), np.zeros((1, 2), "f4")],
        [np.ones(2, "f4"), np.full((1, 2), 0.001, "f4")],
    )
    mean, largest = error(own, exact)
    assert mean == pytest.approx(1.0, rel=1e-3)
    assert largest == pytest.approx(2.0, rel=1e-3)


def test_all_runs_start_alike_and_are_compared_with_float32_state() -> None:
    problem = Bowl()
    before = [param.copy() for param in problem.params]
    trained = train(problem, OURS, CHECKPOINT + 10)
    assert all((a == b).all() for a, b in zip(problem.params, before, strict=True))
    assert list(trained) == [contestant.name for contestant in OURS]
    exact, own, nearest = trained.values()
    assert exact.replayed == exact.closed == dict.fromkeys((CHECKPOINT, CHECKPOINT + 10), Error(0.0, 0.0))
    assert (exact.quantised, own.quantised, nearest.quantised) == (0.0, 1.0, 1.0)
    for each in (own, nearest):
        for errors in (each.replayed, each.closed):
            assert 0 < errors[CHECKPOINT].mean < errors[CHECKPOINT].largest < 10
        assert each.losses.held_out == pytest.approx(exact.losses.held_out, rel=0.05)


def test_without_dither_the_state_has_the_nearest_codes() -> None:
    array = np.ones(300, np.float32)
    optimizer = NEAREST.make([array], 0.0)
    optimizer.step([np.random.default_rng(0).normal(size=300).astype("f4")])
    roots = np.sqrt(optimizer.optimizer.state[0]["exp_avg_sq"])  # type: ignore[attr-defined]
    for begin in range(0, 300, 128):
        block = roots[begin : begin + 128]
        steps = 2 + block.astype(np.float64) / block.max() * 502
        mantissas = steps / 2 ** np.floor(np.log2(steps * (1 + 1e-7)))
        np.testing.assert_allclose(mantissas * 32, np.round(mantissas * 32), atol=1e-3)


def test_our_contestants_run_everywhere() -> None:
    assert missing_ones(OURS) == {}


@pytest.mark.parametrize("name", BY_NAME)
def test_streams_are_the_same_each_time_and_differ_by_seed(name: str) -> None:
    one, same, other = (next(gradients(BY_NAME[name], seed)) for seed in (0, 0, 1))
    assert (one.dtype, one.shape) == (np.float32, (SIZE,))
    assert (one == same).all()
    assert (one != other).any()


def test_streams_match_their_titles() -> None:
    rare = next(gradients(BY_NAME["rare"], 0))
    assert np.count_nonzero(rare) == pytest.approx(SIZE / 10, rel=0.1)
    decades = np.abs(next(gradients(BY_NAME["decades"], 0)))
    assert np.quantile(decades, 0.95) > 1000 * np.quantile(decades, 0.05)
    vanish = [
        grad[::2].any() for grad, _ in zip(gradients(BY_NAME["vanish"], 0), range(UNTIL_CHANGE + 2), strict=False)
    ]
    assert vanish == [True] * UNTIL_CHANGE + [False] * 2
    fall = [np.abs(g[::2]).mean() for g, _ in zip(gradients(BY_NAME["fall"], 0), range(UNTIL_FALL + 1), strict=False)]
    assert fall[UNTIL_FALL] == pytest.approx(fall[UNTIL_FALL - 1] / 30, rel=0.1)


def test_with_dither_parameters_without_gradients_stop_but_not_with_nearest_rounding() -> None:
    results = stream_through(BY_NAME["vanish"], [EIGHT_BIT, NEAREST], 0)
    dithered, nearest = results[EIGHT_BIT.name], results[NEAREST.name]
    assert dithered.late.mean < 0.1 * nearest.late.mean
    assert dithered.root == pytest.approx(1, abs=0.05)
    assert nearest.root is not None
    assert nearest.root > 1.5
    assert dithered.way == nearest.way > 1


def test_the_digits_gradient_equals_the_demonstrations() -> None:
    one, same, other = Digits(0), Digits(0), Digits(1)
    assert sum(param.size for param in one.params) == 19_210
    grads, again = one.gradients(one.params, 3), same.gradients(same.params, 3)
    assert all((a == b).all() for a, b in zip(grads, again, strict=True))
    assert any((a != b).any() for a, b in zip(grads, other.gradients(one.params, 3), strict=True))
    losses = one.losses(one.params)
    assert losses.training > 2
    assert losses.held_out != losses.training


def test_the_text_is_pythons_documentation_with_a_tenth_held_out() -> None:
    own = text()
    assert own.training.max() < own.symbols < 256
    assert own.held_out.size == pytest.approx((own.training.size + own.held_out.size) / 10, rel=0.1)
    assert own.training.size > 200_000


def trained(loss: float, mean: float) -> Trained:
    errors = {50: Error(mean, 10 * mean), 600: Error(2 * mean, 20 * mean)}
    return Trained(Losses(loss, 2 * loss), 0.5, errors, errors)


def test_losses_are_printed_with_spread_and_difference() -> None:
    lines = tables.of_losses(
        [{"a": trained(1.0, 0), "b": trained(1.5, 0)}, {"a": trained(3.0, 0), "b": trained(3.5, 0)}]
    )
    assert lines[1].split() == ["a", "2.0000", "+-", "1.4142", "4.0000", "+-", "2.8284", "50%"]
    assert lines[2].split()[4:7] == ["+0.5000", "+-", "0.0000"]


def test_errors_are_the_mean_of_means_and_the_overall_maximum() -> None:
    lines = tables.of_errors([{"a": trained(1, 0), "b": trained(1, 0.1)}, {"a": trained(1, 0), "b": trained(1, 0.3)}])
    assert lines[0].count("gradients") == 4
    assert lines[1].split() == ["b", "0.2", "(max", "3)", "0.4", "(max", "6)", "0.2", "(max", "3)", "0.4", "(max", "6)"]


def test_one_seed_has_no_spread() -> None:
    assert tables.spread([2.0]) == (2.0, 0.0)


def test_streams_are_printed_with_their_errors() -> None:
    stream = BY_NAME["equal"]
    errors = {CHECKPOINT: Error(0.1, 1), stream.steps: Error(0.2, 2)}
    known, unknown = Streamed(errors, 18.0, Error(0.3, 3), 1.001), Streamed(errors, 18.0, Error(0.3, 3))
    lines = tables.of_streams([(stream, [{"ours": known, "theirs": unknown}])])
    assert lines[1] == f"{stream.title} (float32 state goes 18 lr on average)"
    assert lines[3].split() == ["ours", "0.1", "(max", "1)", "0.2", "(max", "2)", "0.3", "(max", "3)", "1.001"]
    assert lines[4].split()[-1] == "-"
