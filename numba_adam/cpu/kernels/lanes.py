"""Eight float32 numbers in one register, as a type of Numba's: for CPUs with slow roots. Imports Numba and llvmlite.

The compiler makes vector code of a loop over single numbers, and this is how all other loops are written. It cannot do
so where a vector takes a branch, as an estimated root does. There, the source of the element mathematics is compiled
for vectors. Their registers have 256 bits: with 512 the Intel CPU of `vector_width.MEASURED` lowers its clock by a
twelfth, also for the rest of the program.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic, lower_builtin, models, register_model, type_callable
from numba.np.arrayobj import make_array

from numba_adam.cpu.kernels.vector_width import estimates_roots

LANES = 8  # numbers of a vector
FLOATS, WORDS = ir.VectorType(ir.FloatType(), LANES), ir.VectorType(ir.IntType(32), LANES)
_TRUTHS = ir.VectorType(ir.IntType(1), LANES)
_INDEX = ir.IntType(32)


class _Vector(types.Type):  # type: ignore[misc]
    """Numba's type of a vector; `register` is LLVM's."""

    register: ir.VectorType

    def __init__(self) -> None:
        super().__init__(str(self.register))


class _Floats(_Vector):
    """A vector of numbers."""

    register = FLOATS


class _Truths(_Vector):
    """The result of a comparison of two vectors."""

    register = _TRUTHS


@register_model(_Floats)
@register_model(_Truths)
class _Model(models.PrimitiveModel):  # type: ignore[misc]
    """How LLVM holds a vector."""

    def __init__(self, manager: Any, type_: _Vector) -> None:
        super().__init__(manager, type_, type_.register)


floats, _truths = _Floats(), _Truths()


def _spread(builder: Any, value: Any) -> Any:
    """Return a vector with one number in all lanes; a vector unchanged."""
    if isinstance(value.type, ir.VectorType):
        return value
    unset = ir.Constant(FLOATS, ir.Undefined)
    first = builder.insert_element(unset, value, _INDEX(0))
    return builder.shuffle_vector(first, unset, ir.Constant(WORDS, [0] * LANES))


def _define(function: Callable[..., Any], result: _Vector, emit: Callable[..., Any]) -> None:
    """Define an operator for two vectors, and for a vector and a number."""

    @type_callable(function)
    def _(context: Any) -> Callable[[Any, Any], _Vector | None]:
        def result_of(one: Any, other: Any) -> _Vector | None:
            operands = {one, other}
            return result if floats in operands and operands <= {floats, types.float32} else None

        return result_of

    def lower(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return emit(builder, *(_spread(builder, arg) for arg in args))

    for operands in ((_Floats, _Floats), (_Floats, types.Float), (types.Float, _Floats)):
        lower_builtin(function, *operands)(lower)


_define(operator.add, floats, lambda builder, one, other: builder.fadd(one, other))
_define(operator.sub, floats, lambda builder, one, other: builder.fsub(one, other))
_define(operator.mul, floats, lambda builder, one, other: builder.fmul(one, other))
_define(operator.truediv, floats, lambda builder, one, other: builder.fdiv(one, other))
_define(operator.lt, _truths, lambda builder, one, other: builder.fcmp_ordered("<", one, other))
_define(operator.gt, _truths, lambda builder, one, other: builder.fcmp_ordered(">", one, other))


def call(builder: Any, name: str, *args: Any) -> Any:
    """Call an LLVM intrinsic whose result has the type of its first argument."""
    type_ = ir.FunctionType(args[0].type, [arg.type for arg in args])
    function = builder.module.globals.get(name) or ir.Function(builder.module, type_, name)
    return builder.call(function, args)


@type_callable(abs)
def _type_abs(context: Any) -> Callable[[Any], _Vector | None]:
    return lambda value: floats if value == floats else None


@lower_builtin(abs, _Floats)
def _lower_abs(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    return call(builder, f"llvm.fabs.v{LANES}f32", args[0])


@intrinsic
def choose(typingctx: Any, condition: Any, value: Any, other: Any) -> Any:
    """Return `value` if a condition is true, else `other`; of vectors each lane chooses."""
    result = floats if condition == _truths else typingctx.unify_types(value, other)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        if result == floats:
            values = [_spread(builder, arg) for arg in args[1:]]
        else:
            types_ = value, other
            values = [context.cast(builder, *pair, result) for pair in zip(args[1:], types_, strict=True)]
        return builder.select(args[0], *values)

    return result(condition, value, other), codegen


def _address(context: Any, builder: Any, array: Any, args: Any) -> Any:
    place = builder.gep(make_array(array)(context, builder, args[0]).data, [args[1]])
    return builder.bitcast(place, FLOATS.as_pointer())


@intrinsic
def load(typingctx: Any, array: Any, index: Any) -> Any:
    """Return the vector of an array's elements from `index` on."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.load(_address(context, builder, array, args), align=4)

    return floats(array, types.uint64), codegen


@intrinsic
def store(typingctx: Any, array: Any, index: Any, vector: Any) -> Any:
    """Store a vector in an array, from the element `index` on."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.store(args[2], _address(context, builder, array, args), align=4)
        return context.get_dummy_value()

    return types.void(array, types.uint64, floats), codegen


@intrinsic
def lanes_of(typingctx: Any, like: Any) -> Any:
    """Return LANES if an update of `like`'s dtype estimates roots on this CPU; else None."""
    result = types.uint64 if estimates_roots() and like.dtype == types.float32 else types.none

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return context.get_dummy_value() if result == types.none else context.get_constant(result, LANES)

    return result(like), codegen
