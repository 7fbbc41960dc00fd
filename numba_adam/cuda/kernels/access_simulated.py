"""Loads and stores in the simulator, where a GPU's memory is this process's own."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from numba_adam.cuda.kernels.access_types import CODES, WIDE_BYTES, Access

_CTYPES: dict[str, Any] = {
    "float32": ctypes.c_float,
    "float64": ctypes.c_double,
    "uint8": ctypes.c_uint8,
    "uint16": ctypes.c_uint16,
    "uint32": ctypes.c_uint32,
    "int64": ctypes.c_int64,
}


def _memory(dtype: str, count: int, address: int, multiple_of: int) -> Any:
    assert int(address) % multiple_of == 0, f"{count} of {dtype} at {int(address):#x}: a GPU would stop here"
    return (_CTYPES[dtype] * count).from_address(int(address))


def scalar(dtype: str) -> tuple[Any, Any]:
    """Return load(address) -> number and store(address, number).

    Args:
        dtype: of the number: "float32", "float64", "uint32" or "int64".
    """
    kind = np.dtype(dtype).type

    def load(address: int) -> Any:
        return kind(_memory(dtype, 1, address, kind().itemsize)[0])

    def store(address: int, value: Any) -> None:
        _memory(dtype, 1, address, kind().itemsize)[0] = kind(value).item()

    return load, store


def lanes_of(dtype: str, lanes: int) -> Access:
    """Return how a thread's lanes are loaded and stored.

    Args:
        dtype: of the elements: "float32", "float64", "uint16", "uint8", or "" for a column that does not exist.
        lanes: how many elements a thread takes at a time.
    """
    if not dtype:
        return Access(*[lambda *_: None] * 4)
    kind = np.dtype(dtype).type
    wide = min(WIDE_BYTES, lanes * kind().itemsize)

    def registers(reals: Any, codes: Any) -> Any:
        return codes if dtype in CODES else reals

    def load(address: int, reals: Any, codes: Any) -> None:
        registers(reals, codes)[:] = _memory(dtype, lanes, address, wide)[:]

    def store(address: int, reals: Any, codes: Any) -> None:
        _memory(dtype, lanes, address, wide)[:] = registers(reals, codes).astype(kind).tolist()

    def load_one(address: int, k: int, reals: Any, codes: Any) -> None:
        registers(reals, codes)[k] = _memory(dtype, 1, address, kind().itemsize)[0]

    def store_one(address: int, k: int, reals: Any, codes: Any) -> None:
        _memory(dtype, 1, address, kind().itemsize)[0] = kind(registers(reals, codes)[k]).item()

    return Access(load, store, load_one, store_one)
