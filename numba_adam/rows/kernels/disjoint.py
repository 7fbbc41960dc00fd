"""Loads and stores of arrays that are known not to overlap. Imports Numba and llvmlite.

Vector code of a loop over several arrays first tests whether they overlap, each time the loop begins. For a row of 16
elements this test takes longer than the row. The arrays of a table are validated once per call, so each load and store
here is marked as one of a certain array and of no other (LLVM's alias.scope and noalias metadata). A wrong mark gives
wrong results: within such a loop, no other function may store to an array that these functions load.
"""

from __future__ import annotations

from typing import Any

from numba import types
from numba.extending import intrinsic

_ARRAYS = 5  # `which`, below, is from 0 to 4


def _mark(builder: Any, access: Any, which: int) -> None:
    """Mark a load or a store as one of the array `which` and of no other array."""
    module = builder.module
    domain = module.add_metadata(["numba_adam.rows.kernels.replay"])
    scopes = [module.add_metadata([f"numba_adam.rows.kernels.replay.{k}", domain]) for k in range(_ARRAYS)]
    access.set_metadata("alias.scope", module.add_metadata([scopes[which]]))
    access.set_metadata("noalias", module.add_metadata([scope for k, scope in enumerate(scopes) if k != which]))


def _pointer(context: Any, builder: Any, address: Any, index: Any, type_: Any) -> Any:
    """Return a pointer to an element, computed from the index in the form that LLVM vectorizes."""
    return builder.gep(builder.inttoptr(address, type_.as_pointer()), [index])


@intrinsic(prefer_literal=True)
def load(typingctx: Any, address: Any, index: Any, which: Any, like: Any) -> Any:
    """Return an element, of `like`'s dtype, of the array `which` (a literal) at an address."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        type_ = context.get_value_type(like.dtype)
        pointer = _pointer(context, builder, args[0], args[1], type_)
        value = builder.load(pointer, align=context.get_abi_sizeof(type_))
        _mark(builder, value, which.literal_value)
        return value

    return like.dtype(types.uint64, types.int64, which, like), codegen


@intrinsic(prefer_literal=True)
def store(typingctx: Any, address: Any, index: Any, which: Any, value: Any) -> Any:
    """Set an element of the array `which` (a literal) at an address."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        type_ = context.get_value_type(value)
        pointer = _pointer(context, builder, args[0], args[1], type_)
        _mark(builder, builder.store(args[3], pointer, align=context.get_abi_sizeof(type_)), which.literal_value)
        return context.get_dummy_value()

    return types.void(types.uint64, types.int64, which, value), codegen
