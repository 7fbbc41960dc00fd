"""Unsuitable arguments are refused by name, and neither the table nor its history has changed."""

from __future__ import annotations

import numpy as np
import pytest

import numba_adam as na
from numba_adam.errors import (
    ArrayError,
    DtypeError,
    HyperparameterError,
    LayoutError,
    OverlapError,
    ReadOnlyError,
    ShapeError,
    UnsupportedArrayError,
)
from numba_adam.rows.functional import adam_catch_up_rows, adam_update_rows
from numba_adam.rows.history import RowHistory


def read_only(array):
    array.flags.writeable = False
    return array


@pytest.fixture
def given():
    """Return the arguments of a call in exact mode, for two of five rows."""
    rng = np.random.default_rng(1)
    param, exp_avg = rng.normal(size=(2, 5, 3)).astype("f4")
    return {
        "param": param,
        "rows": np.array([4, 1]),
        "grad_rows": rng.normal(size=(2, 3)).astype("f4"),
        "exp_avg": exp_avg,
        "exp_avg_sq": rng.random((5, 3), "f4"),
        "step": 7,
        "mode": "exact",
        "last_step": np.array([6, 2, 0, 1, 6]),
        "max_exp_avg_sq": rng.random((5, 3), "f4"),
    }


def call(given):
    positional = [given[name] for name in ("param", "rows", "grad_rows", "exp_avg", "exp_avg_sq", "step")]
    adam_update_rows(*positional, **{name: value for name, value in given.items() if name not in POSITIONAL})


POSITIONAL = ("param", "rows", "grad_rows", "exp_avg", "exp_avg_sq", "step")

WRONG = {
    "a row below zero": ({"rows": [4, -1]}, ShapeError, r"rows\[1\] is -1: it must be from 0 to 4"),
    "a row behind the last": ({"rows": [5, 1]}, ShapeError, r"rows\[0\] is 5: it must be from 0 to 4"),
    "a row beyond int64": ({"rows": np.array([1, 2**64 - 1], "u8")}, ShapeError, r"rows\[1\] is 18446744073709551615"),
    "rows in two dimensions": ({"rows": np.zeros((2, 1), int)}, ShapeError, r"rows has shape \(2, 1\)"),
    "rows that are floats": ({"rows": np.array([4.0, 1.0])}, DtypeError, "rows has dtype float64"),
    "rows that are a mask": ({"rows": np.array([True, False])}, DtypeError, "rows has dtype bool"),
    "rows too many": ({"rows": [4, 1, 2]}, ShapeError, r"grad_rows has shape \(2, 3\).*\(3, 3\)"),
    "grads of another width": ({"grad_rows": np.ones((2, 4), "f4")}, ShapeError, r"grad_rows has shape \(2, 4\)"),
    "grads of another dtype": ({"grad_rows": np.ones((2, 3))}, DtypeError, "grad_rows has dtype float64"),
    "grads that are strided": ({"grad_rows": np.ones((2, 6), "f4")[:, ::2]}, LayoutError, "grad_rows"),
    "grads that are None": ({"grad_rows": None}, UnsupportedArrayError, "grad_rows"),
    "a param that is read-only": ({"param": read_only(np.ones((5, 3), "f4"))}, ReadOnlyError, "param"),
    "a param without rows": ({"param": np.ones((), "f4")}, ShapeError, r"param has shape \(\)"),
    "a moment of another shape": ({"exp_avg": np.ones((5, 2), "f4")}, ShapeError, "exp_avg has shape"),
    "a moment of another dtype": ({"exp_avg_sq": np.ones((5, 3))}, DtypeError, "exp_avg_sq has dtype"),
    "a largest moment of another shape": ({"max_exp_avg_sq": np.ones((3, 5), "f4")}, ShapeError, "max_exp_avg_sq"),
    "no last_step": ({"last_step": None}, HyperparameterError, "last_step is missing"),
    "last_step too short": ({"last_step": np.zeros(4, int)}, ShapeError, r"last_step has shape \(4,\)"),
    "last_step of int32": ({"last_step": np.zeros(5, "i4")}, DtypeError, "last_step has dtype int32"),
    "last_step as a list": ({"last_step": [0] * 5}, UnsupportedArrayError, "last_step is of type list"),
    "last_step read-only": ({"last_step": read_only(np.zeros(5, int))}, ReadOnlyError, "last_step is read-only"),
    "last_step strided": ({"last_step": np.zeros(10, int)[::2]}, LayoutError, "last_step must be C-contiguous"),
    "last_step below zero": ({"last_step": np.full(5, -1)}, HyperparameterError, r"last_step\[1\] is -1"),
    "a step that has been": ({"step": 6}, HyperparameterError, r"step=6, and last_step\[4\] is 6.*from 0 to 5"),
    "a step of zero": ({"step": 0}, HyperparameterError, "step=0"),
    "a mode that is none": ({"mode": "dense"}, HyperparameterError, "mode='dense': it must be 'lazy' or 'exact'"),
    "last_step in the lazy mode": ({"mode": "lazy"}, HyperparameterError, "last_step is given with mode='lazy'"),
    "a learning rate below zero": ({"lr": -1}, HyperparameterError, "lr=-1"),
    "a scale that is infinite": ({"grad_scale": np.inf}, HyperparameterError, "grad_scale"),
    "a history that is a number": ({"history": 3}, HyperparameterError, "history=3: it must be a RowHistory"),
    "a history without pairs": ({"history": [na.Hyperparameters()]}, HyperparameterError, "it must be a pair"),
    "a history of numbers": ({"history": [(1, 0.1)]}, HyperparameterError, "it must be a pair"),
    "a history that goes back": (
        {"history": [(5, na.Hyperparameters()), (2, na.Hyperparameters(lr=1))]},
        HyperparameterError,
        "knows of step 5 already",
    ),
    "a history that begins too late": ({"history": [(5, na.Hyperparameters())]}, HyperparameterError, "missed step 3"),
}


@pytest.mark.parametrize("name", WRONG)
def test_unsuitable_arguments_are_refused(given, name):
    change, error, message = WRONG[name]
    given |= change
    before = {key: value.tobytes() for key, value in given.items() if isinstance(value, np.ndarray)}
    with pytest.raises(error, match=message):
        call(given)
    assert {key: value.tobytes() for key, value in given.items() if isinstance(value, np.ndarray)} == before


@pytest.mark.parametrize(
    ("one", "other"),
    [("param", "exp_avg"), ("param", "grad_rows"), ("exp_avg_sq", "max_exp_avg_sq"), ("max_exp_avg_sq", "grad_rows")],
)
def test_arrays_that_share_memory_are_refused(given, one, other):
    given[other] = given[one][:2] if other == "grad_rows" else given[one]
    before = given["param"].tobytes()
    with pytest.raises(OverlapError, match="share memory"):
        call(given)
    assert given["param"].tobytes() == before


def test_a_last_step_within_the_table_is_refused(given):
    given["last_step"] = given["param"].reshape(-1)[:10].view(np.int64)
    with pytest.raises(OverlapError, match="last_step"):
        call(given)


def test_a_refused_call_does_not_change_the_history(given):
    history = RowHistory([(1, na.Hyperparameters(amsgrad=True))])
    given |= {"history": history, "rows": np.array([4, 9])}
    with pytest.raises(ArrayError):
        call(given)
    given |= {"rows": np.array([4, 1]), "step": 6, "lr": 0.5}
    with pytest.raises(HyperparameterError):
        call(given)
    assert history.entries == ((1, na.Hyperparameters(amsgrad=True)),)


def test_a_history_in_the_lazy_mode_is_refused(given):
    given |= {"mode": "lazy", "last_step": None, "history": RowHistory()}
    with pytest.raises(HyperparameterError, match="history is given with mode='lazy'"):
        call(given)


def test_rows_newer_than_the_step_are_refused(given):
    moments = given["exp_avg"], given["exp_avg_sq"]
    with pytest.raises(HyperparameterError, match=r"step=5, and last_step\[0\] is 6.*from 0 to 5"):
        adam_catch_up_rows(given["param"], None, *moments, 5, last_step=given["last_step"])
    adam_catch_up_rows(given["param"], [1, 2, 3], *moments, 5, last_step=given["last_step"])
    assert given["last_step"].tolist() == [6, 5, 5, 5, 6]


def test_the_correct_call_is_accepted(given):
    """Checks that the tests above can fail."""
    call(given)
    assert given["last_step"].tolist() == [6, 7, 0, 1, 7]
