"""The encoding of 8-bit state: it matches an oracle that tries every code; zero stays zero; errors are bounded."""

from __future__ import annotations

from itertools import pairwise

import eight_bit_reference as reference
import numpy as np
import pytest

from numba_adam.cpu.conversion import decode, encode
from numba_adam.numerics import eight_bit_codecs as codecs
from numba_adam.numerics.eight_bit import EightBit

NEAREST = codecs.threshold_of(codecs.TO_NEAREST)
SIZES = (0, 1, 2, 127, 128, 129, 255, 256, 1000, 1023, 1024, 1025, 2500)


def magnitudes(kind: str, size: int, rng: np.random.Generator) -> np.ndarray:
    return {
        "normal": lambda: np.abs(rng.normal(size=size)),
        "over many powers": lambda: np.exp(rng.uniform(-25, 10, size)),
        "small": lambda: np.exp(rng.uniform(-34, -20, size)),
        "half zero": lambda: np.abs(rng.normal(size=size)) * rng.integers(0, 2, size),
        "equal": lambda: np.full(size, rng.random()),
        "zero": lambda: np.zeros(size),
    }[kind]().astype(np.float32)


KINDS = ("normal", "over many powers", "small", "half zero", "equal", "zero")


def moments(kind: str, size: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng([size, KINDS.index(kind)])
    roots = magnitudes(kind, size, rng)
    ratios = magnitudes(kind, size, rng) * rng.choice([-1, 1], size).astype(np.float32)
    return ratios * roots, roots * roots


def assert_same(own: EightBit, expected: reference.Codes) -> None:
    assert own.codes.tobytes() == expected.codes.tobytes()
    assert own.scales.tobytes() == expected.scales.tobytes()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", SIZES)
def test_encoding_takes_the_nearest_of_all_codes(size, kind):
    exp_avg, exp_avg_sq = moments(kind, size)
    own = encode(exp_avg, exp_avg_sq)
    expected = reference.encode_both(exp_avg, exp_avg_sq)
    for one, other in zip(own, expected, strict=True):
        assert_same(one, other)
    for one, other in zip(decode(*own), reference.decode_both(*expected), strict=True):
        assert one.tobytes() == other.tobytes()


def test_a_second_moment_alone_has_the_same_codes():
    exp_avg, exp_avg_sq = moments("normal", 1000)
    assert_same(encode(None, exp_avg_sq)[1], reference.encode_both(exp_avg, exp_avg_sq)[1])


def test_arrays_of_any_layout_have_the_same_codes():
    exp_avg, exp_avg_sq = (array.reshape(25, 40) for array in moments("normal", 1000))
    own = encode(np.asfortranarray(exp_avg), np.asfortranarray(exp_avg_sq))
    for one, other in zip(own, encode(exp_avg, exp_avg_sq), strict=True):
        assert_same(one, reference.Codes(other.codes, other.scales))


def test_encoding_does_not_change_its_input():
    exp_avg, exp_avg_sq = moments("normal", 300)
    before = exp_avg.tobytes(), exp_avg_sq.tobytes()
    encode(exp_avg, exp_avg_sq)
    assert (exp_avg.tobytes(), exp_avg_sq.tobytes()) == before


def test_every_code_decodes_to_its_value_in_the_table():
    codes = np.arange(256, dtype=np.uint8)
    scales = np.ones(2, np.float32)
    first, second = decode(EightBit(codes, scales), EightBit(np.full(256, 32, np.uint8), scales))
    signed = np.concatenate([reference.RATIOS, -reference.RATIOS])
    assert (first == signed * 2).all()  # code 32 is the root 2
    assert (second == 4).all()
    assert (decode(None, EightBit(codes, scales))[1] == reference.ROOTS**2).all()


@pytest.mark.parametrize("which", ["root", "ratio"])
def test_plain_codecs_keep_every_level_and_round_at_every_midpoint(which):
    """A scale of 1 does not change values, so levels, midpoints and their neighbours are exact."""
    narrow = getattr(codecs, f"narrow_{which}")
    table = reference.ROOTS if which == "root" else reference.RATIOS
    one = np.float32(1)
    for code, (value, following) in enumerate(pairwise(table)):
        middle = (value + following) / 2
        assert narrow(np.float32(value), one, NEAREST) == code
        assert narrow(np.float32(middle), one, NEAREST) == code + 1
        if code:  # a root that is not zero has no code 0, however near it is
            assert narrow(np.float32(middle - 2.0**-14), one, NEAREST) == code
        assert narrow(np.float32(value), one, np.uint32(2**18 - 1)) == code
        assert narrow(np.float32(following - 2.0**-14), one, np.uint32(0)) == max(code, which == "root")


def plain(exp_avg: np.ndarray, exp_avg_sq: np.ndarray, dithers: np.ndarray) -> list[np.ndarray]:
    """Encode one block with the plain functions; return the codes and their values."""
    roots = np.sqrt(exp_avg_sq)
    ratios = np.array([codecs.ratio_of(a, root) for a, root in zip(exp_avg, roots, strict=True)])
    columns = []
    for name, values, span, turn in (
        ("ratio", ratios, codecs.RATIO_SPAN, codecs.other_threshold),
        ("root", roots, codecs.ROOT_SPAN, lambda threshold: threshold),
    ):
        largest = np.abs(values).max()
        scale, unit = codecs.block_scale(largest, span), codecs.block_unit(largest, span)
        narrow, widen = getattr(codecs, f"narrow_{name}"), getattr(codecs, f"widen_{name}")
        thresholds = [turn(codecs.threshold_of(dither)) for dither in dithers]
        codes = [narrow(value, scale, threshold) for value, threshold in zip(values, thresholds, strict=True)]
        columns += [np.array(codes), np.array([widen(code, unit) for code in codes])]
    return columns


@pytest.mark.parametrize("kind", KINDS)
def test_plain_codecs_follow_the_threshold_rule_for_any_dither(kind):
    exp_avg, exp_avg_sq = moments(kind, 128)
    rng = np.random.default_rng(4)
    for _ in range(4):
        dithers = rng.integers(0, 2**32, 128, dtype=np.uint32)
        ratios, ratio_values, roots, root_values = plain(exp_avg, exp_avg_sq, dithers)
        first, second = reference.encode_both(exp_avg, exp_avg_sq, (dithers >> 14).astype(np.int64))
        assert ratios.tobytes() == first.codes.tobytes()
        assert roots.tobytes() == second.codes.tobytes()
        assert ratio_values.tobytes() == reference.ratios_of(first).tobytes()
        assert root_values.tobytes() == reference.roots_of(second).tobytes()


def test_the_dither_advances_by_the_documented_steps():
    dither = np.uint32(5)
    for step in range(1, 300):
        dither = codecs.following_dither(dither, codecs.DITHER_STEP)
        assert dither == (5 + step * 0xC13FA9A9) % 2**32
        threshold = codecs.threshold_of(dither)
        assert threshold == int(dither) >> 14
        assert int(codecs.other_threshold(threshold)) == 2**18 - 1 - int(threshold)


@pytest.mark.parametrize("kind", ["normal", "over many powers", "small", "half zero"])
def test_only_zero_has_code_0(kind):
    roots = np.sqrt(moments(kind, 128 * 50)[1])
    roots[::7] = 0
    codes = encode(None, roots * roots)[1].codes
    assert ((codes == 0) == (roots * roots == 0)).all()


def test_negative_zero_has_code_0_too():
    exp_avg_sq = np.array([1.0, -0.0, 0.0], np.float32)
    assert encode(None, exp_avg_sq)[1].codes.tolist() == [255, 0, 0]


def test_zeros_among_large_values_stay_zeros():
    exp_avg, exp_avg_sq = moments("over many powers", 1000)
    exp_avg[::3] = exp_avg_sq[::3] = 0
    for array in decode(*encode(exp_avg, exp_avg_sq)):
        assert (array[::3] == 0).all()


def test_a_tiny_root_among_large_ones_does_not_become_zero():
    exp_avg_sq = np.full(128, 1e-36, np.float32)
    exp_avg_sq[0] = 1.0
    codes = encode(None, exp_avg_sq)[1].codes
    assert codes[0] == 255
    assert (codes[1:] == 1).all()


def test_a_block_below_the_smallest_magnitude_decodes_to_zeros():
    roots = np.full(256, 2.0**-51, np.float32)
    roots[128] = 2.0**-50
    own = encode(None, roots * roots)[1]
    values = decode(None, own)[1]
    assert own.scales[0] == 0
    assert (values[:128] == 0).all()
    assert (values[128:] > 0).all()


def test_a_first_moment_without_a_second_is_lost():
    first, second = decode(*encode(np.ones(3, np.float32), np.array([0, 1, 4], np.float32)))
    assert first.tolist()[0] == 0
    assert second.tolist()[0] == 0
    np.testing.assert_allclose(first[1:], 1, rtol=0.05)


def test_the_largest_value_of_a_block_has_the_last_code():
    """In training too, except for 20 of 2**18 dithers, which give the code before."""
    rng = np.random.default_rng(6)
    exp_avg, exp_avg_sq = (np.exp(rng.uniform(-20, 20, 10_000)).astype(np.float32) for _ in range(2))
    padded = [np.zeros((10_000, 128), np.float32) for _ in range(2)]
    padded[0][:, 5], padded[1][:, 5] = exp_avg, exp_avg_sq
    first, second = encode(*padded)
    assert (first.codes[:, 5] == 127).all()
    assert (second.codes[:, 5] == 255).all()
    for largest in np.sqrt(exp_avg_sq[:100]):
        for narrow, span, last in (
            (codecs.narrow_root, codecs.ROOT_SPAN, 255),
            (codecs.narrow_ratio, codecs.RATIO_SPAN, 127),
        ):
            scale = codecs.block_scale(largest, span)
            codes = [int(narrow(largest, scale, np.uint32(dither))) for dither in (0, 19, 20, 2**18 - 1)]
            assert codes[0] == last - 1
            assert codes[1] in (last - 1, last)
            assert codes[2:] == [last, last]


def error_bound(values: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Return the documented bound, half the distance between codes around each value, plus a margin."""
    units = np.repeat(scales, reference.BLOCK)[: values.size].astype(np.float64)
    return (np.abs(values) + 2 * units) / 64 + np.abs(values) * 2.0**-19


@pytest.mark.parametrize("kind", ["normal", "over many powers", "half zero", "equal"])
def test_errors_are_at_most_half_the_distance_between_codes(kind):
    exp_avg, exp_avg_sq = moments(kind, 128 * 100)
    first, second = encode(exp_avg, exp_avg_sq)
    roots = np.sqrt(exp_avg_sq).astype(np.float64)
    values = np.sqrt(decode(first, second)[1].astype(np.float64))
    units = np.repeat(second.scales, reference.BLOCK)
    lifted = (roots > 0) & (roots < units / 32)  # these would be nearer to zero
    error = np.abs(values - roots)
    assert (error <= np.where(lifted, units / 16, error_bound(roots, second.scales)) * (1 + 1e-6)).all()
    ratios = np.divide(exp_avg, np.sqrt(exp_avg_sq), out=np.zeros_like(exp_avg), where=exp_avg_sq > 0)
    own = reference.ratios_of(reference.Codes(first.codes, first.scales)).astype(np.float64)
    assert (np.abs(own - ratios) <= error_bound(ratios, first.scales)).all()


@pytest.mark.parametrize("kind", ["normal", "over many powers", "half zero"])
def test_decoding_and_encoding_keeps_every_code(kind):
    once = encode(*moments(kind, 128 * 100))
    again = encode(*decode(*once))
    for one, other in zip(once, again, strict=True):
        zero_is_zero = one.codes & 127 != 0 if other is again[0] else True
        assert (np.where(zero_is_zero, one.codes == other.codes, True)).all()
        np.testing.assert_allclose(one.scales, other.scales, rtol=2.0**-21)
