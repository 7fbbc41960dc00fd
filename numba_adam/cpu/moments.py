"""Moments in this host's memory: zeros at first, loaded from state dicts, and placed so that a step is fast.

A step reads and writes a parameter's arrays side by side. Large allocations begin at the same offset within a page, so
the low bits of their addresses agree. A CPU compares these bits to find out whether a load must wait for an earlier
store: every load would seem to. So each array here begins at another offset within its page. May import NumPy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from numba_adam.cpu.conversion import convert, decode, encode
from numba_adam.interop.axes import Axes, as_given, in_memory_order
from numba_adam.numerics.array import Array
from numba_adam.numerics.eight_bit import EightBit
from numba_adam.numerics.formats import Format
from numba_adam.settings.step_arrays import Moments

Moment = Array | EightBit

_PAGE_BYTES = 4096
_CACHE_LINE_BYTES = 64
_APART_BYTES = 21 * _CACHE_LINE_BYTES  # a third of a page: param, exp_avg, exp_avg_sq; the fourth is near the first
_LARGE_BYTES = 32_768  # smaller arrays stay in the L1 cache at any offset


def zeros(params: Sequence[Array], formats: Sequence[str], moment: int) -> list[Moment]:
    """Return a moment for each parameter, zero everywhere. The system allocates its pages when they are first written.

    Args:
        params: the parameters.
        formats: the name of the format for each: "float32", "float64", "bfloat16" or "8bit".
        moment: which of a parameter's moments they are: 1, 2 or 3.
    """
    return [_zeros(param, name, moment) for param, name in zip(params, formats, strict=True)]


def load_moments(states: Sequence[Mapping[str, Any]], params: Sequence[Any], formats: Sequence[str]) -> Moments:
    """Return copies of the moments in state dicts, each in a format by its name; zeros before the first step.

    Args:
        states: one for each parameter, as `in_memory_order` returned them; or empty.
        params: the parameters.
        formats: the name of the format of each parameter's moments.
    """
    triples = [_loaded(*each) for each in zip(states, params, formats, strict=True)]
    return Moments(*(list(column) for column in zip(*triples, strict=True)))


def _loaded(state: Mapping[str, Any], param: Array, name: str) -> tuple[Moment, Moment, Moment | None]:
    """Return copies of one parameter's three moments.

    Args:
        state: with "exp_avg", "exp_avg_sq" and perhaps "max_exp_avg_sq", in any format; or empty.
        param: the parameter.
        name: the format.
    """
    if not state:
        return _zeros(param, name, 1), _zeros(param, name, 2), None
    first, second = _decoded(state["exp_avg"], state["exp_avg_sq"])
    assert first is not None
    largest = _decoded(None, state["max_exp_avg_sq"])[1] if "max_exp_avg_sq" in state else None
    if name == "8bit":
        return _in_8_bits(state, first, second, largest)
    third = None if largest is None else _in_floats(largest, param, name, 3)
    return _in_floats(first, param, name, 1), _in_floats(second, param, name, 2), third


def state_in_memory_order(state: Mapping[str, Any], axes: Axes | None) -> dict[str, Any]:
    """Return a parameter's state with the parameter's order of axes in memory; arrays of another order are copied.

    Args:
        state: arrays with the parameter's shape, and moments in 8 bits whose codes have the axes that "axes" says.
        axes: the order in memory of the parameter's axes.
    """
    own = state.get("axes")
    state = {name: value for name, value in state.items() if name != "axes"}
    codes = state["exp_avg_sq"].codes if isinstance(state.get("exp_avg_sq"), EightBit) else None
    if codes is not None and not in_memory_order(as_given(codes, own), axes).flags.c_contiguous:
        state |= _in_floats_of(state, own)  # their blocks have other elements
    return {name: _turned(value, own, axes) for name, value in state.items()}


def _in_floats_of(state: Mapping[str, Any], axes: Axes | None) -> dict[str, Any]:
    """Return a state's moments in 8 bits as floats, with the parameter's shape."""
    first, second = decode(state["exp_avg"], state["exp_avg_sq"])
    floats = {"exp_avg": first, "exp_avg_sq": second}
    if isinstance(state.get("max_exp_avg_sq"), EightBit):
        floats["max_exp_avg_sq"] = decode(None, state["max_exp_avg_sq"])[1]
    return {name: as_given(array, axes) for name, array in floats.items()}


def _turned(value: Any, own: Axes | None, axes: Axes | None) -> Any:
    if isinstance(value, EightBit):
        return EightBit(in_memory_order(as_given(value.codes, own), axes), value.scales)
    if not isinstance(value, np.ndarray):
        return value
    array = in_memory_order(value, axes)
    return array if array.flags.c_contiguous else np.ascontiguousarray(array)


def _decoded(first: Any, second: Moment) -> tuple[Array | None, Array]:
    """Return two moments as floats; `first` may be None."""
    return decode(first, second) if isinstance(second, EightBit) else (first, second)


def _in_floats(array: Array, param: Array, name: str, moment: int) -> Array:
    own = zeros_beside(param, Format.named(name).dtype, moment)
    convert(array, own)
    return own


def _in_8_bits(
    state: Mapping[str, Any], first: Array, second: Array, largest: Array | None
) -> tuple[EightBit, EightBit, EightBit | None]:
    """Return three moments in 8 bits: the state's own codes where it has such."""
    own, own_largest = state["exp_avg_sq"], state.get("max_exp_avg_sq")
    pair = (state["exp_avg"].copy(), own.copy()) if isinstance(own, EightBit) else encode(first, second)
    if isinstance(own_largest, EightBit):
        return (*pair, own_largest.copy())
    return (*pair, None if largest is None else encode(None, largest)[1])


def converted(param: Array, name: str) -> Array:
    """Return a copy of a parameter, rounded to a format by its name."""
    copy = zeros_beside(param, Format.named(name).dtype, 0)
    convert(param, copy)
    return copy


def zeros_beside(param: Array, dtype: np.dtype[np.generic], thirds: int) -> Array:
    """Return zeros of a parameter's shape. Within a page they begin `thirds` thirds of a page behind the parameter."""
    size = param.size * dtype.itemsize
    if size < _LARGE_BYTES:
        return np.zeros(param.shape, dtype)
    memory = np.zeros(size + _PAGE_BYTES, dtype=np.uint8)
    wanted = param.ctypes.data // _CACHE_LINE_BYTES * _CACHE_LINE_BYTES + thirds * _APART_BYTES
    skip = (wanted - memory.ctypes.data) % _PAGE_BYTES
    return memory[skip : skip + size].view(dtype).reshape(param.shape)


def _zeros(param: Array, name: str, moment: int) -> Moment:
    if name == "8bit":
        return EightBit.zeros(param.shape)
    return zeros_beside(param, Format.named(name).dtype, moment)
