"""The oracle of the number formats: exact rounding by table lookup, and one step in plain NumPy.

Constants and random numbers are those of oracles of their own. No bit of a float is looked at here but to read a code's
value.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np
from constants_reference import Constants, as_real, fold
from random_reference import rounding_bits, stream_key

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
DTYPES = {  # what arrays of each format come as
    "float32": np.dtype(np.float32),
    "float64": np.dtype(np.float64),
    "bfloat16": BFLOAT16,
    "bfloat16 as uint16": np.dtype(np.uint16),
    "float16": np.dtype(np.float16),
}
_CODES = np.arange(65_536, dtype=np.uint16)
# The value of every code from 0 up to infinity's, which counts as the power of two that the next code would have.
_BEYOND = {"bfloat16": 2.0**128, "float16": 65_536.0}
_LADDER = {
    "bfloat16": np.append(_CODES[:0x7F80].view(BFLOAT16).astype(np.float64), _BEYOND["bfloat16"]),
    "float16": np.append(_CODES[:0x7C00].view(np.float16).astype(np.float64), _BEYOND["float16"]),
}


def format_of(array: np.ndarray) -> str:
    """Return an array's format."""
    return "bfloat16" if array.dtype == np.uint16 else array.dtype.name


def widen(array: np.ndarray) -> np.ndarray:
    """Return an array's exact values: float64 for a float64 array, otherwise float32."""
    if array.dtype == np.uint16:
        array = array.view(BFLOAT16)
    return array.astype(np.float64 if array.dtype == np.float64 else np.float32)


def codes_around(values: np.ndarray, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the codes below and above each magnitude, and its relative position between them."""
    ladder = _LADDER[name]
    magnitude = np.minimum(np.abs(values.astype(np.float64)), ladder[-1])
    below = np.minimum(np.searchsorted(ladder, magnitude, side="right") - 1, len(ladder) - 2)
    return below, below + 1, (magnitude - ladder[below]) / (ladder[below + 1] - ladder[below])


def nearest(values: np.ndarray, name: str) -> np.ndarray:
    """Return the codes, uint16, nearest to values without NaN; ties go to the even code."""
    below, above, part = codes_around(values, name)
    upwards = (part > 0.5) | ((part == 0.5) & (above % 2 == 0))
    return (np.where(upwards, above, below) | np.where(np.signbit(values), 0x8000, 0)).astype(np.uint16)


def at_random(values: np.ndarray, random: np.ndarray) -> np.ndarray:
    """Return bfloat16 codes, rounded away from zero if the discarded part exceeds the complement of 16 random bits."""
    below, above, part = codes_around(values, "bfloat16")
    upwards = part * 65_536 + (random & np.uint32(0xFFFF)) >= 65_536
    return (np.where(upwards, above, below) | np.where(np.signbit(values), 0x8000, 0)).astype(np.uint16)


def encode(values: np.ndarray, dtype: np.dtype, random: np.ndarray | None = None) -> np.ndarray:
    """Return values as an array of a dtype, rounded to nearest, or stochastically if random bits are given."""
    if dtype.itemsize > 2:
        return values.astype(dtype)
    name = "float16" if dtype == np.float16 else "bfloat16"
    codes = nearest(values, name) if random is None or name == "float16" else at_random(values, random)
    return np.where(np.isnan(values), 0x7FC0 if name == "bfloat16" else 0x7E00, codes).astype(np.uint16).view(dtype)


def bits(array: np.ndarray) -> bytes:
    """Return an array's bits, with all NaNs made equal."""
    values = widen(np.asarray(array))
    return np.where(np.isnan(values), np.nan, values).tobytes()


@dataclass
class Twin:
    """The oracle of one parameter in an optimizer; takes the arguments of `Adam`."""

    param: np.ndarray
    state: str | None = None
    hyperparameters: dict[str, Any] = field(default_factory=dict)
    rounding: str = "nearest"
    seed: int = 0
    place: int = 0
    master_weights: bool = False
    ema_decay: float | None = None
    low_precision_copy: str | None = None

    def __post_init__(self) -> None:
        name = format_of(self.param)
        state = DTYPES[self.state or ("float64" if name == "float64" else "float32")]
        self.real = np.dtype("float64" if np.float64 in (self.param.dtype, state) else "float32")
        self.param = self.param.copy()
        narrow = self.param.dtype.itemsize == 2
        self.master = widen(self.param).astype(np.float32) if self.master_weights and narrow else None
        self.ema = None if self.ema_decay is None else widen(self.param).astype(self.real)
        self.copy: np.ndarray | None = None
        self.exp_avg = np.zeros(self.param.shape, state)
        self.exp_avg_sq, self.max_exp_avg_sq = self.exp_avg.copy(), self.exp_avg.copy()
        self.steps = 0

    def step(self, grad: np.ndarray, grad_scale: float = 1.0, clip_value: float = 0.0) -> None:
        """Make one step."""
        self.steps += 1
        c = self._constants(grad_scale, clip_value)
        old = self.param if self.master is None else self.master
        arrays = (old, grad, self.exp_avg, self.exp_avg_sq, self.max_exp_avg_sq)
        with np.errstate(all="ignore"):
            values = _adam(*(widen(a).astype(self.real) for a in arrays), c, self.hyperparameters.get("amsgrad"))
            self._keep(*values)

    def _constants(self, grad_scale: float, clip_value: float) -> Constants:
        """Return the constants of this step. A moment's floor belongs to the narrower of its formats."""
        range_ = "float32" if self.exp_avg.dtype == np.float32 else self.real.name
        return as_real(fold(self.hyperparameters, self.steps, range_, grad_scale, clip_value), self.real)

    def _keep(self, param: np.ndarray, *moments: np.ndarray) -> None:
        """Round the results of a step and store them."""
        if self.ema is not None:
            decay = self.real.type(self.ema_decay), self.real.type(1.0 - self.ema_decay)
            self.ema = decay[0] * self.ema + decay[1] * param
        if self.low_precision_copy is not None:
            stored = param.astype(np.float32) if self.param.dtype == np.float32 else param
            self.copy = encode(stored, DTYPES[self.low_precision_copy])
        names = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")
        for column, (name, values) in enumerate(zip(names, moments, strict=True), 1):
            setattr(self, name, encode(values, self.exp_avg.dtype, self._random(column)))
        if self.master is None:
            self.param = encode(param, self.param.dtype, self._random(0))
        else:
            self.master = param.astype(np.float32)
            self.param = encode(self.master, self.param.dtype)

    def _random(self, column: int) -> np.ndarray | None:
        if self.rounding == "nearest":
            return None
        key = stream_key(self.seed, self.steps, self.place, column)
        return rounding_bits(key, self.param.size).reshape(self.param.shape)


def _adam(p, g, m, v, largest, c, amsgrad):  # type: ignore[no-untyped-def]
    """Return param and moments after one step, every operation rounded on its own."""
    g = c.grad_scale * g
    g = np.clip(g, -c.clip_value, c.clip_value) if c.clip_value else g
    g = g + c.weight_decay * p if c.weight_decay else g
    m = c.beta1 * m + c.one_minus_beta1 * g
    v = c.beta2 * v + c.one_minus_beta2 * g * g
    is_lost, zero = np.abs(m) < c.exp_avg_floor, m.dtype.type(0)
    m, v = np.where(is_lost, zero, m), np.where(v < c.exp_avg_sq_floor, zero, v)
    v = np.where(~is_lost & (v < c.least_exp_avg_sq), c.least_exp_avg_sq, v)
    largest = np.where(largest >= v, largest, v) if amsgrad else largest
    denom = np.sqrt(largest if amsgrad else v) + c.eps
    p = p - c.decoupled_decay * p if c.decoupled_decay else p
    return p - c.step_size * m / denom, m, v, largest


def values_of(size: int, dtype: np.dtype, seed: int, spread: float = 8.0) -> np.ndarray:
    """Return numbers of both signs over many powers of two, as an array of a dtype."""
    rng = np.random.default_rng(seed)
    return encode(rng.normal(size=size) * np.exp2(rng.uniform(-spread, 2, size)), dtype)


def is_supported(param: str, state: str, master_weights: bool = False) -> bool:
    """Return whether a parameter of this dtype may have this state format."""
    if param == "float64":
        return state in ("float32", "float64")
    return param == "float32" or master_weights or state != "float64"


COMBINATIONS = list(itertools.product(DTYPES, DTYPES, ("float32", "float64", "bfloat16")))
