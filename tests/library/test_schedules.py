"""Schedules: learning rates as functions of the update's number."""

from __future__ import annotations

import math

import numpy as np
import pytest

import numba_adam as na
from numba_adam.errors import HyperparameterError, NamesError, ShapeError


class Recorder:
    """A schedule that records its calls."""

    def __init__(self, rate=lambda step: 0.1 / step):
        self.rate, self.seen = rate, []

    def __call__(self, step):
        self.seen.append(step)
        return self.rate(step)

    def taken(self):
        """Return the calls since the last time."""
        seen, self.seen = self.seen, []
        return seen


def cosine(step):
    return 0.05 * (1 + math.cos(math.pi * min(step, 20) / 20))


def grads_of(params, seed):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(param.shape).astype(param.dtype) for param in params]


def fresh(dtypes=("float32", "float64", "float32"), size=1_000):
    return [np.linspace(-1, 1, size).astype(dtype) for dtype in dtypes]


def contents(optimizer):
    """Return all bytes of an optimizer's visible state, and its learning rates."""
    states = {
        name: {key: value.tobytes() if isinstance(value, np.ndarray) else value for key, value in state.items()}
        for name, state in optimizer.state.items()
    }
    params = [param.tobytes() for group in optimizer.param_groups for param in group["params"]]
    return params, states, [group["lr"] for group in optimizer.state_dict()["param_groups"]]


@pytest.mark.parametrize("make", [na.Adam, na.AdamW])
def test_a_schedule_equals_setting_the_rate_before_each_step(make):
    options = {"weight_decay": 0.1, "ema_decay": 0.9}
    by_schedule, by_hand = make(fresh(), cosine, **options), make(fresh(), **options)
    for step in range(1, 25):
        grads = grads_of(fresh(), step)
        by_schedule.step(grads, max_grad_norm=5.0)
        by_hand.param_groups[0]["lr"] = cosine(step)
        by_hand.step(grads, max_grad_norm=5.0)
        assert contents(by_schedule) == contents(by_hand)


def test_the_first_update_calls_the_schedule_with_the_int_1():
    schedule, w = Recorder(), np.ones(3)
    optimizer = na.Adam(w, lr=schedule)
    schedule.taken()
    for _ in range(4):
        optimizer.step(np.ones(3))
    assert schedule.seen == [1, 2, 3, 4]
    assert [type(step) for step in schedule.seen] == [int] * 4


@pytest.mark.parametrize("options", [{"loss_scale": 2.0}, {"max_grad_norm": 1.0}], ids=str)
def test_skipped_steps_do_not_count(options):
    schedule = Recorder()
    optimizer = na.Adam([np.ones(3), np.ones(3, np.float32)], lr=schedule)
    schedule.taken()
    for last in (1.0, np.nan, np.inf, 1.0, np.nan, 1.0):
        optimizer.step([np.ones(3), np.array([1, 1, last])], **options)
    assert schedule.seen == [1, 2, 2, 2, 3, 3]


def test_refused_steps_do_not_count():
    schedule = Recorder()
    optimizer = na.Adam([np.ones(3)], lr=schedule)
    optimizer.step([np.ones(3)])
    with pytest.raises(ShapeError):
        optimizer.step([np.ones(4)])
    with pytest.raises(NamesError):
        optimizer.step([])
    schedule.taken()
    optimizer.step([np.ones(3)])
    assert schedule.seen == [2]


def test_parameters_without_gradients_do_not_delay_the_schedule():
    """The number is one more than the largest number of updates of the group's parameters."""
    schedule = Recorder()
    optimizer = na.Adam(fresh(), lr=schedule)
    schedule.taken()
    one = np.ones(1_000)
    for grads in ([one, None, None], [one, one, None], [None, one, None], [None, None, None], [None, one, one]):
        optimizer.step(grads)
    assert schedule.seen == [1, 2, 3, 3, 3]


def test_an_accumulated_step_is_one_update():
    schedule = Recorder()
    optimizer = na.Adam([np.ones(3)], lr=schedule)
    schedule.taken()
    for _ in range(3):
        optimizer.accumulate([np.ones(3)])
        optimizer.accumulate([np.ones(3)])
        optimizer.step()
    assert schedule.seen == [1, 2, 3]


def test_groups_have_their_own_schedules():
    own, common = Recorder(lambda step: 0.5 / step), Recorder(lambda step: 1.0 / step)
    params = fresh(("float32", "float64", "float32", "float64"), 3)
    groups = [
        {"params": params[:1], "lr": own},
        {"params": params[1:2]},
        {"params": params[2:3], "lr": 0.25},
        {"params": params[3:]},
    ]
    optimizer = na.Adam(groups, lr=common, betas=(0.0, 0.0), eps=0.0)
    own.taken(), common.taken()
    optimizer.step([np.ones(3), np.ones(3), np.ones(3), None])
    optimizer.step([np.ones(3), None, np.ones(3), None])
    assert own.seen == [1, 2]
    assert common.seen == [1, 1, 2, 1]
    moved = [before[0] - after[0] for before, after in zip(fresh(("f8",) * 4, 3), params, strict=True)]
    assert moved == pytest.approx([0.5 + 0.25, 1.0, 0.25 + 0.25, 0.0])
    assert [group["lr"] for group in optimizer.state_dict()["param_groups"]] == [0.25, 0.5, 0.25, 1.0]


def test_a_group_with_several_dtypes_has_one_update_number():
    schedule, params = Recorder(), fresh(size=3)
    optimizer = na.Adam(params, lr=schedule)
    schedule.taken()
    optimizer.step([np.ones(3), None, None])
    optimizer.step([None, np.ones(3), None])
    optimizer.step([None, np.ones(3), None])
    assert schedule.seen == [1, 2, 2]  # no parameter was updated twice before the third
    optimizer.step([np.ones(3)] * 3)
    assert schedule.seen[-1] == 3


# --- setting it ---


def test_a_schedule_can_be_set_replaced_and_removed():
    w, other = np.ones(3), np.ones(3)
    optimizer, twin = na.Adam([w], lr=0.5), na.Adam([other])
    group = optimizer.param_groups[0]
    rates = []
    for set_to in (None, lambda step: 0.1 * step, None, cosine, 0.25, {"lr": Recorder(), "eps": 1e-3}, None):
        if isinstance(set_to, dict):
            group.update(set_to)
            twin.param_groups[0]["eps"] = 1e-3
        elif set_to is not None:
            group["lr"] = set_to
        rate = group["lr"](len(rates) + 1) if callable(group["lr"]) else group["lr"]
        rates.append(rate)
        twin.param_groups[0]["lr"] = rate
        for each in (optimizer, twin):
            each.step([np.ones(3)])
        assert w.tobytes() == other.tobytes()
    assert rates == pytest.approx([0.5, 0.2, 0.3, cosine(4), 0.25, 0.1 / 6, 0.1 / 7])


def test_other_hyperparameters_can_change_during_a_schedule():
    w, other = np.ones(3), np.ones(3)
    optimizer, twin = na.Adam([w], lr=cosine), na.Adam([other])
    for step, change in enumerate([{}, {"eps": 1e-2}, {"betas": (0.5, 0.5)}, {"amsgrad": True}], 1):
        optimizer.param_groups[0].update(change)
        twin.param_groups[0].update({**change, "lr": cosine(step)})
        for each in (optimizer, twin):
            each.step([np.full(3, step / 2)])
    assert w.tobytes() == other.tobytes()
    assert optimizer.param_groups[0]["lr"] is cosine


def test_a_group_shows_its_schedule():
    optimizer = na.Adam([np.ones(3)], lr=cosine)
    assert optimizer.param_groups[0]["lr"] is cosine
    optimizer.step([np.ones(3)])
    assert optimizer.param_groups[0]["lr"] is cosine
    assert "cosine" in repr(optimizer)
    optimizer.param_groups[0]["lr"] = 0.5
    assert optimizer.param_groups[0]["lr"] == 0.5


def test_a_schedule_may_read_its_optimizer():
    """It once waited forever for the lock that the step held."""
    optimizer = na.Adam([np.ones(3)], lr=0.1)
    optimizer.param_groups[0]["lr"] = lambda _: 0.1 / (1 + len(optimizer.state) + len(optimizer.state_dict()))
    optimizer.step([np.ones(3)])
    assert optimizer.state[0]["step"] == 1


@pytest.mark.parametrize("rate", [0, 1, np.float32(0.5), np.float64(0.25), np.int64(2)], ids=repr)
def test_a_schedule_may_return_any_real_number(rate):
    optimizer = na.Adam([np.ones(3)], lr=lambda _: rate)
    optimizer.step([np.ones(3)])
    lr = optimizer.state_dict()["param_groups"][0]["lr"]
    assert (lr, type(lr)) == (float(rate), float)


# --- state dicts ---


def test_a_state_dict_has_the_last_rate_as_a_number():
    optimizer = na.Adam([np.ones(3)], lr=cosine)
    for step in (1, 2, 3):
        optimizer.step([np.ones(3)])
        lr = optimizer.state_dict()["param_groups"][0]["lr"]
        assert (lr, type(lr)) == (cosine(step), float)


def test_loading_keeps_the_schedule_and_continues_from_the_states_step():
    schedule, ran = Recorder(cosine), na.Adam([np.ones(3)], lr=cosine)
    for _ in range(7):
        ran.step([np.full(3, 0.5)])
    w = ran.param_groups[0]["params"][0].copy()
    loaded = na.Adam([w], lr=schedule)
    schedule.taken()
    loaded.load_state_dict(ran.state_dict())
    assert schedule.seen == []
    assert loaded.param_groups[0]["lr"] is schedule
    assert contents(loaded) == contents(ran)
    for each in (loaded, ran):
        each.step([np.full(3, 0.5)])
    assert schedule.seen == [8]
    assert contents(loaded) == contents(ran)


def test_loading_into_an_optimizer_without_a_schedule_sets_the_last_rate():
    ran = na.Adam([np.ones(3)], lr=lambda step: 0.25 / step)
    ran.step([np.ones(3)])
    ran.step([np.ones(3)])
    plain = na.Adam([np.ones(3)], lr=0.5)
    plain.load_state_dict(ran.state_dict())
    assert plain.param_groups[0]["lr"] == 0.125


# --- what it may not do ---

BAD = [None, "0.1", -1.0, math.nan, math.inf, True, [0.1], 1j]


@pytest.mark.parametrize("bad", BAD, ids=repr)
def test_an_invalid_rate_is_refused_when_it_is_set(bad):
    with pytest.raises(HyperparameterError, match=r"schedule.*update 1.*lr"):
        na.Adam([np.ones(3)], lr=lambda _: bad)
    optimizer = na.Adam([np.ones(3)], lr=0.5)
    for setting in (lambda g: g.update(lr=lambda _: bad, eps=0.5), lambda g: g.__setitem__("lr", lambda _: bad)):
        with pytest.raises(HyperparameterError, match="schedule"):
            setting(optimizer.param_groups[0])
    assert (optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["eps"]) == (0.5, 1e-8)


class BrokenError(Exception):
    """An error of a schedule."""


def failing(step):
    if step == 3:
        raise BrokenError("step 3")
    return 0.1


@pytest.mark.parametrize("bad", [*BAD, failing], ids=lambda bad: "failing" if bad is failing else repr(bad))
@pytest.mark.parametrize("pending", [False, True])
def test_a_schedule_that_raises_later_changes_nothing(bad, pending):
    """Including the other groups' rates, the average, the copy, the gradients, and the accumulated sums."""
    late = bad if callable(bad) else lambda step: bad if step == 3 else 0.1
    params = fresh(size=40)
    groups = [{"params": params[:1], "lr": cosine}, {"params": params[1:], "lr": late}]
    optimizer = na.Adam(groups, ema_decay=0.5, low_precision_copy="bfloat16")
    grads = grads_of(params, 0)
    for _ in range(2):
        optimizer.step(grads)
    given = () if pending else (grads,)
    if pending:
        optimizer.accumulate(grads)
    before = contents(optimizer)
    kept = [array.tobytes() for array in [*optimizer.ema, *optimizer.low_precision, *grads]]
    for _ in range(2):
        with pytest.raises(BrokenError if bad is failing else HyperparameterError):
            optimizer.step(*given, zero_grad=True)
        assert contents(optimizer) == before
        assert [array.tobytes() for array in [*optimizer.ema, *optimizer.low_precision, *grads]] == kept
    optimizer.param_groups[1]["lr"] = cosine
    optimizer.step(*given)
    by_hand = na.Adam(fresh(size=40), lr=cosine)
    for lr in (0.1, 0.1, cosine(3)):
        by_hand.param_groups[0]["lr"] = lr
        by_hand.step(grads)
    assert params[1].tobytes() == by_hand.param_groups[0]["params"][1].tobytes()


def test_the_message_says_which_update_failed():
    optimizer = na.Adam([np.ones(3)], lr=lambda step: 2 - step)
    optimizer.step([np.ones(3)])
    optimizer.step([np.ones(3)])
    with pytest.raises(HyperparameterError, match=r"update 3.*lr=-1.*at least 0"):
        optimizer.step([np.ones(3)])
