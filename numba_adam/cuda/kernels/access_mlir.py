"""Loads and stores written in MLIR, for numba-cuda-mlir, which this imports."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numba_cuda_mlir._mlir import ir
from numba_cuda_mlir._mlir.dialects import arith, llvm, memref
from numba_cuda_mlir.lowering_utilities import index_of

from numba_adam.cuda import seam
from numba_adam.cuda.kernels.access_types import CODES, WIDE_BYTES, Access


def _integer(bits: int) -> Any:
    return ir.IntegerType.get_signless(bits)


def _element(dtype: str) -> Any:
    """Return MLIR's type of an element."""
    kinds = {"float32": ir.F32Type, "float64": ir.F64Type}
    return kinds[dtype].get() if dtype in kinds else _integer(8 * np.dtype(dtype).itemsize)


def _number(value: int, bits: int = 32) -> Any:
    return arith.constant(_integer(bits), value)


def _pointer(address: Any, skip: int = 0) -> Any:
    """Return a pointer into a GPU's global memory."""
    return llvm.inttoptr(llvm.PointerType.get(address_space=1), arith.addi(address, _number(skip, 64)))


def scalar(dtype: str) -> tuple[Any, Any]:
    """Return load(address) -> number and store(address, number).

    Args:
        dtype: of the number: "float32", "float64", "uint32" or "int64".
    """
    types, kind_of, item_bytes = seam.types, functools.partial(_element, dtype), np.dtype(dtype).itemsize
    number = getattr(types, dtype)

    @seam.intrinsic  # type: ignore[untyped-decorator, unused-ignore]
    def load(typingctx: Any, address: Any) -> Any:
        def codegen(builder: Any, target: Any, args: Any, kwargs: Any) -> None:
            pointer = _pointer(builder.load_var(args[0]))
            builder.store_var(target, llvm.load(kind_of(), pointer, alignment=item_bytes))

        return number(types.int64), codegen

    @seam.intrinsic  # type: ignore[untyped-decorator, unused-ignore]
    def store(typingctx: Any, address: Any, value: Any) -> Any:
        def codegen(builder: Any, target: Any, args: Any, kwargs: Any) -> None:
            address, value = builder.load_vars(args)
            llvm.store(builder.mlir_convert(value, kind_of()), _pointer(address), alignment=item_bytes)

        return types.void(types.int64, number), codegen

    return load, store


def lanes_of(dtype: str, lanes: int) -> Access:
    """Return how a thread's lanes are loaded and stored.

    Args:
        dtype: of the elements: "float32", "float64", "uint16", "uint8", or "" for a column that does not exist.
        lanes: how many elements a thread takes at a time.
    """
    if not dtype:
        return Access(*[_move(lambda *_: None, (), has_lane=has_lane) for has_lane in (False, False, True, True)])
    load, store = (functools.partial(function, dtype) for function in (_load, _store))
    all_lanes = range(lanes)
    return Access(
        _move(load, all_lanes, has_lane=False),
        _move(store, all_lanes, has_lane=False),
        _move(load, (), has_lane=True),
        _move(store, (), has_lane=True),
    )


def _move(generate: Callable[..., None], lanes: Sequence[int], *, has_lane: bool) -> Any:
    """Return an intrinsic (address, [lane,] reals, codes) whose code `generate` writes, for one lane or all."""
    types = seam.types

    def codegen(builder: Any, target: Any, args: Any, kwargs: Any) -> None:
        address, *lane, reals, codes = builder.load_vars(args)
        generate(address, lane or lanes, reals, codes)

    if has_lane:

        @seam.intrinsic  # type: ignore[untyped-decorator, unused-ignore]
        def move_one(typingctx: Any, address: Any, lane: Any, reals: Any, codes: Any) -> Any:
            return types.void(types.int64, types.int64, reals, codes), codegen

        return move_one

    @seam.intrinsic  # type: ignore[untyped-decorator, unused-ignore]
    def move(typingctx: Any, address: Any, reals: Any, codes: Any) -> Any:
        return types.void(types.int64, reals, codes), codegen

    return move


def _put(registers: Any, lane: Any, value: Any) -> None:
    """Store a value in a register, widened where the compute dtype is wider."""
    kind = registers.type.element_type
    widen = arith.extui if isinstance(kind, ir.IntegerType) else arith.extf
    memref.store(value if value.type == kind else widen(kind, value), registers, [index_of(lane)])


def _get(registers: Any, lane: Any, kind: Any) -> Any:
    """Load a value from a register, rounded where the stored dtype is narrower."""
    value = memref.load(registers, [index_of(lane)])
    narrow = arith.trunci if isinstance(kind, ir.IntegerType) else arith.truncf
    return value if value.type == kind else narrow(kind, value)


def _pieces(dtype: str, lanes: int) -> tuple[Any, int, int, int]:
    """Return an access's vector type, its bytes, how many accesses there are, and the elements in a vector's part.

    Two elements of 16 bits, or four of 8, move as one part of 32 bits, because the hardware's vectors have such parts.
    """
    item_bytes = np.dtype(dtype).itemsize
    wide = min(WIDE_BYTES, lanes * item_bytes)
    part_bytes = min(max(4, item_bytes), wide)
    part = _element(dtype) if part_bytes == item_bytes else _integer(8 * part_bytes)
    return ir.VectorType.get([wide // part_bytes], part), wide, lanes * item_bytes // wide, part_bytes // item_bytes


def _load(dtype: str, address: Any, lanes: Sequence[Any], reals: Any, codes: Any) -> None:
    """Load all vectors, then extract the elements."""
    vector, wide, count, shared = _pieces(dtype, len(lanes))
    loaded = [llvm.load(vector, _pointer(address, wide * piece), alignment=wide) for piece in range(count)]
    parts = [llvm.extractelement(piece, _number(k)) for piece in loaded for k in range(vector.shape[0])]
    for k, lane in enumerate(lanes):
        part = parts[k // shared]
        if shared > 1:
            part = arith.trunci(_element(dtype), arith.shrui(part, _number(32 // shared * (k % shared))))
        _put(codes if dtype in CODES else reals, lane, part)


def _store(dtype: str, address: Any, lanes: Sequence[Any], reals: Any, codes: Any) -> None:
    """Assemble all vectors, then store them."""
    vector, wide, count, shared = _pieces(dtype, len(lanes))
    values = [_get(codes if dtype in CODES else reals, lane, _element(dtype)) for lane in lanes]
    if shared > 1:
        words = [arith.extui(_integer(32), value) for value in values]
        shifted = [arith.shli(word, _number(32 // shared * (k % shared))) for k, word in enumerate(words)]
        values = [functools.reduce(arith.ori, shifted[k : k + shared]) for k in range(0, len(lanes), shared)]
    for piece in range(count):
        stored = llvm.mlir_undef(vector)
        for k in range(vector.shape[0]):
            stored = llvm.insertelement(stored, values[piece * vector.shape[0] + k], _number(k))
        llvm.store(stored, _pointer(address, wide * piece), alignment=wide)
