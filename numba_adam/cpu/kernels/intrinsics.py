"""Machine instructions that Numba has no function for. Imports Numba and llvmlite.

`array_at` makes an array of an address. `lane_squares` sums squares in lanes, because Numba has no vector types and a
strict sum in one variable cannot be vectorized. `enter_ieee` and `leave_ieee` bracket a kernel's loop: another library
in the process may have set the CPU to flush subnormal numbers to zero or to round differently, and the bits of an
update must not depend on that.
"""

from __future__ import annotations

import platform
from collections.abc import Sequence
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np.arrayobj import make_array, populate_array

from numba_adam.cpu.kernels.compile import inline
from numba_adam.numerics.norm import SUM_LANES

_MACHINE = platform.machine().lower()
_X86 = _MACHINE in ("x86_64", "amd64")
_ARM64 = _MACHINE in ("aarch64", "arm64")
_MXCSR_DEFAULT = 0x1F80  # round to nearest, exceptions masked, no flushing (Intel SDM volume 1, 10.2.3)
_FPCR_DEFAULT = 0  # likewise (Arm ARM, FPCR)
_WORD = ir.IntType(64)
LINE = 64  # bytes of a cache line on nearly all CPUs
_BYTES = np.empty(0, np.uint8)


def build_array(context: Any, builder: Any, type_: Any, address: Any, shape: Sequence[Any]) -> Any:
    """Return the code of an array in C order, of a type, at an address; `shape` has 64-bit integers."""
    array = make_array(type_)(context, builder)
    element = context.get_data_type(type_.dtype)
    item_bytes = _WORD(context.get_abi_sizeof(element))
    strides = [item_bytes]
    for extent in reversed(shape[1:]):
        strides.insert(0, builder.mul(strides[0], extent))
    populate_array(
        array,
        data=builder.inttoptr(address, element.as_pointer()),
        shape=list(shape),
        strides=strides,
        itemsize=item_bytes,
        meminfo=None,
    )
    return array._getvalue()


@intrinsic
def stay_called(typingctx: Any) -> Any:
    """Forbid LLVM to inline the calling function; see `noalias_called`. No code remains of the call."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.function.attributes.add("noinline")
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def nonzero(typingctx: Any, value: Any) -> Any:
    """Return a float32 that is not zero, unchanged: LLVM removes what the program does if it is zero."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        truth = ir.IntType(1)
        assume = _declare(builder, "llvm.assume", ir.FunctionType(ir.VoidType(), [truth]))
        builder.call(assume, [builder.fcmp_unordered("!=", args[0], ir.Constant(args[0].type, 0.0))])
        return args[0]

    return types.float32(types.float32), codegen


@intrinsic
def pointer_at(typingctx: Any, address: Any, like: Any) -> Any:
    """Return the elements at an address (uint64), of `like`'s dtype. An argument is one word; an array has seven."""
    pointer = types.CPointer(like.dtype)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], context.get_value_type(pointer))

    return pointer(types.uint64, like), codegen


@intrinsic
def array_at(typingctx: Any, address: Any, shape: Any, like: Any) -> Any:
    """Return the array at `address` (uint64) with a shape (a number or a tuple) and `like`'s dtype.

    Numba's carray is the same. Compiling it takes three functions for each dtype and shape.
    """
    extents = tuple(shape) if isinstance(shape, types.BaseTuple) else (shape,)
    array = types.Array(like.dtype, len(extents), "C")

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        values = cgutils.unpack_tuple(builder, args[1]) if isinstance(shape, types.BaseTuple) else [args[1]]
        sizes = [context.cast(builder, value, own, types.intp) for value, own in zip(values, extents, strict=True)]
        return build_array(context, builder, array, args[0], sizes)

    return array(types.uint64, shape, like), codegen


@intrinsic(prefer_literal=True)
def buffer(typingctx: Any, size: Any, like: Any) -> Any:
    """Return an array of `size` elements (a literal) of `like`'s dtype on the stack, not initialized.

    It is valid until the function returns, and takes no call of an allocator.
    """
    array, count = types.Array(like.dtype, 1, "C"), size.literal_value

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        memory = cgutils.alloca_once(builder, context.get_data_type(like.dtype), size=count)
        memory.align = LINE
        return build_array(context, builder, array, builder.ptrtoint(memory, _WORD), [_WORD(count)])

    return array(size, like), codegen


@intrinsic
def settled(typingctx: Any, value: Any) -> Any:
    """Return a float64 unchanged, and keep the compiler from moving its computation across this call.

    To a compiler `enter_ieee` and `leave_ieee` have nothing to do with numbers in registers: it may move a division
    behind `leave_ieee`. Every number that is not in memory passes through this function on its way in and out.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        barrier = ir.InlineAsm(ir.FunctionType(_WORD, [_WORD]), "", "=r,0", side_effect=True)
        return builder.bitcast(builder.call(barrier, [builder.bitcast(args[0], _WORD)]), ir.DoubleType())

    return types.float64(types.float64), codegen


def _declare(builder: Any, name: str, type_: Any) -> Any:
    module = builder.module
    return module.globals.get(name) or ir.Function(module, type_, name)


def _read_x86(builder: Any) -> Any:
    word = ir.IntType(32)
    slot = builder.alloca(word)
    function = ir.FunctionType(ir.VoidType(), [ir.IntType(8).as_pointer()])
    bytes_ = builder.bitcast(slot, ir.IntType(8).as_pointer())
    builder.call(_declare(builder, "llvm.x86.sse.stmxcsr", function), [bytes_])
    return builder.zext(builder.load(slot), _WORD)


def _write_x86(builder: Any, value: Any) -> None:
    word = ir.IntType(32)
    slot = builder.alloca(word)
    builder.store(builder.trunc(value, word), slot)
    function = ir.FunctionType(ir.VoidType(), [ir.IntType(8).as_pointer()])
    bytes_ = builder.bitcast(slot, ir.IntType(8).as_pointer())
    builder.call(_declare(builder, "llvm.x86.sse.ldmxcsr", function), [bytes_])


def _read_arm64(builder: Any) -> Any:
    function = ir.FunctionType(_WORD, [])
    return builder.call(_declare(builder, "llvm.aarch64.get.fpcr", function), [])


def _write_arm64(builder: Any, value: Any) -> None:
    function = ir.FunctionType(ir.VoidType(), [_WORD])
    builder.call(_declare(builder, "llvm.aarch64.set.fpcr", function), [value])


@intrinsic
def enter_ieee(typingctx: Any) -> Any:
    """Set this thread's floating-point environment to the default of IEEE 754; return the previous one."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        word = _WORD
        if _X86:
            before = _read_x86(builder)
            _write_x86(builder, word(_MXCSR_DEFAULT))
        elif _ARM64:
            before = _read_arm64(builder)
            _write_arm64(builder, word(_FPCR_DEFAULT))
        else:
            before = word(0)
        return before

    return types.uint64(), codegen


@intrinsic
def leave_ieee(typingctx: Any, before: Any) -> Any:
    """Set this thread's floating-point environment back to what `enter_ieee` returned."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        if _X86:
            _write_x86(builder, args[0])
        elif _ARM64:
            _write_arm64(builder, args[0])
        return context.get_dummy_value()

    return types.void(types.uint64), codegen


FIRST_CACHE, SECOND_CACHE = 3, 2  # where llvm.prefetch puts a line
_READ, _DATA = 0, 1  # its other arguments


def prefetch_line(builder: Any, address: Any, cache: int = SECOND_CACHE) -> None:
    """Prefetch the line of an address, which need not be one of this process.

    On most CPUs the second-level cache can have more lines under way at once than the first, and is faster in the end.
    """
    pointer, number = ir.IntType(8).as_pointer(), ir.IntType(32)
    type_ = ir.FunctionType(ir.VoidType(), [pointer, number, number, number])
    function = builder.module.declare_intrinsic("llvm.prefetch", [pointer], type_)
    options = [number(_READ), number(cache), number(_DATA)]
    builder.call(function, [builder.inttoptr(address, pointer), *options])


@intrinsic
def _stream_lines(typingctx: Any, source: Any, target: Any, count: Any) -> Any:
    """Copy `count` lines to an address that is a multiple of LINE, past the caches."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        start, goal, lines = args
        line = ir.VectorType(ir.IntType(32), LINE // 4)
        before = builder.block
        loop, done = builder.append_basic_block("stream"), builder.append_basic_block("stream.done")
        builder.cbranch(builder.icmp_unsigned(">", lines, _WORD(0)), loop, done)
        builder.position_at_end(loop)
        index = builder.phi(_WORD)
        skip, following = builder.mul(index, _WORD(LINE)), builder.add(index, _WORD(1))
        value = builder.load(builder.inttoptr(builder.add(start, skip), line.as_pointer()), align=1)
        store = builder.store(value, builder.inttoptr(builder.add(goal, skip), line.as_pointer()), align=LINE)
        store.set_metadata("nontemporal", builder.module.add_metadata([ir.IntType(32)(1)]))
        index.add_incoming(_WORD(0), before)
        index.add_incoming(following, loop)
        builder.cbranch(builder.icmp_unsigned("<", following, lines), loop, done)
        builder.position_at_end(done)
        return context.get_dummy_value()

    return types.void(types.uint64, types.uint64, types.uint64), codegen


@intrinsic
def fence(typingctx: Any) -> Any:
    """Make all earlier stores visible to other threads before any later ones."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), codegen


@inline
def stream(source, target, size):  # type: ignore[no-untyped-def]
    """Copy bytes past the caches, which would read the target's lines before writing them.

    For data that is not needed again soon. Only whole lines go past the caches. Other threads see them after a `fence`.

    Args:
        source: uint64: address.
        target: uint64: address.
        size: uint64: number of bytes.
    """
    line = np.uint64(LINE)
    head = min(size, (line - target % line) % line)
    lines = (size - head) // line
    middle = lines * line
    copy_bytes(source, target, head)
    _stream_lines(source + head, target + head, lines)
    copy_bytes(source + head + middle, target + head + middle, size - head - middle)


@inline
def copy_bytes(source, target, size):  # type: ignore[no-untyped-def]
    """Copy `size` bytes (uint64) from one address to another."""
    there, here = array_at(target, size, _BYTES), array_at(source, size, _BYTES)
    for i in range(size):
        there[i] = here[i]


_AHEAD_BYTES = 4096  # a page: what is behind its border is under way before the loop arrives there


def _lane_squares(ahead: int) -> Any:
    """Return `lane_squares`, whose loads each prefetch the lines `ahead` bytes further on; 0: none."""

    @intrinsic
    def lane_squares(typingctx: Any, address: Any, rounds: Any, like: Any, lanes: Any) -> Any:
        """Set lanes[j], j < SUM_LANES, to the float64 sum of `rounds` squares: of x[j], x[SUM_LANES + j], ...

        x, of `like`'s dtype, is at `address`. Each lane adds in order, so the bits are those of a plain loop, whatever
        the width of the CPU's vectors.
        """

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            start, count, _, target = args
            scalar = context.get_value_type(like.dtype)
            item_bytes = context.get_abi_sizeof(scalar)
            vector, doubles = ir.VectorType(scalar, SUM_LANES), ir.VectorType(ir.DoubleType(), SUM_LANES)
            zeros = ir.Constant(doubles, [0.0] * SUM_LANES)
            before = builder.block
            loop, done = builder.append_basic_block("lanes"), builder.append_basic_block("lanes.done")
            builder.cbranch(builder.icmp_unsigned(">", count, _WORD(0)), loop, done)

            builder.position_at_end(loop)
            index, sums = builder.phi(_WORD), builder.phi(doubles)
            place = builder.add(start, builder.mul(index, _WORD(SUM_LANES * item_bytes)))
            for skip in range(0, SUM_LANES * item_bytes if ahead else 0, LINE):
                prefetch_line(builder, builder.add(place, _WORD(ahead + skip)))
            values = builder.load(builder.inttoptr(place, vector.as_pointer()), align=item_bytes)
            if item_bytes < 8:
                values = builder.fpext(values, doubles)
            grown, following = builder.fadd(sums, builder.fmul(values, values)), builder.add(index, _WORD(1))
            index.add_incoming(_WORD(0), before)
            index.add_incoming(following, loop)
            sums.add_incoming(zeros, before)
            sums.add_incoming(grown, loop)
            builder.cbranch(builder.icmp_unsigned("<", following, count), loop, done)

            builder.position_at_end(done)
            result = builder.phi(doubles)
            result.add_incoming(zeros, before)
            result.add_incoming(grown, loop)
            builder.store(result, builder.inttoptr(target, doubles.as_pointer()), align=8)
            return context.get_dummy_value()

        return types.void(types.uint64, types.uint64, like, types.uint64), codegen

    return lane_squares


lane_squares, lane_squares_ahead = _lane_squares(0), _lane_squares(_AHEAD_BYTES)
