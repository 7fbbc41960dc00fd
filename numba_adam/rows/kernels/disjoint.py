"""Elements of arrays that are known to lie apart, read and written without asking. Imports Numba and llvmlite.

A loop over several arrays becomes vector code that first asks, each time it is entered, whether they overlap: for a row
of 16 elements that takes longer than the row. A table's arrays have been checked once, for the whole call, so each load
and store says which of them it belongs to, and that it is none of the others (LLVM's alias.scope and noalias metadata).
A false statement would give wrong results: no store through another function may touch what a loop of these reads.
"""

from __future__ import annotations

from typing import Any

from numba import types
from numba.extending import intrinsic

_ARRAYS = 5  # that know of each other; `which`, below, is from 0 on


def _say_which(builder: Any, access: Any, which: int) -> None:
    """Mark a load or a store as one of the array `which`, and of no other."""
    module = builder.module
    domain = module.add_metadata(["numba_adam.rows.kernels.replay"])
    scopes = [module.add_metadata([f"numba_adam.rows.kernels.replay.{k}", domain]) for k in range(_ARRAYS)]
    access.set_metadata("alias.scope", module.add_metadata([scopes[which]]))
    access.set_metadata("noalias", module.add_metadata([scope for k, scope in enumerate(scopes) if k != which]))


def _pointer(context: Any, builder: Any, address: Any, index: Any, type_: Any) -> Any:
    """Return a pointer that LLVM sees advance with the index, as vector code needs it."""
    return builder.gep(builder.inttoptr(address, type_.as_pointer()), [index])


@intrinsic(prefer_literal=True)
def load(typingctx: Any, address: Any, index: Any, which: Any, like: Any) -> Any:
    """Return an element, of `like`'s dtype, of the array `which` (a literal) that lies at an address."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        type_ = context.get_value_type(like.dtype)
        place = _pointer(context, builder, args[0], args[1], type_)
        value = builder.load(place, align=context.get_abi_sizeof(type_))
        _say_which(builder, value, which.literal_value)
        return value

    return like.dtype(types.uint64, types.int64, which, like), codegen


@intrinsic(prefer_literal=True)
def store(typingctx: Any, address: Any, index: Any, which: Any, value: Any) -> Any:
    """Set an element of the array `which` (a literal) that lies at an address."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        type_ = context.get_value_type(value)
        place = _pointer(context, builder, args[0], args[1], type_)
        _say_which(builder, builder.store(args[3], place, align=context.get_abi_sizeof(type_)), which.literal_value)
        return context.get_dummy_value()

    return types.void(types.uint64, types.int64, which, value), codegen
