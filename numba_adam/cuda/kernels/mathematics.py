"""The functions of `numerics`, compiled for a GPU: the element mathematics and the codecs. `fold` adds the constants.

These functions stand once, as plain Python, for every backend. So they cannot be closures that a CUDA builder makes:
`bind` gives each the GPU's product and square root in place of the names that its module has.
"""

from __future__ import annotations

import functools
from inspect import isfunction
from typing import Any, NamedTuple

from numba_adam.cuda import seam
from numba_adam.cuda.kernels.layout import Layout
from numba_adam.numerics import codecs, element, operations
from numba_adam.numerics.bind import bind


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
    functions = (getattr(element, name) for name in Mathematics._fields)
    return Mathematics(*[seam.device(bind(function, product=product, np=seam.arithmetic)) for function in functions])


@functools.cache
def codec(name: str) -> Any:
    """Return a function of `codecs`, compiled together with those of its neighbours that it calls."""
    if name in ("bits_of", "from_bits", "product"):
        return getattr(seam, name)
    function = getattr(codecs, name)
    called = [other for other in function.__code__.co_names if isfunction(getattr(codecs, other, None))]
    return seam.device(bind(function, **{other: codec(other) for other in called}))
