"""What the kernels need of the machine that Numba has no function for. Imports Numba and llvmlite.

`array_at` makes an array of an address. `enter_ieee` and `leave_ieee` bracket a kernel's loop: another library in the
same process may have told the CPU to flush subnormal numbers to zero, or to round differently, and the bits of an
update must not depend on that.
"""

from __future__ import annotations

import platform
from typing import Any

from llvmlite import ir
from numba import carray, types
from numba.extending import intrinsic

from numba_adam.kernels.compile import inline

_MACHINE = platform.machine().lower()
_X86 = _MACHINE in ("x86_64", "amd64")
_ARM64 = _MACHINE in ("aarch64", "arm64")
_MXCSR_DEFAULT = 0x1F80  # round to nearest, exceptions masked, no flushing (Intel SDM volume 1, 10.2.3)
_FPCR_DEFAULT = 0  # likewise (Arm ARM, FPCR)


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


def _declare(builder: Any, name: str, type_: Any) -> Any:
    module = builder.module
    return module.globals.get(name) or ir.Function(module, type_, name)


def _read_x86(builder: Any) -> Any:
    word = ir.IntType(32)
    slot = builder.alloca(word)
    function = ir.FunctionType(ir.VoidType(), [ir.IntType(8).as_pointer()])
    bytes_ = builder.bitcast(slot, ir.IntType(8).as_pointer())
    builder.call(_declare(builder, "llvm.x86.sse.stmxcsr", function), [bytes_])
    return builder.zext(builder.load(slot), ir.IntType(64))


def _write_x86(builder: Any, value: Any) -> None:
    word = ir.IntType(32)
    slot = builder.alloca(word)
    builder.store(builder.trunc(value, word), slot)
    function = ir.FunctionType(ir.VoidType(), [ir.IntType(8).as_pointer()])
    bytes_ = builder.bitcast(slot, ir.IntType(8).as_pointer())
    builder.call(_declare(builder, "llvm.x86.sse.ldmxcsr", function), [bytes_])


def _read_arm64(builder: Any) -> Any:
    function = ir.FunctionType(ir.IntType(64), [])
    return builder.call(_declare(builder, "llvm.aarch64.get.fpcr", function), [])


def _write_arm64(builder: Any, value: Any) -> None:
    function = ir.FunctionType(ir.VoidType(), [ir.IntType(64)])
    builder.call(_declare(builder, "llvm.aarch64.set.fpcr", function), [value])


@intrinsic
def enter_ieee(typingctx: Any) -> Any:
    """Set this thread's floating-point environment to IEEE 754's default; return the one before."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        word = ir.IntType(64)
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
