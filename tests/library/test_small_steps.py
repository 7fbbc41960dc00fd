"""What a small step costs besides its elements, counted in Python calls, which no busy machine changes."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest

import numba_adam as na


def _array() -> np.ndarray[Any, Any]:
    return np.ones(10, dtype=np.float32)


def _calls(function: Any) -> list[str]:
    """Return the names of the Python functions that a call of `function` calls."""
    called: list[str] = []

    def note(frame: Any, event: str, _: object) -> None:
        if event == "call":
            called.append(frame.f_code.co_name)

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        function()
    finally:
        sys.setprofile(before)
    return called


FORMS = {
    "one array": lambda arrays: arrays[0],
    "a list": lambda arrays: arrays,
    "a tuple": tuple,
    "a dict": lambda arrays: {f"w{index}": array for index, array in enumerate(arrays)},
}


@pytest.mark.parametrize("form", FORMS)
def test_a_small_step_calls_few_functions(form):
    given = FORMS[form]
    optimizer, grads = na.Adam(given([_array()])), given([_array()])
    optimizer.step(grads)
    called = _calls(lambda: optimizer.step(grads))
    assert len(called) <= 26, called


def test_a_small_step_that_clips_its_norm_calls_few_functions():
    optimizer, grads = na.Adam([_array()]), [_array()]
    optimizer.step(grads, max_grad_norm=1.0)
    called = _calls(lambda: optimizer.step(grads, max_grad_norm=1.0))
    assert len(called) <= 52, called


def test_a_step_of_many_arrays_calls_as_many_functions_as_a_step_of_one():
    one, grad = na.Adam([_array()]), [_array()]
    many, grads = na.Adam([_array() for _ in range(100)]), [_array() for _ in range(100)]
    one.step(grad)
    many.step(grads)
    assert len(_calls(lambda: many.step(grads))) == len(_calls(lambda: one.step(grad)))
