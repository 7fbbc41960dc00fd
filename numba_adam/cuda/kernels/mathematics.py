"""The functions of `element`, compiled for a GPU."""

from __future__ import annotations

from typing import Any

from numba_adam.cuda import seam
from numba_adam.cuda.kernels.layout import Layout
from numba_adam.numerics import element, operations
from numba_adam.numerics.bind import bind


def mathematics(layout: Layout) -> dict[str, Any]:
    """Return the functions of `element`, compiled for a layout, by their names with a line before."""
    product = seam.product if layout.real == "float32" else seam.product64
    if layout.contract:
        product = seam.device(operations.product)
    names = {"product": product, "np": seam.arithmetic}
    return {
        f"_{function.__name__}": seam.device(bind(function, **names))
        for function in (element.moments, element.largest, element.adapt, element.average)
    }
