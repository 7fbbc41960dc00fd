"""The update on a GPU, of arrays whose moments are in 8 bits; docs/eight-bit-state.md says what each bit means.

A block of 128 elements shares two scales, which are known only when the whole block has been updated. So 16
neighbouring threads take a block: each holds eight of its elements in registers, and they tell each other the largest
ratio and root they have, without memory in between. Memory is passed over once, and neighbouring threads ask for
neighbouring bytes.

Blocks begin at multiples of 128 of the array, wherever that lies. Where its parameters and gradients begin at multiples
of 16 bytes all but the last block moves by wide loads and stores; else elements move one by one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from numba_adam.cuda import seam
from numba_adam.cuda.kernels import access, grid
from numba_adam.cuda.kernels.formats import codec
from numba_adam.numerics import codecs
from numba_adam.numerics.bind import bind
from numba_adam.numerics.codecs import DITHER_STEP, RATIO_SPAN, ROOT_SPAN
from numba_adam.numerics.constants import without_floors
from numba_adam.numerics.eight_bit import BLOCK

# What `bind` fills in for a layout.
_update_lane: Any = None
_update_group: Any = None
_load_group: Any = None
_load_element: Any = None
_store_group: Any = None
_store_element: Any = None
_decode_group: Any = None
_encode_group: Any = None
_first_group: Any = None
_units_at: Any = None
_widen_group: Any = None
_clear_lanes: Any = None
_finish_lane: Any = None
_find_largest: Any = None
_narrow_group: Any = None
_store_units: Any = None
_dither_at: Any = None
_without_floors: Any = None
_HAS_MAX = False
_LANES = 8
_ZERO: Any = np.float32(0)

_WARP = 32  # threads that a GPU runs together
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
_eps_beside_blocks = seam.device(bind(codecs.eps_beside_blocks, np=seam.arithmetic))
_following_dither = codec("following_dither")
_threshold_of, _other_threshold = codec("threshold_of"), codec("other_threshold")


class Scales(NamedTuple):
    """Something of each of a block's moments: the scale that is stored, or the bits of the largest magnitude."""

    exp_avg: Any
    exp_avg_sq: Any
    max_exp_avg_sq: Any


def _units_of(place, index, end):  # type: ignore[no-untyped-def]
    """Return the scales of the block in which an element lies; zeros for a block beyond the end."""
    block = index // BLOCK
    exp_avg, exp_avg_sq, largest = _ZERO, _ZERO, _ZERO
    if block * BLOCK < end:
        exp_avg = _load_float32(place.exp_avg_scale + block * 4)
        exp_avg_sq = _load_float32(place.exp_avg_sq_scale + block * 4)
        if _HAS_MAX:
            largest = _load_float32(place.max_exp_avg_sq_scale + block * 4)
    return Scales(exp_avg, exp_avg_sq, largest)


def _widen(reals, codes, units):  # type: ignore[no-untyped-def]
    """Decode a group's moments."""
    for k in range(_LANES):
        root = _widen_root(codes.exp_avg_sq[k], units.exp_avg_sq)
        reals.exp_avg[k] = _widen_ratio(codes.exp_avg[k], units.exp_avg) * root
        reals.exp_avg_sq[k] = root * root
        if _HAS_MAX:
            root = _widen_root(codes.max_exp_avg_sq[k], units.max_exp_avg_sq)
            reals.max_exp_avg_sq[k] = root * root


def _clear(reals, first):  # type: ignore[no-untyped-def]
    """Set the lanes from `first` on to zero: they lie beyond the end, and must not be a block's largest."""
    for k in range(_LANES):
        if k >= first:
            reals.param[k] = reals.grad[k] = reals.exp_avg[k] = reals.exp_avg_sq[k] = _ZERO
            reals.max_exp_avg_sq[k] = reals.ema[k] = _ZERO


def _lane(reals, k, c):  # type: ignore[no-untyped-def]
    """Update one of the elements at work; its moments become their ratio and roots.

    That is done here, and not when all are updated, so that a compiler sees which roots `_update_lane` has taken.
    """
    _update_lane(reals, k, c)
    root = _sqrt(reals.exp_avg_sq[k])
    reals.exp_avg[k] = _ratio_of(reals.exp_avg[k], root)
    reals.exp_avg_sq[k] = root
    if _HAS_MAX:
        reals.max_exp_avg_sq[k] = _sqrt(reals.max_exp_avg_sq[k])


def _largest_of_group(reals):  # type: ignore[no-untyped-def]
    """Return the bits of the largest magnitudes of a group's ratios and roots."""
    ratios, roots, others = np.uint32(0), np.uint32(0), np.uint32(0)
    for k in range(_LANES):
        ratios = max(ratios, np.uint32(_bits_of(reals.exp_avg[k]) & _MAGNITUDE))
        roots = max(roots, _bits_of(reals.exp_avg_sq[k]))
        if _HAS_MAX:
            others = max(others, _bits_of(reals.max_exp_avg_sq[k]))
    return Scales(ratios, roots, others)


def _dither_of(key, index):  # type: ignore[no-untyped-def]
    """Return an element's dither, given that of the array's first."""
    return np.uint32((np.uint64(key) + np.uint64(index) * np.uint64(DITHER_STEP)) & _WORD)


def _narrow(reals, codes, largest, keys, index):  # type: ignore[no-untyped-def]
    """Encode a group's ratios and roots, given the largest of its block."""
    ratio_scale = _block_scale(_from_bits(largest.exp_avg), RATIO_SPAN)
    root_scale = _block_scale(_from_bits(largest.exp_avg_sq), ROOT_SPAN)
    dither = _dither_at(keys.dither, index)
    for k in range(_LANES):
        threshold = _threshold_of(dither)
        codes.exp_avg[k] = _narrow_ratio(reals.exp_avg[k], ratio_scale, _other_threshold(threshold))
        codes.exp_avg_sq[k] = _narrow_root(reals.exp_avg_sq[k], root_scale, threshold)
        dither = _following_dither(dither, DITHER_STEP)
    if _HAS_MAX:
        root_scale = _block_scale(_from_bits(largest.max_exp_avg_sq), ROOT_SPAN)
        dither = _dither_at(keys.max_dither, index)
        for k in range(_LANES):
            codes.max_exp_avg_sq[k] = _narrow_root(reals.max_exp_avg_sq[k], root_scale, _threshold_of(dither))
            dither = _following_dither(dither, DITHER_STEP)


def _store_scales(place, index, end, largest):  # type: ignore[no-untyped-def]
    """Write the scales of the block that begins with an element; nothing where none does."""
    block = index // BLOCK
    if block * BLOCK == index and index < end:
        unit = _block_unit(_from_bits(largest.exp_avg), RATIO_SPAN)
        _store_float32(place.exp_avg_scale + block * 4, unit)
        unit = _block_unit(_from_bits(largest.exp_avg_sq), ROOT_SPAN)
        _store_float32(place.exp_avg_sq_scale + block * 4, unit)
        if _HAS_MAX:
            unit = _block_unit(_from_bits(largest.max_exp_avg_sq), ROOT_SPAN)
            _store_float32(place.max_exp_avg_sq_scale + block * 4, unit)


def _group(place, index, end, is_wide, work):  # type: ignore[no-untyped-def]
    """Update a thread's share of a block, together with its neighbours.

    All of a warp's threads come here, those beyond the end too: they have zeros to tell.
    """
    reals, codes, c, keys = work
    if is_wide:
        _load_group(place, index, reals, codes)
    else:
        for k in range(_LANES):
            if index + k < end:
                _load_element(place, index + k, k, reals, codes)
    units = _units_at(place, index, end)
    _decode_group(reals, codes)
    _widen_group(reals, codes, units)
    if not is_wide:
        _clear_lanes(reals, end - index)
    for k in range(_LANES):
        _finish_lane(reals, k, c)
    found = _find_largest(reals)
    largest = Scales(
        _largest_of_segment(found.exp_avg),
        _largest_of_segment(found.exp_avg_sq),
        _largest_of_segment(found.max_exp_avg_sq) if _HAS_MAX else found.max_exp_avg_sq,
    )
    _narrow_group(reals, codes, largest, keys, index)
    _encode_group(reals, codes, keys, index)
    if is_wide:
        _store_group(place, index, reals, codes)
    else:
        for k in range(_LANES):
            if index + k < end:
                _store_element(place, index + k, k, reals, codes)
    _store_units(place, index, end, largest)


def _span(place, begin, end, thread, threads, work):  # type: ignore[no-untyped-def]
    """Update the elements of an array from `begin`, where a block begins, to `end`: one of so many threads' share.

    The threads of a warp go round together, as often as its first one has to.
    """
    reals, codes, c, keys = work
    floorless = (reals, codes, _without_floors(c, _eps_beside_blocks(c.eps, c.one_minus_beta2)), keys)
    is_aligned = _first_group(place, begin) == begin
    in_warp = thread % _WARP
    for first in range(begin + (thread - in_warp) * _LANES, end, threads * _LANES):
        index = first + in_warp * _LANES
        _update_group(place, index, end, is_aligned and index + _LANES <= end, floorless)


def pieces(names: Mapping[str, Any]) -> dict[str, Any]:
    """Return the names, with an `_update_span` for arrays in 8 bits beside."""
    return grid.compiled(
        names,
        {
            "_units_at": _units_of,
            "_widen_group": _widen,
            "_clear_lanes": _clear,
            "_finish_lane": _lane,
            "_find_largest": _largest_of_group,
            "_dither_at": _dither_of,
            "_narrow_group": _narrow,
            "_store_units": _store_scales,
            "_without_floors": without_floors,
            "_update_group": _group,
            "_update_span": _span,
        },
    )
