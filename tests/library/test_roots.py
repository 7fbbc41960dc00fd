"""A step's square roots are those of NumPy, bit for bit: of every mantissa, and of zeros, subnormals, infinity and NaN.

On some CPUs with AVX-512, some of the roots in the middle of an array are estimates, made exact. So each number stands
at several places of a long array. As a program, this file runs its tests: for another CPU's choice, see `on_cpu.py`.
"""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import numpy as np
import on_cpu
import pytest
import vector_features

import numba_adam as na
from numba_adam.cpu.kernels.vector_width import estimates_roots

LR, MANY_STEPS = 0.125, 10_000  # after so many steps with these betas, the bias corrections are 1
VECTOR, PLACES = 8, 4  # elements of a vector; vectors of which one may have estimated roots
SMALLEST = np.float32(2.0**-126)
BORDERS = [-126, -125, -124, -123, -103, -102, -101, -64, 0, 64, 100, 126]
SPECIAL = [0.0, -0.0, 2.0**-149, 3 * 2.0**-140, np.inf, np.nan, -1.0, -np.inf, -(2.0**-149)]


def everywhere(numbers):
    """Return an array that has a vector of `numbers` in each of several places."""
    return np.repeat(numbers.reshape(-1, 1, VECTOR), PLACES, axis=1).reshape(-1)


def step(exp_avg, exp_avg_sq, eps):
    """Return the parameters after a step from zero without gradients, with the moments halved."""
    param, grad = np.zeros_like(exp_avg), np.zeros_like(exp_avg)
    moments = exp_avg.copy(), exp_avg_sq.copy()
    na.adam_update(param, grad, *moments, MANY_STEPS, lr=LR, betas=(0.5, 0.5), eps=eps)
    return param, *moments


def stepped(exp_avg, exp_avg_sq, eps):
    """The same, written with NumPy's operations in float32."""
    half, eps = np.float32(0.5), max(np.float32(eps), SMALLEST)
    with np.errstate(all="ignore"):
        first, second = half * exp_avg, half * exp_avg_sq
        is_lost = np.abs(first) < np.float32(2.0**-96)
        first = np.where(is_lost, np.float32(0), first)
        second = np.where(second < SMALLEST, np.float32(0), second)
        second = np.where(~is_lost & (second < 4 * SMALLEST), 4 * SMALLEST, second)
        return np.float32(0) - np.float32(LR) * first / (np.sqrt(second) + eps), first, second


def assert_same_bits(ours, theirs):
    """Compare bits; NaN equals NaN."""
    for one, other in zip(ours, theirs, strict=True):
        differs = (one.view(np.uint32) != other.view(np.uint32)) & ~(np.isnan(one) & np.isnan(other))
        assert not differs.any(), (one[differs][:5], other[differs][:5])


@pytest.mark.parametrize("exponent", [0, 1])
def test_every_mantissa(exponent):
    """With an even and an odd exponent; the others differ by powers of two."""
    chunk = 2**16
    exp_avg = np.full(PLACES * chunk, 1.5, np.float32)
    for begin in range(0, 2**23, chunk):
        bits = np.arange(begin, begin + chunk, dtype=np.uint32) + np.uint32((128 + exponent) << 23)
        exp_avg_sq = everywhere(bits.view(np.float32))
        assert_same_bits(step(exp_avg, exp_avg_sq, 0.0), stepped(exp_avg, exp_avg_sq, 0.0))


@pytest.mark.parametrize("eps", [0.0, 1e-30, 1e-8])
@pytest.mark.parametrize("exponent", BORDERS)
def test_numbers_around_every_border(exponent, eps):
    bits = np.float32(2.0 ** (exponent + 1)).view(np.uint32)
    around = (bits + np.arange(-2048, 2048)).astype(np.uint32).view(np.float32)
    exp_avg_sq = everywhere(around)
    for first in (1.5, 2.0**-90, -(2.0**-95), 0.0):
        exp_avg = np.full_like(exp_avg_sq, first)
        assert_same_bits(step(exp_avg, exp_avg_sq, eps), stepped(exp_avg, exp_avg_sq, eps))


@pytest.mark.parametrize("number", SPECIAL)
@pytest.mark.parametrize("first", [1.5, 0.0, np.inf, np.nan])
def test_a_special_number_in_any_lane_changes_no_other(number, first):
    """Its neighbours in the vector, whose roots could be estimated, keep their bits too."""
    exp_avg_sq = np.random.default_rng(7).uniform(0.5, 2, (PLACES * VECTOR, 64)).astype(np.float32)
    exp_avg = np.ones_like(exp_avg_sq)
    for lane in range(PLACES * VECTOR):
        exp_avg_sq[lane, lane], exp_avg[lane, lane] = number, first
    for row in range(len(exp_avg_sq)):
        assert_same_bits(step(exp_avg[row], exp_avg_sq[row], 1e-8), stepped(exp_avg[row], exp_avg_sq[row], 1e-8))


@pytest.mark.parametrize(("size", "decay"), [*itertools.product((31, 32, 33, 64, 95, 1000), (0.0, 0.25))])
def test_decoupled_decay_at_every_size(size, decay):
    rng = np.random.default_rng(size)
    param, exp_avg = rng.normal(size=(2, size)).astype(np.float32)
    exp_avg_sq = (rng.uniform(0, 1, size) ** 40).astype(np.float32)  # many are below 2**-102
    expected = stepped(exp_avg, exp_avg_sq, 1e-8)
    start = param.copy()
    zeros = np.zeros_like(param)
    moments = exp_avg.copy(), exp_avg_sq.copy()
    options = {"lr": LR, "betas": (0.5, 0.5), "weight_decay": decay, "decoupled_weight_decay": True}
    na.adam_update(param, zeros, *moments, MANY_STEPS, **options)
    change = np.float32(0) - expected[0]
    assert_same_bits((param,), (start - np.float32(LR * decay) * start - change,))


@pytest.mark.skipif(len(vector_features.WIDTHS) < 2, reason="only CPUs with AVX-512 estimate roots")
def test_all_this_with_the_other_choice(run_python):
    other = on_cpu.WITH_ROOTS if estimates_roots() else on_cpu.WITH_ESTIMATED_ROOTS
    output = run_python(Path(on_cpu.__file__), other, __file__, str(not estimates_roots()))
    assert " passed" in output
    assert "failed" not in output


def main(*, estimated: bool) -> int:
    """Run the tests above, which must find this choice."""
    assert estimates_roots() == estimated
    own = f"not {test_all_this_with_the_other_choice.__name__}"
    return pytest.main([__file__, "-q", "-p", "no:cacheprovider", "-k", own])


if __name__ == "__main__":
    sys.exit(main(estimated=sys.argv[1] == "True"))
