"""Loads and stores written in LLVM IR, for numba-cuda and numba.cuda."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from llvmlite import ir

from numba_adam.cuda import seam
from numba_adam.cuda.kernels.access_types import CODES, WIDE_BYTES, Access


def _element(dtype: str) -> Any:
    """Return LLVM's type of an element."""
    kinds = {"float32": ir.FloatType(), "float64": ir.DoubleType()}
    return kinds.get(dtype) or ir.IntType(8 * np.dtype(dtype).itemsize)


def _pointer(builder: Any, address: Any, kind: Any, skip: int = 0) -> Any:
    """Return a pointer into a GPU's global memory."""
    if skip:
        address = builder.add(address, address.type(skip))
    return builder.inttoptr(address, ir.PointerType(kind, addrspace=1))


def scalar(dtype: str) -> tuple[Any, Any]:
    """Return load(address) -> number and store(address, number).

    Args:
        dtype: of the number: "float32", "float64", "uint32" or "int64".
    """
    types, kind, item_bytes = seam.types, _element(dtype), np.dtype(dtype).itemsize
    number = getattr(types, dtype)

    @seam.intrinsic  # type: ignore[untyped-decorator, unused-ignore]
    def load(typingctx: Any, address: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return builder.load(_pointer(builder, args[0], kind), align=item_bytes)

        return number(types.int64), codegen

    @seam.intrinsic  # type: ignore[untyped-decorator, unused-ignore]
    def store(typingctx: Any, address: Any, value: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            builder.store(args[1], _pointer(builder, args[0], kind), align=item_bytes)
            return context.get_dummy_value()

        return types.void(types.int64, number), codegen

    return load, store


def _move(generate: Any, *, has_lane: bool) -> Any:
    """Return an intrinsic (address, [lane,] reals, codes) whose code `generate` writes."""
    types = seam.types

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        arrays = [
            context.make_array(kind)(context, builder, value).data
            for kind, value in zip(signature.args[-2:], args[-2:], strict=True)
        ]
        generate(builder, args[0], args[1] if has_lane else None, *arrays)
        return context.get_dummy_value()

    if has_lane:

        @seam.intrinsic  # type: ignore[untyped-decorator, unused-ignore]
        def move_one(typingctx: Any, address: Any, lane: Any, reals: Any, codes: Any) -> Any:
            return types.void(types.int64, types.int64, reals, codes), codegen

        return move_one

    @seam.intrinsic  # type: ignore[untyped-decorator, unused-ignore]
    def move(typingctx: Any, address: Any, reals: Any, codes: Any) -> Any:
        return types.void(types.int64, reals, codes), codegen

    return move


def lanes_of(dtype: str, lanes: int) -> Access:
    """Return how a thread's lanes are loaded and stored.

    Args:
        dtype: of the elements: "float32", "float64", "uint16", "uint8", or "" for a column that does not exist.
        lanes: how many elements a thread takes at a time.
    """
    if not dtype:
        return Access(*[_move(lambda *_: None, has_lane=has_lane) for has_lane in (False, False, True, True)])
    return Access(
        _move(lambda builder, address, _, *arrays: _load_wide(builder, address, dtype, lanes, arrays), has_lane=False),
        _move(lambda builder, address, _, *arrays: _store_wide(builder, address, dtype, lanes, arrays), has_lane=False),
        _move(lambda builder, address, k, *arrays: _load_one(builder, address, dtype, k, arrays), has_lane=True),
        _move(lambda builder, address, k, *arrays: _store_one(builder, address, dtype, k, arrays), has_lane=True),
    )


def _register(builder: Any, dtype: str, arrays: Any, k: Any) -> Any:
    """Return the pointer to lane k of the registers for elements of a dtype."""
    index = ir.IntType(64)(k) if isinstance(k, int) else k
    return builder.gep(arrays[1] if dtype in CODES else arrays[0], [index], inbounds=True)


def _put(builder: Any, register: Any, value: Any) -> None:
    """Store a value in a register, widened where the compute dtype is wider."""
    kind = register.type.pointee
    widen = builder.zext if isinstance(kind, ir.IntType) else builder.fpext
    builder.store(value if value.type == kind else widen(value, kind), register)


def _get(builder: Any, register: Any, kind: Any) -> Any:
    """Load a value from a register, rounded where the stored dtype is narrower."""
    value = builder.load(register)
    narrow = builder.trunc if isinstance(kind, ir.IntType) else builder.fptrunc
    return value if value.type == kind else narrow(value, kind)


def _load_one(builder: Any, address: Any, dtype: str, k: Any, arrays: Any) -> None:
    value = builder.load(_pointer(builder, address, _element(dtype)), align=np.dtype(dtype).itemsize)
    _put(builder, _register(builder, dtype, arrays, k), value)


def _store_one(builder: Any, address: Any, dtype: str, k: Any, arrays: Any) -> None:
    kind = _element(dtype)
    value = _get(builder, _register(builder, dtype, arrays, k), kind)
    builder.store(value, _pointer(builder, address, kind), align=np.dtype(dtype).itemsize)


def _pieces(dtype: str, lanes: int) -> tuple[Any, int, int, int]:
    """Return a wide access's vector type, its bytes, how many accesses there are, and the elements in a vector's part.

    Two elements of 16 bits, or four of 8, move as one part of 32 bits, because the hardware's vectors have such parts.
    """
    item_bytes = np.dtype(dtype).itemsize
    wide = min(WIDE_BYTES, lanes * item_bytes)
    part = ir.IntType(32) if item_bytes < 4 else _element(dtype)
    part_bytes = max(4, item_bytes)
    return ir.VectorType(part, wide // part_bytes), wide, lanes * item_bytes // wide, part_bytes // item_bytes


def _load_wide(builder: Any, address: Any, dtype: str, lanes: int, arrays: Any) -> None:
    """Load all vectors, then extract the elements."""
    vector, wide, count, shared = _pieces(dtype, lanes)
    loaded = [builder.load(_pointer(builder, address, vector, wide * piece), align=wide) for piece in range(count)]
    parts = [builder.extract_element(piece, ir.IntType(32)(k)) for piece in loaded for k in range(vector.count)]
    for k, part in enumerate(parts):
        if shared == 1:
            _put(builder, _register(builder, dtype, arrays, k), part)
            continue
        for index in range(shared):
            code = builder.trunc(builder.lshr(part, part.type(32 // shared * index)), _element(dtype))
            _put(builder, _register(builder, dtype, arrays, shared * k + index), code)


def _store_wide(builder: Any, address: Any, dtype: str, lanes: int, arrays: Any) -> None:
    """Assemble all vectors, then store them."""
    vector, wide, count, shared = _pieces(dtype, lanes)
    kind = _element(dtype)
    values = [_get(builder, _register(builder, dtype, arrays, k), kind) for k in range(lanes)]
    if shared > 1:
        words = [builder.zext(value, ir.IntType(32)) for value in values]
        shifted = [builder.shl(word, word.type(32 // shared * (k % shared))) for k, word in enumerate(words)]
        values = [functools.reduce(builder.or_, shifted[k : k + shared]) for k in range(0, lanes, shared)]
    for piece in range(count):
        stored = ir.Constant(vector, ir.Undefined)
        for k in range(vector.count):
            stored = builder.insert_element(stored, values[piece * vector.count + k], ir.IntType(32)(k))
        builder.store(stored, _pointer(builder, address, vector, wide * piece), align=wide)
