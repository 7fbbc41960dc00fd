"""The functions of `numerics`, compiled for a GPU. No other module here binds names.

These functions stand once, as plain Python, for every backend. So they are no closures that a builder makes: `bind`
replaces the names that a GPU needs other functions for, the product and the square root.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from inspect import isfunction
from typing import Any, NamedTuple

from numba_adam.cuda import seam
from numba_adam.cuda.kernels.layout import Layout
from numba_adam.numerics import codecs, eight_bit_codecs, element, operations, random_numbers
from numba_adam.numerics.bind import bind


def compiled(function: Callable[..., Any], **names: Any) -> Any:
    """Return a function of `numerics`, compiled, with some of its module's names replaced."""
    return seam.device(bind(function, **names))


class Mathematics(NamedTuple):
    """The functions of `element` by their names, compiled."""

    moments: Any
    largest: Any
    adapt: Any
    average: Any


@functools.cache
def mathematics(layout: Layout) -> Mathematics:
    """Return the element mathematics for a layout."""
    product = seam.product if layout.real == "float32" else seam.product64
    if layout.contract:
        product = seam.device(operations.product)
    operands = {"product": product, "root": seam.arithmetic.sqrt, "choose": seam.device(operations.choose)}
    return Mathematics(*[compiled(getattr(element, name), **operands) for name in Mathematics._fields])


@functools.cache
def codec(name: str) -> Any:
    """Return a function of the codecs or the random numbers, compiled together with the functions that it calls."""
    if name in ("bits_of", "from_bits", "product"):
        return getattr(seam, name)
    module = next(module for module in (codecs, eight_bit_codecs, random_numbers) if hasattr(module, name))
    function = getattr(module, name)
    called = [other for other in function.__code__.co_names if isfunction(getattr(module, other, None))]
    return compiled(function, **{other: codec(other) for other in called})
