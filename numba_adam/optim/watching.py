"""Parameters whose owners may give them other memory or another layout between steps, as `tensor.data = ...` does.

NumPy arrays are not among them: the kernels look at their objects. Knows no framework.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from numba_adam.cuda.arrays import borrow_cuda, is_on_cuda, quick_layout
from numba_adam.errors import ArrayError
from numba_adam.interop.dispatch import layouts_function


class _Kind(NamedTuple):
    """The parameters of one kind."""

    layouts: Callable[[Sequence[Any]], object]  # says their addresses, shapes, strides and dtypes
    params: list[Any]
    seen: object  # what it said when they were borrowed


class Watch:
    """Some parameters, and how each lay in memory when they were borrowed."""

    def __init__(self, params: Iterable[object]) -> None:
        """Note how they lie; those that never change are passed over."""
        found: dict[Callable[[Sequence[Any]], object], list[object]] = {}
        for param in params:
            layouts = _layouts_on_gpu if is_on_cuda(param) else layouts_function(param)
            if layouts is not None:
                found.setdefault(layouts, []).append(param)
        self.kinds = [_Kind(layouts, of_kind, layouts(of_kind)) for layouts, of_kind in found.items()]
        """None where there is nothing to look at."""

    def sees_a_change(self) -> bool:
        """Say whether one of them lies otherwise now, or cannot be borrowed any more."""
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
