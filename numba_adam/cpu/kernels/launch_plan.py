"""What a launch works through: the arrays of many parameters, and the plan of one step. Imports Numba.

Passing an array from Python to a kernel costs a tenth of a microsecond, and a plan has two dozen of them. So a kernel
is passed one array, which contains the address and the length of each.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import types
from numba.core.typing.templates import AttributeTemplate
from numba.extending import infer_getattr, intrinsic, lower_getattr_generic, models, register_model
from numba.np.arrayobj import make_array

from numba_adam.cpu.kernels.constants import CONSTANTS, SETTINGS
from numba_adam.cpu.kernels.intrinsics import build_array
from numba_adam.numerics.norm import SUM_BLOCK

Array = np.ndarray[Any, np.dtype[Any]]

PARAM, EXP_AVG, EXP_AVG_SQ, MAX_EXP_AVG_SQ, EMA, COPY = range(6)  # columns of `addresses` and `formats`
SCALE = 6  # columns from a moment in 8 bits to the scales of its blocks
COLUMNS = 2 * SCALE
ZERO_GRAD, IS_STOCHASTIC, SEED, KERNEL, IS_LARGE = range(5)  # entries of `options`; `prepare` fills the last two
OPTIONS = 5
MIXED, PLAIN, BARE = range(3)  # KERNEL: any step; all arrays of the compute dtype; of these a step that `is_bare`
LARGE = 2**21  # elements of a step, at least 16 bytes each: no cache keeps them until the next step
OWNER = 4


class LaunchPlan(NamedTuple):
    """The arrays of n parameters in g param groups, and the plan of a step."""

    # What is updated.
    addresses: Array  # (n, COLUMNS) uint64; 0: there is no such array
    formats: Array  # (n, COLUMNS) int64: the number format of each array
    plain: Array  # (n,) int64: 1 if all arrays have the compute dtype and there is neither an EMA nor a copy
    numbers: Array  # (n,) int64: each parameter's index in its optimizer, which random numbers depend on
    options: Array  # (OPTIONS,) int64
    lengths: Array  # (n,) int64: number of elements
    groups: Array  # (n,) int64: each parameter's row of `settings`
    settings: Array  # (g, SETTINGS) float64: `Settings`

    # What a gradient must be, and the memory that it must not share.
    kinds: Array  # uint64: the addresses of None, of the type ndarray and of dtypes, see `gather.kinds`
    shapes: Array  # int64: the shapes, one after the other
    strides: Array  # int64: the strides, in elements, in the same order
    starts: Array  # (n + 1,) int64: where each shape begins in `shapes`
    begins: Array  # (m,) uint64: the beginning of each separate range of memory in use, ascending
    ends: Array  # (m,) uint64: its end
    objects: Array  # (n,) uint64: addresses of the gradients' array objects

    # Array objects of the caller that must not have changed since they were validated.
    owners: Array  # (n, OWNER) uint64: addresses of each object (0: none), its elements, its dtype; item bytes
    copies: Array  # (c, OWNER) uint64: the same for low-precision copies; item bytes unused

    # The step. `prepare` returns the number of parameters that have a gradient; so many first entries are valid.
    grads: Array  # (n,) uint64: addresses of all parameters' gradients, 0 without one
    grad_formats: Array  # (n,) int64: their formats
    rows: Array  # (n,) int64: the parameters that have a gradient
    offsets: Array  # (n + 1,) int64: where each of these begins, counted in elements of all
    blocks: Array  # (n + 1,) int64: the same, counted in blocks of `numerics.norm.SUM_BLOCK` elements
    which: Array  # (n,) int64: the row of `constants` for each of these
    sums: Array  # (1 + blocks,) float64: the sum of squares of the gradients, then that of each block
    constants: Array  # (n, CONSTANTS) of the compute dtype: `Constants`


def pack(plan: LaunchPlan) -> Array:
    """Return the address and the length of each array, (fields, 2) uint64; the plan must outlive it."""
    return np.array([(array.ctypes.data, len(array)) for array in plan], dtype=np.uint64)


class PlanType(types.Type):  # type: ignore[misc]
    """The type of a packed plan in kernels: its attributes are the fields of `LaunchPlan`.

    A tuple of the arrays would be the same. Each function that a kernel passes it to would have 150 arguments, and
    compiling them took a third of all the time.
    """

    def __init__(self, dtype: Any) -> None:
        super().__init__(name=f"LaunchPlan({dtype})")
        self.dtype = dtype

    def array(self, field: str) -> Any:
        """Return the type of a field; None if there is none of that name."""
        if field not in LaunchPlan._fields:
            return None
        dtype = self.dtype if field == "constants" else _DTYPES.get(field, types.int64)
        return types.Array(dtype, 2 if field in _WIDTHS else 1, "C")


_WIDTHS = {
    "addresses": COLUMNS,
    "formats": COLUMNS,
    "settings": SETTINGS,
    "owners": OWNER,
    "copies": OWNER,
    "constants": CONSTANTS,
}
_UINT64 = ("addresses", "kinds", "begins", "ends", "objects", "owners", "copies", "grads")
_DTYPES = {
    "settings": types.float64,
    "sums": types.float64,
    **dict.fromkeys(_UINT64, types.uint64),
}  # int64 without an entry
_WORD = ir.IntType(64)


@register_model(PlanType)
class _PlanModel(models.PrimitiveModel):  # type: ignore[misc]
    """The address of the packed plan."""

    def __init__(self, manager: Any, type_: Any) -> None:
        super().__init__(manager, type_, _WORD)


@infer_getattr
class _PlanAttributes(AttributeTemplate):  # type: ignore[misc]
    key = PlanType

    def generic_resolve(self, plan: Any, field: str) -> Any:
        return plan.array(field)


@lower_getattr_generic(PlanType)
def _field(context: Any, builder: Any, plan: Any, address: Any, field: str) -> Any:
    """Make the array of a field from the plan's entry for it."""
    entry = builder.inttoptr(address, _WORD.as_pointer())
    first = 2 * LaunchPlan._fields.index(field)
    words = [builder.load(builder.gep(entry, [_WORD(first + k)])) for k in range(2)]
    for word in words:  # nothing changes an entry while a kernel runs
        word.set_metadata("invariant.load", builder.module.add_metadata([]))
    shape = [words[1], _WORD(_WIDTHS[field])] if field in _WIDTHS else [words[1]]
    return build_array(context, builder, plan.array(field), words[0], shape)


@intrinsic
def unpack(typingctx: Any, packed: Any, like: Any) -> Any:
    """Return the plan that `pack` packed; `like` is any array of the compute dtype."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.ptrtoint(make_array(packed)(context, builder, args[0]).data, _WORD)

    return PlanType(like.dtype)(packed, like), codegen


def empty_step(lengths: Array, dtype: str) -> dict[str, Array]:
    """Return the step's fields of a plan for parameters of these lengths, not yet filled."""
    count, blocks = len(lengths), int((-(-lengths // SUM_BLOCK)).sum())
    return {
        "objects": np.zeros(count, dtype=np.uint64),
        "grads": np.zeros(count, dtype=np.uint64),
        "grad_formats": np.zeros(count, dtype=np.int64),
        "rows": np.zeros(count, dtype=np.int64),
        "offsets": np.zeros(count + 1, dtype=np.int64),
        "blocks": np.zeros(count + 1, dtype=np.int64),
        "which": np.zeros(count, dtype=np.int64),
        "sums": np.zeros(1 + blocks),
        "constants": np.zeros((count, CONSTANTS), dtype=dtype),
    }
