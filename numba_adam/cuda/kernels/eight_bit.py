"""The update of arrays with 8-bit moments on a GPU. docs/eight-bit-state.md explains every bit.

A block of 128 elements shares two scales, which are known only when the whole block has been updated. So 16
neighbouring threads take a block. Each holds eight of its elements in registers; they exchange the largest ratio and
root by warp shuffles. Memory is passed over once, and neighbouring threads load neighbouring bytes.

Blocks begin at multiples of 128 elements of the array, wherever that is aligned. Where its parameters and gradients are
aligned to 16 bytes, all blocks but the last one move by wide loads and stores; else elements move one by one.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from numba_adam.cuda import seam
from numba_adam.cuda.kernels import access, formats
from numba_adam.cuda.kernels.columns import columns
from numba_adam.cuda.kernels.layout import Layout
from numba_adam.cuda.kernels.mathematics import codec, compiled
from numba_adam.numerics import constants, eight_bit_codecs
from numba_adam.numerics.eight_bit import BLOCK
from numba_adam.numerics.eight_bit_codecs import DITHER_STEP, RATIO_SPAN, ROOT_SPAN

_LANES = formats.LANES["float32"]  # 8-bit moments are computed in float32 alone
_ZERO = np.float32(0)
_WARP = 32  # threads that run in lockstep
_MAGNITUDE = np.uint32(0x7FFFFFFF)
_WORD = np.uint64(0xFFFFFFFF)
_load_float32, _store_float32 = access.scalar("float32")
_bits_of, _from_bits = seam.bits_of, seam.from_bits
_largest_of_segment = seam.largest_of_segment
_sqrt = seam.arithmetic.sqrt
_widen_root, _widen_ratio = codec("widen_root"), codec("widen_ratio")
_narrow_root, _narrow_ratio = codec("narrow_root"), codec("narrow_ratio")
_block_unit, _block_scale = codec("block_unit"), codec("block_scale")
_ratio_of = codec("ratio_of")
_eps_beside_blocks = compiled(eight_bit_codecs.eps_beside_blocks, np=seam.arithmetic)
_following_dither = codec("following_dither")
_threshold_of, _other_threshold = codec("threshold_of"), codec("other_threshold")
_without_floors = compiled(constants.without_floors)


class Scales(NamedTuple):
    """A value for each of a block's moments: its stored scale, or the bits of its largest magnitude."""

    exp_avg: Any
    exp_avg_sq: Any
    max_exp_avg_sq: Any


def span(layout: Layout, update_lane: Any) -> Any:
    """Return the compiled function that updates a thread's share of an array, given the one that updates an element."""
    update_group, first_group = _group(layout, update_lane), columns(layout).first_group

    @seam.device
    def update_span(addresses, begin, end, thread, threads, work):  # type: ignore[no-untyped-def]
        """Update the elements of an array from `begin`, where a block begins, to `end`: one of so many threads' share.

        A warp's threads iterate together, as often as its first thread has to.
        """
        reals, codes, c, keys = work
        floorless = (reals, codes, _without_floors(c, _eps_beside_blocks(c.eps, c.one_minus_beta2)), keys)
        is_aligned = first_group(addresses, begin) == begin
        in_warp = thread % _WARP
        for first in range(begin + (thread - in_warp) * _LANES, end, threads * _LANES):
            index = first + in_warp * _LANES
            update_group(addresses, index, end, is_aligned and index + _LANES <= end, floorless)

    return update_span


def _group(layout: Layout, update_lane: Any) -> Any:
    has_max, move = bool(layout.max_exp_avg_sq), columns(layout)
    load_group, load_element, store_group, store_element, decode, encode, _ = move
    scales_at, store_scales = _scales_at(has_max), _store_scales(has_max)
    widen, narrow = _widen(has_max), _narrow(has_max)
    finish_lane, find_largest = _finish_lane(has_max, update_lane), _find_largest(has_max)

    @seam.device
    def update_group(addresses, index, end, is_wide, work):  # type: ignore[no-untyped-def]
        """Update a thread's share of a block, together with its neighbours.

        All of a warp's threads come here, those beyond the end too: they contribute zeros.
        """
        reals, codes, c, keys = work
        if is_wide:
            load_group(addresses, index, reals, codes)
        else:
            for k in range(_LANES):
                if index + k < end:
                    load_element(addresses, index + k, k, reals, codes)
        scales = scales_at(addresses, index, end)
        decode(reals, codes)
        widen(reals, codes, scales)
        if not is_wide:
            _clear(reals, end - index)
        for k in range(_LANES):
            finish_lane(reals, k, c)
        found = find_largest(reals)
        largest = Scales(
            _largest_of_segment(found.exp_avg),
            _largest_of_segment(found.exp_avg_sq),
            _largest_of_segment(found.max_exp_avg_sq) if has_max else found.max_exp_avg_sq,
        )
        narrow(reals, codes, largest, keys, index)
        encode(reals, codes, keys, index)
        if is_wide:
            store_group(addresses, index, reals, codes)
        else:
            for k in range(_LANES):
                if index + k < end:
                    store_element(addresses, index + k, k, reals, codes)
        store_scales(addresses, index, end, largest)

    return update_group


def _scales_at(has_max: bool) -> Any:
    @seam.device
    def scales_at(addresses, index, end):  # type: ignore[no-untyped-def]
        """Return the scales of an element's block; zeros for a block beyond the end."""
        block = index // BLOCK
        exp_avg, exp_avg_sq, largest = _ZERO, _ZERO, _ZERO
        if block * BLOCK < end:
            exp_avg = _load_float32(addresses.exp_avg_scale + block * 4)
            exp_avg_sq = _load_float32(addresses.exp_avg_sq_scale + block * 4)
            if has_max:
                largest = _load_float32(addresses.max_exp_avg_sq_scale + block * 4)
        return Scales(exp_avg, exp_avg_sq, largest)

    return scales_at


def _widen(has_max: bool) -> Any:
    @seam.device
    def widen(reals, codes, scales):  # type: ignore[no-untyped-def]
        """Decode a group's moments."""
        for k in range(_LANES):
            root = _widen_root(codes.exp_avg_sq[k], scales.exp_avg_sq)
            reals.exp_avg[k] = _widen_ratio(codes.exp_avg[k], scales.exp_avg) * root
            reals.exp_avg_sq[k] = root * root
            if has_max:
                root = _widen_root(codes.max_exp_avg_sq[k], scales.max_exp_avg_sq)
                reals.max_exp_avg_sq[k] = root * root

    return widen


@seam.device
def _clear(reals, first):  # type: ignore[no-untyped-def]
    """Set the lanes from `first` on to zero: they are beyond the end, and must not be a block's largest."""
    for k in range(_LANES):
        if k >= first:
            reals.param[k] = reals.grad[k] = reals.exp_avg[k] = reals.exp_avg_sq[k] = _ZERO
            reals.max_exp_avg_sq[k] = reals.ema[k] = _ZERO


def _finish_lane(has_max: bool, update_lane: Any) -> Any:
    @seam.device
    def finish_lane(reals, k, c):  # type: ignore[no-untyped-def]
        """Update one of the elements at work; its moments become their ratio and roots.

        The roots are taken here, lane by lane, so that the compiler sees which of them `update_lane` has taken.
        """
        update_lane(reals, k, c)
        root = _sqrt(reals.exp_avg_sq[k])
        reals.exp_avg[k] = _ratio_of(reals.exp_avg[k], root)
        reals.exp_avg_sq[k] = root
        if has_max:
            reals.max_exp_avg_sq[k] = _sqrt(reals.max_exp_avg_sq[k])

    return finish_lane


def _find_largest(has_max: bool) -> Any:
    @seam.device
    def find_largest(reals):  # type: ignore[no-untyped-def]
        """Return the bits of the largest magnitudes of a group's ratios and roots."""
        ratios, roots, others = np.uint32(0), np.uint32(0), np.uint32(0)
        for k in range(_LANES):
            ratios = max(ratios, np.uint32(_bits_of(reals.exp_avg[k]) & _MAGNITUDE))
            roots = max(roots, _bits_of(reals.exp_avg_sq[k]))
            if has_max:
                others = max(others, _bits_of(reals.max_exp_avg_sq[k]))
        return Scales(ratios, roots, others)

    return find_largest


@seam.device
def _dither_at(key, index):  # type: ignore[no-untyped-def]
    """Return an element's dither, given that of the array's first element."""
    return np.uint32((np.uint64(key) + np.uint64(index) * np.uint64(DITHER_STEP)) & _WORD)


def _narrow(has_max: bool) -> Any:
    @seam.device
    def narrow(reals, codes, largest, keys, index):  # type: ignore[no-untyped-def]
        """Encode a group's ratios and roots, given the largest of its block."""
        ratio_scale = _block_scale(_from_bits(largest.exp_avg), RATIO_SPAN)
        root_scale = _block_scale(_from_bits(largest.exp_avg_sq), ROOT_SPAN)
        dither = _dither_at(keys.dither, index)
        for k in range(_LANES):
            threshold = _threshold_of(dither)
            codes.exp_avg[k] = _narrow_ratio(reals.exp_avg[k], ratio_scale, _other_threshold(threshold))
            codes.exp_avg_sq[k] = _narrow_root(reals.exp_avg_sq[k], root_scale, threshold)
            dither = _following_dither(dither, DITHER_STEP)
        if has_max:
            root_scale = _block_scale(_from_bits(largest.max_exp_avg_sq), ROOT_SPAN)
            dither = _dither_at(keys.max_dither, index)
            for k in range(_LANES):
                codes.max_exp_avg_sq[k] = _narrow_root(reals.max_exp_avg_sq[k], root_scale, _threshold_of(dither))
                dither = _following_dither(dither, DITHER_STEP)

    return narrow


def _store_scales(has_max: bool) -> Any:
    @seam.device
    def store_scales(addresses, index, end, largest):  # type: ignore[no-untyped-def]
        """Store the scales of the block that begins with an element, if one does."""
        block = index // BLOCK
        if block * BLOCK == index and index < end:
            unit = _block_unit(_from_bits(largest.exp_avg), RATIO_SPAN)
            _store_float32(addresses.exp_avg_scale + block * 4, unit)
            unit = _block_unit(_from_bits(largest.exp_avg_sq), ROOT_SPAN)
            _store_float32(addresses.exp_avg_sq_scale + block * 4, unit)
            if has_max:
                unit = _block_unit(_from_bits(largest.max_exp_avg_sq), ROOT_SPAN)
                _store_float32(addresses.max_exp_avg_sq_scale + block * 4, unit)

    return store_scales
