"""The codecs of the 16-bit formats, plain and compiled, compared with oracles that search the nearest number."""

from __future__ import annotations

from fractions import Fraction

import formats_reference as oracle
import ml_dtypes
import numba
import numpy as np
import pytest
from random_reference import rounding_bits

from numba_adam.cpu.conversion import convert
from numba_adam.cpu.kernels import formats as compiled
from numba_adam.numerics import codecs, random_numbers

CODES = np.arange(65_536, dtype=np.uint16)
DTYPES = {"bfloat16": np.dtype(ml_dtypes.bfloat16), "float16": np.dtype(np.float16)}
PLAIN = {
    "bfloat16": (codecs.widen_bfloat16, codecs.narrow_bfloat16),
    "float16": (codecs.widen_float16, codecs.narrow_float16),
}
SEED = 20_240_611
names = pytest.mark.parametrize("name", DTYPES)


def bits(values):
    return np.asarray(values, np.float32).view(np.uint32)


def of_bits(words):
    return np.asarray(words, np.uint32).view(np.float32)


def narrow_compiled(values, name):
    codes = np.zeros(len(values), DTYPES[name])
    convert(np.ascontiguousarray(values), codes)
    return codes.view(np.uint16)


def narrow_plain(values, name):
    return np.array([PLAIN[name][1](value) for value in values], np.uint16)


def ties(name):
    """Return every float32 number halfway between two neighbours of a format."""
    ladder = oracle._LADDER[name]
    halves = ((ladder[1:] + ladder[:-1]) / 2).astype(np.float32)
    return halves[halves.astype(np.float64) == (ladder[1:] + ladder[:-1]) / 2]


def hard(name):
    """Return float32 values without NaN: around every code, every tie, and random bits."""
    own = CODES.view(DTYPES[name]).astype(np.float32)
    rng = np.random.default_rng(SEED)
    around = np.concatenate([own[np.isfinite(own)], ties(name), -ties(name)])
    infinity = np.float32(np.inf)
    near = [np.nextafter(around, infinity), np.nextafter(around, -infinity)]
    special = of_bits([0, 1, 2, 0x7F7FFFFF, 0x7F800000, 0x477FF000, 0x477FEFFF, 0x33000000, 0x33000001, 0x387FE000])
    anything = of_bits(rng.integers(0, 2**32, 200_000, dtype=np.uint32))
    values = np.concatenate([around, *near, special, -special, anything])
    return values[~np.isnan(values)]


@names
def test_every_code_decodes_to_its_value(name):
    expected = CODES.view(DTYPES[name]).astype(np.float32)
    found = np.empty(65_536, np.float32)
    convert(CODES.view(DTYPES[name]), found)
    plain = np.array([PLAIN[name][0](code) for code in CODES], np.float32)
    assert plain.tobytes() == found.tobytes()
    numbers = ~np.isnan(expected)
    assert (bits(found)[numbers] == bits(expected)[numbers]).all()
    assert np.isnan(found[~numbers]).all()
    assert (np.signbit(found) == (CODES >= 0x8000)).all()


@names
def test_every_decoded_value_encodes_to_the_same_code(name):
    wide = CODES.view(DTYPES[name]).astype(np.float32)
    numbers = ~np.isnan(wide)
    assert (narrow_compiled(wide, name)[numbers] == CODES[numbers]).all()
    assert (narrow_plain(wide[::7], name)[numbers[::7]] == CODES[::7][numbers[::7]]).all()


@names
def test_encoding_rounds_to_the_nearest_code(name):
    values = hard(name)
    expected = oracle.nearest(values, name)
    assert (narrow_compiled(values, name) == expected).all(), f"seed {SEED}"
    with np.errstate(over="ignore"):
        assert (values.astype(DTYPES[name]).view(np.uint16) == expected).all(), "the oracles disagree"


@names
def test_plain_python_encodes_like_the_compiled_code(name):
    values = np.random.default_rng(SEED).choice(hard(name), 20_000, replace=False)
    assert (narrow_plain(values, name) == narrow_compiled(values, name)).all(), f"seed {SEED}"


@names
def test_the_oracle_matches_exact_fractions(name):
    """Compares the distances to all nearby codes as exact fractions."""
    rng = np.random.default_rng(SEED)
    values = rng.choice(hard(name), 300, replace=False)
    ladder = oracle._LADDER[name]
    for value, code in zip(values[np.isfinite(values)], oracle.nearest(values[np.isfinite(values)], name), strict=True):
        place = int(code) & 0x7FFF
        near = range(max(0, place - 2), min(len(ladder), place + 3))
        distances = {other: abs(Fraction(float(ladder[other])) - abs(Fraction(float(value)))) for other in near}
        best = [other for other in near if distances[other] == min(distances.values())]
        assert place == (best[0] if len(best) == 1 else next(other for other in best if other % 2 == 0)), value


@names
def test_every_tie_rounds_to_the_even_code(name):
    middle = ties(name)
    assert len(middle) > 30_000
    codes = narrow_compiled(middle, name)
    assert (codes % 2 == 0).all()
    assert (narrow_compiled(-middle, name) == codes + 0x8000).all()


@names
def test_a_nan_stays_a_nan_with_its_sign(name):
    rng = np.random.default_rng(SEED)
    words = np.concatenate([[0x7F800001, 0x7FFFFFFF, 0x7FC00000, 0x7F80FFFF], rng.integers(0x7F800001, 2**31, 5_000)])
    words = np.concatenate([words, words + 2**31]).astype(np.uint32)
    codes = narrow_compiled(of_bits(words), name)
    wide = CODES.view(DTYPES[name]).astype(np.float32)
    assert np.isnan(wide[codes]).all()
    assert ((codes >= 0x8000) == (words >= 2**31)).all()
    assert (narrow_plain(of_bits(words[::50]), name) == codes[::50]).all()


@names
def test_large_values_become_infinite_and_small_ones_zero(name):
    ladder, infinity = oracle._LADDER[name], {"bfloat16": 0x7F80, "float16": 0x7C00}[name]
    limit, half = np.float32(ladder[-2] / 2 + ladder[-1] / 2), np.float32(ladder[1] / 2)
    large = np.float32([limit, np.nextafter(limit, np.float32(0)), np.inf, -np.inf])
    assert narrow_compiled(large, name).tolist() == [infinity, infinity - 1, infinity, infinity + 0x8000]
    small = np.float32([half, -half, np.nextafter(half, np.float32(1)), 2 * half])
    assert narrow_compiled(small, name).tolist() == [0, 0x8000, 1, 1]


# --- two bfloat16 in a word ---


@numba.njit
def pairs_of(lower, upper, words):
    for i in range(words.size):
        words[i] = compiled.pair_of_bfloat16(lower[i], upper[i])


@numba.njit
def halves_of(words, lower, upper):
    for i in range(words.size):
        lower[i], upper[i] = compiled.lower_bfloat16(words[i]), compiled.upper_bfloat16(words[i])


def test_pairs_in_a_word_encode_like_single_values():
    lower = hard("bfloat16")
    upper = np.random.default_rng(SEED).permutation(lower)
    words = np.empty(len(lower), np.uint32)
    pairs_of(lower, upper, words)
    assert (words & 0xFFFF == oracle.nearest(lower, "bfloat16")).all()
    assert (words >> 16 == oracle.nearest(upper, "bfloat16")).all()
    plain = [codecs.pair_of_bfloat16(*pair) for pair in zip(lower[:2_000], upper[:2_000], strict=True)]
    assert words[:2_000].tolist() == plain


def test_pairs_in_a_word_decode_like_single_values():
    words = np.random.default_rng(SEED).integers(0, 2**32, 10_000, dtype=np.uint32)
    lower, upper = np.empty((2, len(words)), np.float32)
    halves_of(words, lower, upper)
    assert (bits(lower) == words << 16).all()
    assert (bits(upper) == words & 0xFFFF0000).all()
    assert bits([codecs.lower_bfloat16(word) for word in words[:500]]).tolist() == bits(lower[:500]).tolist()
    assert bits([codecs.upper_bfloat16(word) for word in words[:500]]).tolist() == bits(upper[:500]).tolist()


def test_a_bfloat16_nan_in_a_pair_stays_a_nan():
    codes = np.concatenate([np.arange(0x7F81, 0x8000), np.arange(0xFF81, 0x10000)]).astype(np.uint32)
    values, words = of_bits(codes << 16), np.empty(len(codes), np.uint32)
    pairs_of(values, values[::-1].copy(), words)
    assert (words & 0xFFFF == codes).all()
    assert (words >> 16 == codes[::-1]).all()


# --- rounding at random ---


@numba.njit
def narrow_with(values, randoms, codes):
    for i in range(values.size):
        codes[i] = compiled.narrow_bfloat16_stochastic(values[i], randoms[i])


def at_random(values, randoms):
    values = np.ascontiguousarray(np.broadcast_to(np.float32(values), randoms.shape))
    codes = np.empty(randoms.shape, np.uint16)
    narrow_with(values, randoms, codes)
    return codes


@pytest.mark.parametrize("value", [1.0000001, 3.14159, -2.7182817, 1e-39, -1e-45, 1e-20, 3.38e38, 0.9999999, 1.0])
def test_the_mean_of_stochastic_rounding_is_the_value(value):
    """Exactly: counts all 65,536 relevant random numbers."""
    codes = at_random(value, np.arange(65_536, dtype=np.uint32))
    numbers = codes.view(ml_dtypes.bfloat16).astype(np.float64)
    below, above, _ = oracle.codes_around(np.float32([value]), "bfloat16")
    assert set((codes & 0x7FFF).tolist()) <= {int(below[0]), int(above[0])}
    assert Fraction(float(np.float32(value))) == sum(map(Fraction, numbers.tolist())) / 65_536


def test_stochastic_rounding_takes_the_neighbour_that_the_bits_select():
    values = hard("bfloat16")
    values = values[np.isfinite(values)]
    randoms = np.random.default_rng(SEED).integers(0, 2**32, len(values), dtype=np.uint32)
    found = at_random(values, randoms)
    assert (found == oracle.at_random(values, randoms)).all(), f"seed {SEED}"
    plain = [codecs.narrow_bfloat16_stochastic(*pair) for pair in zip(values[:5_000], randoms[:5_000], strict=True)]
    assert found[:5_000].tolist() == plain


def test_stochastic_rounding_keeps_bfloat16_values():
    wide = CODES.view(ml_dtypes.bfloat16).astype(np.float32)
    for random in (0, 1, 0x8000, 0xFFFF, 0xFFFFFFFF):
        found = at_random(wide, np.full(65_536, random, np.uint32))
        numbers = ~np.isnan(wide)
        assert (found[numbers] == CODES[numbers]).all()
        assert np.isnan(wide[found[~numbers]]).all()


# --- random numbers ---


@numba.njit
def pairs_at_random(lower, upper, randoms, words):
    for i in range(words.size):
        words[i] = compiled.pair_of_bfloat16_stochastic(lower[i], upper[i], randoms[i])


def test_a_pair_is_rounded_with_the_two_halves_of_a_word():
    values = hard("bfloat16")
    values = values[np.isfinite(values)]
    randoms = np.random.default_rng(SEED).integers(0, 2**32, len(values), dtype=np.uint32)
    words, other = np.empty(len(values), np.uint32), values[::-1].copy()
    pairs_at_random(values, other, randoms, words)
    assert (words & 0xFFFF == at_random(values, randoms)).all(), f"seed {SEED}"
    assert (words >> 16 == at_random(other, randoms >> 16)).all(), f"seed {SEED}"
    plain = [codecs.pair_of_bfloat16_stochastic(*each) for each in zip(values[:999], other, randoms, strict=False)]
    assert words[:999].tolist() == plain


@numba.njit
def draw_to_round(key, words):
    for i in range(words.size):
        words[i] = compiled.rounding_word(key, np.uint32(i))


def drawn_to_round(key, count):
    """Return the 16 bits that round each element."""
    words = np.empty(count // 2, np.uint32)
    draw_to_round(np.uint32(key), words)
    return np.stack([words & 0xFFFF, words >> 16], axis=1).ravel()


@pytest.mark.parametrize("key", [0, 1, 0x9E3779B9, 2**32 - 1])
def test_the_bits_that_round_are_the_oracles(key):
    assert (drawn_to_round(key, 2_000) == rounding_bits(key, 2_000)).all()
    for first in (0, 2**32 - 500, 123_456_789):
        plain = [random_numbers.rounding_bits(np.uint32(key), np.uint32((first + i) % 2**32)) for i in range(500)]
        assert plain == rounding_bits(key, 500, first).tolist()


KEYS = (0, 1, 2, 0xDEADBEEF)


@pytest.mark.parametrize("key", KEYS)
def test_the_bits_that_round_fill_their_range_evenly(key):
    """Chi-squared over each byte, for even and odd elements apart; 6 deviations of 22.6 are let. The mean likewise."""
    bits = drawn_to_round(key, 1 << 19)
    for side in (bits[::2], bits[1::2]):
        for shift in (0, 8):
            seen = np.bincount(side >> shift & 0xFF, minlength=256)
            chi_squared = ((seen - side.size / 256) ** 2 / (side.size / 256)).sum()
            assert 255 - 6 * 22.6 < chi_squared < 255 + 6 * 22.6, shift
        assert abs(side.mean() - 32_767.5) < 6 * 65_536 / np.sqrt(12 * side.size)


@pytest.mark.parametrize("bit", range(16))
def test_each_bit_that_rounds_is_unrelated_to_its_neighbours(bit):
    """In time (the keys of following steps), between the arrays of a parameter and between elements; 6 deviations."""
    count = 1 << 17
    keys = [int(random_numbers.stream_key(0, step, 0, column)) for step in (1, 2) for column in (0, 1)]
    streams = [(drawn_to_round(key, count) >> bit & 1) - 0.5 for key in (*keys, 5, 6, 5 ^ 1, 7)]
    pairs = [(one, other) for k, one in enumerate(streams) for other in streams[:k]]
    pairs += [(streams[0][:-lag], streams[0][lag:]) for lag in (1, 2, 3, 4, 8, 16, 32, 64, 128, 512, 1_024, 65_536)]
    for one, other in pairs:
        assert abs((one * other).mean() * 4) < 6 / np.sqrt(len(one))


def test_halves_of_a_word_are_unrelated():
    """Every bit of the lower half with every bit of the upper one."""
    bits = drawn_to_round(9, 1 << 18).reshape(-1, 2)
    lower, upper = ((bits[:, side, None] >> np.arange(16)) & 1 for side in (0, 1))
    correlation = (2.0 * lower - 1).T @ (2.0 * upper - 1) / len(bits)
    assert np.abs(correlation).max() < 6 / np.sqrt(len(bits))


@pytest.mark.parametrize("value", [1.001, -3.14159, 1e-30])
def test_the_mean_of_many_roundings_is_the_value(value):
    """By the numbers that steps draw. A rounding deviates by at most half a step, so the mean by that / sqrt(n)."""
    count = 1 << 18
    numbers = at_random(value, drawn_to_round(3, count)).view(ml_dtypes.bfloat16).astype(np.float64)
    step = np.ptp(numbers)
    assert step > 0
    assert abs(numbers.mean() - np.float64(np.float32(value))) < 6 * step / 2 / np.sqrt(count)


@numba.njit
def draw(key, first, out):
    for i in range(out.size):
        out[i] = compiled.random_bits(key, np.uint32(first + np.uint32(i)))


@numba.njit
def key_of(seed, step, place, column):
    return compiled.stream_key(seed, step, place, column)


def drawn(key, count, first=0):
    out = np.empty(count, np.uint32)
    draw(np.uint32(key), np.uint32(first), out)
    return out


def test_random_numbers_are_equal_in_plain_and_compiled_code():
    for key in (0, 1, 0x9E3779B9, 2**32 - 1):
        for first in (0, 2**32 - 500, 123_456_789):
            plain = [random_numbers.random_bits(np.uint32(key), np.uint32((first + i) % 2**32)) for i in range(1_000)]
            assert drawn(key, 1_000, first).tolist() == plain


def test_keys_are_equal_in_plain_and_compiled_code_and_distinct():
    seeds, steps, places = (0, 1, 2**31, 2**32, 2**63 - 1), (1, 2, 2**32, 2**53), (0, 1, 2, 70_000)
    whole = [(seed, step, place, column) for seed in seeds for step in steps for place in places for column in range(6)]
    keys = [int(random_numbers.stream_key(*each)) for each in whole]
    assert keys == [int(key_of(*each)) for each in whole]
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize("key", [0, 1, 2, 0xDEADBEEF])
def test_random_numbers_are_uniform(key):
    """Chi-squared over the values of each byte: 255 degrees of freedom have a deviation of 22.6, of which 6 are let."""
    count = 1 << 18
    numbers = drawn(key, count)
    assert len(np.unique(numbers)) == count  # every index has its own number
    for shift in (0, 8, 16, 24):
        seen = np.bincount((numbers >> shift) & 0xFF, minlength=256)
        chi_squared = ((seen - count / 256) ** 2 / (count / 256)).sum()
        assert 255 - 6 * 22.6 < chi_squared < 255 + 6 * 22.6, shift


def test_neighbouring_random_numbers_and_keys_are_uncorrelated():
    """The correlation of n independent numbers deviates from 0 by 1 / sqrt(n); 6 deviations are let."""
    count = 1 << 16

    def part(numbers):
        return (numbers & np.uint32(0xFFFF)).astype(np.float64) - 32_767.5

    streams = [part(drawn(key, count)) for key in (5, 6, int(random_numbers.stream_key(0, 1, 0, 0)), 5 ^ 1)]
    pairs = [(streams[0], streams[k]) for k in (1, 2, 3)]
    pairs += [(streams[0][:-lag], streams[0][lag:]) for lag in (1, 2, 3, 4, 16, 64, 1_024)]
    for one, other in pairs:
        assert abs(np.corrcoef(one, other)[0, 1]) < 6 / np.sqrt(len(one))
