"""Every kernel of the package, by name: its builder, the types of its arguments, and arguments for empty work.

The layouts differ in what the compiler sees. Each field of a layout has several values here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

from numba_adam.cuda.kernels import accumulate, fold, grid, norm, update
from numba_adam.cuda.kernels.formats import STOCHASTIC
from numba_adam.cuda.kernels.layout import COLUMNS, Layout

_BF16: dict[str, Any] = {"param": "bfloat16", "grad": "bfloat16", "exp_avg": "bfloat16", "exp_avg_sq": "bfloat16"}
_IN_8_BITS: dict[str, Any] = {"exp_avg": "8bit", "exp_avg_sq": "8bit"}
_EXTRAS: dict[str, Any] = {"max_exp_avg_sq": "float32", "ema": "float32", "copy": "bfloat16", "zero_grad": True}
LAYOUTS = {
    "float32": Layout(),
    "float32, everything": Layout(**_EXTRAS),
    "bfloat16": Layout(**_BF16),
    "bfloat16, stochastic": Layout(STOCHASTIC, "bfloat16"),
    "bfloat16 throughout, stochastic": Layout(STOCHASTIC, "bfloat16", STOCHASTIC, STOCHASTIC),
    "float16": Layout("float16", "float16"),
    "float64": Layout("float64", "float64", "float64", "float64", max_exp_avg_sq="float64"),
    "bfloat16 with float64 state": Layout("bfloat16", "bfloat16", "float64", "float64"),
    "8 bits": Layout(**_IN_8_BITS),
    "8 bits, bfloat16": Layout("bfloat16", "bfloat16", **_IN_8_BITS),
    "8 bits, everything": Layout(STOCHASTIC, "float16", **{**_IN_8_BITS, **_EXTRAS, "max_exp_avg_sq": "8bit"}),
    "float32, contracted": Layout(contract=True),
    "float64, contracted": Layout("float64", "float64", "float64", "float64", contract=True),
}
SUMS = {
    "float32": accumulate.layout("float32", "float32"),
    "bfloat16 into float32": accumulate.layout("float32", "bfloat16"),
    "float64": accumulate.layout("float64", "float64"),
}
WAYS = {"flat": grid.FLAT_ARGUMENTS, "table": grid.TABLE_ARGUMENTS}
SMALL: dict[str, tuple[Callable[[], Any], tuple[str, ...]]] = {
    "fold float32": (partial(fold.kernel, "float32"), fold.ARGUMENTS),
    "fold float64": (partial(fold.kernel, "float64"), fold.ARGUMENTS),
    "lanes float32": (partial(norm.lanes_kernel, "float32"), norm.LANES_ARGUMENTS),
    "lanes float64": (partial(norm.lanes_kernel, "float64"), norm.LANES_ARGUMENTS),
    "lanes bfloat16": (partial(norm.lanes_kernel, "bfloat16"), norm.LANES_ARGUMENTS),
    "lanes float16": (partial(norm.lanes_kernel, "float16"), norm.LANES_ARGUMENTS),
    "blocks": (norm.blocks_kernel, norm.BLOCKS_ARGUMENTS),
    "total": (norm.total_kernel, norm.TOTAL_ARGUMENTS),
}
ROOM = 16  # number of int64 for the arguments of empty work


class Kernel(NamedTuple):
    """One kernel."""

    name: str
    make: Callable[[], Any]
    types: tuple[str, ...]  # of its arguments, as in `seam.compile_ptx`
    nothing: Callable[[int], tuple[Any, ...]]  # takes the address of ROOM int64 of 1; returns arguments


def every_kernel() -> Iterator[Kernel]:
    """Yield all kernels. Each is compiled at its first launch."""
    for way, types in WAYS.items():
        for name, layout in LAYOUTS.items():
            yield Kernel(f"update {way}, {name}", partial(_way, update.kernels, layout, way), types, _NOTHING[way])
        for name, layout in SUMS.items():
            yield Kernel(f"sum {way}, {name}", partial(_way, accumulate.kernels, layout, way), types, _NOTHING[way])
    for name, (make, types) in SMALL.items():
        yield Kernel(name, make, types, _NOTHING[name.split()[0]])


def _way(kernels: Callable[[Layout], grid.Kernels], layout: Layout, way: str) -> Any:
    return getattr(kernels(layout), way)


def _fold_nothing(room: int) -> tuple[Any, ...]:
    """Return arguments that fold for no array. The step's record is still written."""
    nowhere = dict.fromkeys(fold.Step._fields, 0)
    return tuple(fold.Step(**{**nowhere, "treatment": room, "record": room + 8 * fold.TREATMENT})), 0, 0


_NOTHING: dict[str, Callable[[int], tuple[Any, ...]]] = {
    "flat": lambda room: ((0,) * COLUMNS, 0, room, room, room),  # the value 1 there means: skip the step
    "table": lambda room: (0, 0, 0, 0, 0, room, room, room),
    "fold": _fold_nothing,
    "lanes": lambda room: (0, 0, 0, 0, room, 0),
    "blocks": lambda room: (room, 0, 0),
    "total": lambda room: (room, 0, room + 8, 1, 0),
}
