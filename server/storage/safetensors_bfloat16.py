"""bfloat16 arrays in safetensors files, as their bits in uint16: NumPy has no such dtype, so the library lacks them.

A file is the length of its header (8 bytes, little-endian), the header in JSON, and the arrays one after the other.
Imports NumPy.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

NAME = "BF16"
_NAMES = {"float64": "F64", "int64": "I64", "float32": "F32", "uint16": NAME, "uint8": "U8"}
_ALIGNMENT = 8

Array = npt.NDArray[Any]


class _Place(NamedTuple):
    """Where an array is in a file."""

    shape: tuple[int, ...]
    begin: int
    end: int


def write(path: Path, arrays: Mapping[str, Array], metadata: Mapping[str, str]) -> None:
    """Write a file in which every uint16 array is one of bfloat16.

    Raises:
        OSError: it cannot be written.
    """
    ordered = sorted(arrays.items(), key=lambda pair: -pair[1].itemsize)  # each begins at a multiple of its item
    entries: dict[str, Any] = {"__metadata__": dict(metadata)}
    position = 0
    for name, array in ordered:
        offsets = [position, position + array.nbytes]
        entries[name] = {"dtype": _NAMES[array.dtype.name], "shape": list(array.shape), "data_offsets": offsets}
        position += array.nbytes
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-len(header) % _ALIGNMENT)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        for _, array in ordered:
            file.write(np.ascontiguousarray(array).data)


def read(path: Path, names: Iterable[str]) -> dict[str, Array]:
    """Return the bits of bfloat16 arrays of a file whose header the library has accepted.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header, found = json.loads(file.read(length)), {}
        for name in names:
            entry = header[name]
            place = _Place(tuple(entry["shape"]), *entry["data_offsets"])
            file.seek(8 + length + place.begin)
            bits = np.frombuffer(file.read(place.end - place.begin), "<u2").astype(np.uint16)
            found[name] = bits.reshape(place.shape)
    return found
