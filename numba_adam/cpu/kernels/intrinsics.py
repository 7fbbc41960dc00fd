"""What the kernels need of the machine that Numba has no function for. Imports Numba and llvmlite.

`array_at` makes an array of an address. `lane_squares` sums squares in lanes: Numba has no vector types, and a strict
sum in one variable cannot be vectorised. `enter_ieee` and `leave_ieee` bracket a kernel's loop: another library in the
same process may have told the CPU to flush subnormal numbers to zero, or to round differently, and the bits of an
update must not depend on that.
"""

from __future__ import annotations

import platform
from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, types
from numba.extending import intrinsic

from numba_adam.cpu.kernels.compile import inline

_MACHINE = platform.machine().lower()
_X86 = _MACHINE in ("x86_64", "amd64")
_ARM64 = _MACHINE in ("aarch64", "arm64")
_MXCSR_DEFAULT = 0x1F80  # round to nearest, exceptions masked, no flushing (Intel SDM volume 1, 10.2.3)
_FPCR_DEFAULT = 0  # likewise (Arm ARM, FPCR)
_WORD = ir.IntType(64)
_BYTES = np.empty(0, np.uint8)


@intrinsic
def _pointer_at(typingctx: Any, address: Any, like: Any) -> Any:
    """Return a pointer to elements of `like`'s dtype at an address."""
    pointer = types.CPointer(like.dtype)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], context.get_value_type(pointer))

    return pointer(types.uint64, like), codegen


@inline
def array_at(address, shape, like):  # type: ignore[no-untyped-def]
    """Return the array of a shape (a number or a tuple) and `like`'s dtype at `address` (uint64)."""
    return carray(_pointer_at(address, like), shape)


@intrinsic
def keep_until_here(typingctx: Any, array: Any) -> Any:
    """Do nothing, but let an array live until then: Numba frees it after its last use, which an address is not."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return context.get_dummy_value()

    return types.void(array), codegen


@intrinsic
def settled(typingctx: Any, value: Any) -> Any:
    """Return a float64, computed before what comes next and after what came before.

    To a compiler `enter_ieee` and `leave_ieee` have nothing to do with numbers in registers: it may divide after it has
    left. What is not kept in memory between the two goes through this, on its way in and on its way out.
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
    """Set this thread's floating-point environment to IEEE 754's default; return the one before."""

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


LINE = 64  # bytes of a cache line, of nearly all CPUs


@intrinsic
def _stream_lines(typingctx: Any, source: Any, target: Any, count: Any) -> Any:
    """Copy so many lines to an address that is a multiple of LINE, past the caches."""

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
    """Let all that was stored be seen by other threads before what comes after."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), codegen


@inline
def stream(source, target, size):  # type: ignore[no-untyped-def]
    """Copy bytes from an address to another one past the caches: what is there is not read first.

    For what is not needed again soon. Whole lines alone can go that way. Other threads see them after a `fence`.

    Args:
        source: uint64: where the bytes lie.
        target: uint64: where they go.
        size: uint64: how many there are.
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
    """Copy so many bytes (uint64) from an address to another one."""
    there, here = array_at(target, size, _BYTES), array_at(source, size, _BYTES)
    for i in range(size):
        there[i] = here[i]


LANES = 16  # sums kept side by side: two registers of AVX-512, enough to hide an addition's latency


@intrinsic
def lane_squares(typingctx: Any, address: Any, rounds: Any, like: Any, lanes: Any) -> Any:
    """Set lanes[j], j < LANES, to the float64 sum of the squares of x[j], x[LANES + j], ... (`rounds` of them each).

    x, of `like`'s dtype, lies at `address`. Each lane adds in order, so the bits are those of a plain loop, whatever
    vectors the CPU has.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        start, count, _, target = args
        scalar = context.get_value_type(like.dtype)
        item_bytes = context.get_abi_sizeof(scalar)
        vector, doubles = ir.VectorType(scalar, LANES), ir.VectorType(ir.DoubleType(), LANES)
        zeros = ir.Constant(doubles, [0.0] * LANES)
        before = builder.block
        loop, done = builder.append_basic_block("lanes"), builder.append_basic_block("lanes.done")
        builder.cbranch(builder.icmp_unsigned(">", count, _WORD(0)), loop, done)

        builder.position_at_end(loop)
        index, sums = builder.phi(_WORD), builder.phi(doubles)
        place = builder.add(start, builder.mul(index, _WORD(LANES * item_bytes)))
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
