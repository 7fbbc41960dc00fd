"""Detects, cheaply before each step, parameters whose storage was replaced, as `tensor.data = ...` does.

NumPy arrays are skipped, because the kernels check their objects. Knows no framework.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from numba_adam.cuda.arrays import borrow_cuda, is_on_cuda, quick_layout
from numba_adam.errors import ArrayError
from numba_adam.interop.dispatch import layouts_function


class _Kind(NamedTuple):
    """The parameters of one kind."""

    layouts: Callable[[Sequence[Any]], object]  # returns their addresses, shapes, strides and dtypes
    params: list[Any]
    seen: object  # their layouts when they were borrowed


class Watch:
    """Some parameters, and their layouts in memory when they were borrowed."""

    def __init__(self, params: Iterable[object]) -> None:
        """Note their layouts; skip parameters whose storage cannot be replaced."""
        found: dict[Callable[[Sequence[Any]], object], list[object]] = {}
        for param in params:
            layouts = _layouts_on_gpu if is_on_cuda(param) else layouts_function(param)
            if layouts is not None:
                found.setdefault(layouts, []).append(param)
        self.kinds = [_Kind(layouts, of_kind, layouts(of_kind)) for layouts, of_kind in found.items()]
        """Empty if there is nothing to check."""

    def sees_a_change(self) -> bool:
        """Return whether a layout has changed, or a parameter cannot be borrowed any more."""
        try:
            return any(layouts(params) != seen for layouts, params, seen in self.kinds)
        except ArrayError:
            return True


def _layouts_on_gpu(params: Sequence[Any]) -> object:
    """Return the layouts of arrays on GPUs."""
    return [quick_layout(param) or _layout(param) for param in params]


def _layout(param: Any) -> object:
    lent = borrow_cuda(param, name="params", writable=True, any_order=True)
    return lent.address, lent.shape, lent.strides, lent.format, lent.device
