"""The same training on a GPU and on the CPU, compared bit by bit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from lending import Interface

import numba_adam as na

SHAPES = ((5, 4), (31,), ())


def draw(seed: int, *dtypes: str, shapes: Sequence[tuple[int, ...]] = SHAPES, skip: int = 0) -> list[np.ndarray]:
    """Return random arrays of named dtypes; "uint16" means the bits of bfloat16.

    Their magnitudes span some powers of two. Each begins `skip` elements after a multiple of 64 bytes.
    """
    rng = np.random.default_rng(seed)
    arrays = []
    for shape, dtype in zip(shapes, dtypes, strict=False):
        values = rng.normal(size=shape) * np.exp(rng.uniform(-3, 3, shape))
        arrays.append(placed(rounded(np.array(values), dtype), skip))
    return arrays


def rounded(values: np.ndarray, dtype: str) -> np.ndarray:
    """Return numbers in a dtype."""
    if dtype != "uint16":
        return values.astype(dtype)
    return np.array(values.astype("f4").view("u4") >> np.uint32(16), "u2")


def placed(values: np.ndarray, skip: int) -> np.ndarray:
    """Return a copy that begins `skip` elements after a multiple of 64 bytes."""
    room = np.zeros(values.size + skip + 64, values.dtype)
    begin = -room.ctypes.data % 64 // room.itemsize + skip
    copy = room[begin : begin + values.size].reshape(values.shape)
    copy[...] = values
    return copy


def bits(array: np.ndarray) -> list[Any]:
    """Return an array's bits. All NaNs become equal, because their payloads differ between machines."""
    array = np.array(array)
    if array.dtype.kind == "f":
        array[np.isnan(array)] = np.nan
    return array.view(f"u{array.itemsize}").tolist()


def expect_same_state(ours: na.Adam, theirs: na.Adam) -> None:
    """Compare two optimizers' states, bit by bit."""
    states, expected = ours.state_dict()["state"], theirs.state_dict()["state"]
    assert set(states) == set(expected)
    for key, state in states.items():
        assert set(state) == set(expected[key])
        assert state["step"] == expected[key]["step"]
        for name in set(state) - {"step"}:
            assert type(state[name]) is np.ndarray
            assert state[name].dtype == expected[key][name].dtype
            assert bits(state[name]) == bits(expected[key][name]), name


def expect_same_training(
    dtypes: Sequence[str],
    on_cpu: Sequence[int] = (),
    steps: int = 3,
    call: dict[str, Any] | None = None,
    grad_dtypes: Sequence[str] | None = None,
    shapes: Sequence[tuple[int, ...]] = SHAPES,
    skip: int = 0,
    **options: Any,
) -> tuple[na.Adam, na.Adam]:
    """Train on the CPU, and with all arrays except those in `on_cpu` on a GPU; return both optimizers."""
    params, copies = (draw(1, *dtypes, shapes=shapes, skip=skip) for _ in range(2))

    def lend(arrays: list[np.ndarray]) -> list[Any]:
        return [array if k in on_cpu else Interface(array) for k, array in enumerate(arrays)]

    ours, theirs = na.AdamW(lend(params), **options), na.AdamW(copies, **options)
    for seed in range(2, 2 + steps):
        grads, again = (draw(seed, *(grad_dtypes or dtypes), shapes=shapes, skip=skip) for _ in range(2))
        result, expected = ours.step(lend(grads), **(call or {})), theirs.step(again, **(call or {}))
        assert (result.applied, result.grad_norm) == (expected.applied, expected.grad_norm)
        assert [bits(grad) for grad in grads] == [bits(grad) for grad in again]
    assert [bits(param) for param in params] == [bits(copy) for copy in copies]
    expect_same_state(ours, theirs)
    return ours, theirs
