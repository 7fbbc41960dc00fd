"""The oracle of the 8-bit state: docs/eight-bit-state.md in NumPy, slow and obvious.

It knows the tables of values, the blocks, the scales and the dither as the document gives them, and no bit of a float.
The constants of a step and the generator that a seed stands for come from oracles of their own.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import NamedTuple

import numpy as np
from constants_reference import as_real, fold
from random_reference import stream_key

BLOCK = 128
SMALLEST = np.float32(2.0**-50)
LEVELS = np.array([2.0 ** (1 + code // 32) * (1 + code % 32 / 32) for code in range(256)])  # values are these less 2
ROOTS, RATIOS = LEVELS - 2, LEVELS[:128] - 2
NEAREST = 2**17  # the dither of rounding to nearest, of 2**18
SECOND, LARGEST = 2, 3  # the columns of the two moments whose dither is drawn


class Codes(NamedTuple):
    """A moment in 8 bits."""

    codes: np.ndarray
    scales: np.ndarray


def pieces(size):
    """Return the slices of an array's blocks."""
    return [slice(start, min(size, start + BLOCK)) for start in range(0, size, BLOCK)]


def scaled(values, span):
    """Return a block's scaled elements, in float64, and its stored scale."""
    largest = values.max()
    if largest < SMALLEST:
        return np.full(values.shape, 2.0), np.float32(0)
    scale = np.float32(span) * np.float32(1 - 2.0**-20) / largest
    return (values * scale + np.float32(2)).astype(np.float64), largest / np.float32(span)


def nearest(y, levels):
    """Return the index of the level nearest to each y, by trying all; a tie takes the upper level."""
    distances = np.abs(y[:, None] - levels[None, :])
    return levels.size - 1 - np.argmin(distances[:, ::-1], axis=1)


def dithered(y, levels, dither):
    """Return the index of the level below each y, or of the one above if fraction plus dither reach 1."""
    below = np.searchsorted(levels, y, side="right") - 1
    width = np.append(np.diff(levels), np.inf)[below]
    return below + ((y - levels[below]) / width * 2**18 + dither >= 2**18)


def encode(values, span, dither=None):
    """Encode magnitudes; `dither` has 18 bits for each, None rounds to nearest."""
    levels = LEVELS[: 1 + np.searchsorted(LEVELS, span + 2.0)]
    codes, scales = np.zeros(values.size, np.int64), []
    for piece in pieces(values.size):
        y, unit = scaled(values[piece], span)
        codes[piece] = nearest(y, levels) if dither is None else dithered(y, levels, dither[piece])
        scales.append(unit)
    return codes, np.array(scales, np.float32)


def encode_roots(roots, dither=None):
    """Encode the roots of second moments."""
    codes, scales = encode(roots, 502, dither)
    codes = np.where(roots == 0, 0, np.maximum(codes, 1))
    return Codes(codes.astype(np.uint8), scales)


def encode_ratios(ratios, dither=None):
    """Encode ratios."""
    codes, scales = encode(np.abs(ratios), 29.5, dither)
    return Codes((codes + 128 * np.signbit(ratios)).astype(np.uint8), scales)


def encode_both(exp_avg, exp_avg_sq, dither=None):
    """Encode both moments."""
    roots = np.sqrt(exp_avg_sq)
    ratios = exp_avg / np.where(roots == 0, np.float32(np.inf), roots)
    return encode_ratios(ratios, None if dither is None else 2**18 - 1 - dither), encode_roots(roots, dither)


def scales_of(moment):
    """Return each element's scale."""
    return np.repeat(moment.scales, BLOCK)[: moment.codes.size]


def roots_of(moment):
    """Decode roots."""
    return ROOTS.astype(np.float32)[moment.codes] * scales_of(moment)


def ratios_of(moment):
    """Decode ratios."""
    magnitude = RATIOS.astype(np.float32)[moment.codes & 127] * scales_of(moment)
    return np.where(moment.codes & 128, -magnitude, magnitude)


def decode_both(exp_avg, exp_avg_sq):
    """Decode both moments to float32."""
    roots = roots_of(exp_avg_sq)
    return ratios_of(exp_avg) * roots, roots * roots


def dither_of(size, seed, step, place, column=SECOND):
    """Return 18 bits for each element of a parameter's moment in a step."""
    first = stream_key(seed, 0, place, column) + step * 0x9E3779B9
    return ((first + np.arange(size, dtype=np.uint64) * 0xC13FA9A9) % 2**32 >> np.uint64(14)).astype(np.int64)


class State(NamedTuple):
    """The state of one parameter."""

    exp_avg: Codes
    exp_avg_sq: Codes
    max_exp_avg_sq: Codes | None


def empty(size, amsgrad=False):
    """Return the state before the first step."""
    codes = Codes(np.zeros(size, np.uint8), np.zeros(-(-size // BLOCK), np.float32))
    return State(codes, codes, codes if amsgrad else None)


def moments_after(param, grad, exp_avg, exp_avg_sq, c):
    """Return both moments after a gradient, in float32, one operation after the other."""
    grad = c.grad_scale * grad
    if c.clip_value:
        grad = np.clip(grad, -c.clip_value, c.clip_value)
    if c.weight_decay:
        grad = grad + c.weight_decay * param
    return c.beta1 * exp_avg + c.one_minus_beta1 * grad, c.beta2 * exp_avg_sq + c.one_minus_beta2 * grad * grad


def step(param, grad, state, hyperparameters, number, *, seed=0, place=0, grad_scale=1.0, clip_value=0.0):
    """Return the parameter, in float32, and its state after step `number`; both arrays are flat and float32."""
    c = as_real(fold(asdict(hyperparameters), number, "float32", grad_scale, clip_value), np.dtype(np.float32))
    lost = np.sqrt(SMALLEST * SMALLEST / c.one_minus_beta2)  # the root of what blocks stored as zeros may lose
    eps = c.eps + lost if c.eps < 1024 * lost else c.eps
    exp_avg, exp_avg_sq = moments_after(param, grad, *decode_both(state.exp_avg, state.exp_avg_sq), c)
    terrain, largest = exp_avg_sq, None
    if state.max_exp_avg_sq is not None:
        terrain = np.maximum(roots_of(state.max_exp_avg_sq) ** 2, exp_avg_sq)
        largest = encode_roots(np.sqrt(terrain), dither_of(param.size, seed, number, place, LARGEST))
    if c.decoupled_decay:
        param = param - c.decoupled_decay * param
    param = param - c.step_size * exp_avg / (np.sqrt(terrain) + eps)
    return param, State(*encode_both(exp_avg, exp_avg_sq, dither_of(param.size, seed, number, place)), largest)
