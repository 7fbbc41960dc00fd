"""The snapshot file, format version 2: a valid safetensors file with checksums of every bit.

    8 bytes          length of the header, little-endian
    header           JSON, padded with spaces so that the data starts at a multiple of 64
    data             param/NAME of all tensors, then exp_avg/NAME, exp_avg_sq/NAME[, max_exp_avg_sq/NAME]

A model with options has the arrays that `model.columns` says: moments in bfloat16 or in 8 bits, each of the latter
followed by its scales, such as exp_avg_scale/NAME, and at the end ema/NAME.

The header begins with `__metadata__`. Its first entry is the XXH3 of the header (with zeros for its own 16 digits), its
second the XXH3 of the data. The format version, the model's record and the push ledger's record follow, as JSON. The
ledger's record has the key "machine", its name in the first release.

With keys, the id of the key, the SHA-256 of the data and the tag of the header follow the second entry. The header is
trusted only after its tag was checked, and the data only after its SHA-256, which the tag covers.

Version 1 can be read too. It differs only in the ledger's record: its answers have no digests of the pushes, so a
repeated push is recognized only by its number.

`write` only writes; the data folder makes the file durable. `read` verifies everything before it returns, and reads
the data directly into the given arrays. Imports NumPy, the checksum library and the error tree.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import xxhash

from numba_adam.errors import CorruptSnapshotError, SnapshotError
from numba_adam.numerics.eight_bit import blocks_of
from numba_adam.server.model.columns import SCALE
from numba_adam.server.model.records import check_keys, check_value
from numba_adam.server.model.tensors import Tensor
from numba_adam.server.storage.keys import KEY_ID_DIGITS, NO_KEYS, TAG_DIGITS, Keys

FORMAT = "2"
_READ = ("1", "2")
_FORMAT_NAME = "numba-adam snapshot"
_DTYPE_NAMES = {"float32": "F32", "float64": "F64", "uint16": "BF16", "uint8": "U8"}
_HASH_DIGITS = 16
_ZEROS = b"0" * _HASH_DIGITS
_START = b'{"__metadata__":{"header_xxh3_64":"'
_BETWEEN = b'","data_xxh3_64":"'
_HEADER_HASH_AT = 8 + len(_START)
_DATA_HASH_AT = _HEADER_HASH_AT + _HASH_DIGITS + len(_BETWEEN)
_KEY_ID = b'","key_id":"'
_KEY_ID_AT = _DATA_HASH_AT + _HASH_DIGITS + len(_KEY_ID)
_SHA256 = b'","data_sha256":"'
_SHA256_AT = _KEY_ID_AT + KEY_ID_DIGITS + len(_SHA256)
_TAG = b'","hmac_sha256":"'
_TAG_AT = _SHA256_AT + TAG_DIGITS + len(_TAG)
_KIND = "snapshot"
_DATA_ALIGNMENT = 64
_LONGEST_HEADER_BYTES = 100_000_000  # safetensors' own limit
_PIECE_BYTES = 1 << 22
_METADATA = ("header_xxh3_64", "data_xxh3_64", "format", "format_version", "model", "machine")
_KEYED = ("key_id", "data_sha256", "hmac_sha256")

Arrays = Mapping[str, npt.NDArray[Any]]


class Snapshot(NamedTuple):
    """A snapshot without its arrays."""

    model: dict[str, Any]
    """The spec's record, with the id of the request that created the model."""

    ledger: dict[str, Any]
    """The ledger's record."""


def write(descriptor: int, snapshot: Snapshot, arrays: Arrays, keys: Keys = NO_KEYS) -> int:
    """Write a snapshot to an empty file and return its size in bytes. Does not fsync.

    Args:
        descriptor: the file's, open for writing, at its beginning.
        snapshot: the records.
        arrays: name -> flat array of all tensors' elements.
        keys: of the data folder.

    Raises:
        SnapshotError: its header would be too long to read.
        OSError: the file cannot be written.
    """
    header = _header(snapshot, arrays, keys.key_id)
    if len(header) - 8 > _LONGEST_HEADER_BYTES:
        raise SnapshotError(
            f"model {snapshot.model['name']!r}: the description of its arrays and workers takes {len(header)} bytes, "
            f"and a snapshot allows {_LONGEST_HEADER_BYTES}; use fewer arrays or shorter names"
        )
    _write_all(descriptor, header)
    data_hash = _Hash(is_keyed=bool(keys.key_id))
    size = len(header)
    for array in arrays.values():
        raw = array.view(np.uint8)
        for start in range(0, len(raw), _PIECE_BYTES):
            piece = raw[start : start + _PIECE_BYTES]
            data_hash.update(piece.data)
            if _is_zero(piece):  # leave a hole in the file, so that a new model's moments take no time and no space
                os.lseek(descriptor, len(piece), os.SEEK_CUR)
            else:
                _write_all(descriptor, piece.data)
        size += len(raw)
    os.ftruncate(descriptor, size)
    header[_DATA_HASH_AT : _DATA_HASH_AT + _HASH_DIGITS] = data_hash.digits()
    if keys.key_id:
        header[_SHA256_AT : _SHA256_AT + TAG_DIGITS] = data_hash.sha256_digits()
        header[_TAG_AT : _TAG_AT + TAG_DIGITS] = keys.tag(_KIND, header).encode("ascii")
    header[_HEADER_HASH_AT : _HEADER_HASH_AT + _HASH_DIGITS] = _digits(xxhash.xxh3_64(header))
    os.pwrite(descriptor, header[: _TAG_AT + TAG_DIGITS], 0)
    return size


def read(path: str | os.PathLike[str], arrays_for: Callable[[Snapshot], Arrays], keys: Keys = NO_KEYS) -> Snapshot:
    """Read and verify a snapshot.

    Args:
        path: the file.
        arrays_for: called after the header is verified; returns the flat arrays to fill.
        keys: of the data folder.

    Raises:
        CorruptSnapshotError: it is damaged or truncated. The arrays may have been written to.
        SnapshotError: it is intact, but has a key or value that this version does not know, or the keys refuse it.
        OSError: the file cannot be read.
    """
    with open(path, "rb", buffering=0) as file:
        header = _read_header(file.fileno(), path, keys)
        snapshot, described = _parse(header, path)
        arrays = arrays_for(snapshot)
        key_id = _key_id(header)
        expected = _header(snapshot, arrays, key_id)
        if _describe(json.loads(expected[8:])) != described:
            raise _corrupt(path, "its list of tensors does not match its model")
        data_hash = _Hash(is_keyed=bool(key_id))
        position = len(header)
        for array in arrays.values():
            position = _read_array(file.fileno(), array, position, data_hash, path)
        if os.fstat(file.fileno()).st_size != position:
            raise _corrupt(path, f"it has bytes after its end at {position}")
        if header[_DATA_HASH_AT : _DATA_HASH_AT + _HASH_DIGITS] != data_hash.digits():
            raise _corrupt(path, "the data's checksum differs")
        if key_id and header[_SHA256_AT : _SHA256_AT + TAG_DIGITS] != data_hash.sha256_digits():
            raise _corrupt(path, "the data's SHA-256 differs: it was changed by someone without the key")
        return snapshot


def read_records(path: str | os.PathLike[str], keys: Keys = NO_KEYS) -> Snapshot:
    """Read and verify only the header of a snapshot.

    Raises:
        CorruptSnapshotError, SnapshotError, OSError: see read.
    """
    with open(path, "rb", buffering=0) as file:
        return _parse(_read_header(file.fileno(), path, keys), path)[0]


def key_id_of(path: str | os.PathLike[str]) -> str:
    """Return the id of a snapshot's key; empty if it has no tag, or is damaged."""
    with open(path, "rb", buffering=0) as file:
        return _key_id(os.pread(file.fileno(), _TAG_AT, 0))


def fingerprint(path: str | os.PathLike[str]) -> str:
    """Return the checksum of a snapshot's header. The header has the data's checksum, so this identifies both."""
    with open(path, "rb", buffering=0) as file:
        return os.pread(file.fileno(), _HASH_DIGITS, _HEADER_HASH_AT).decode("ascii", "replace")


def _header(snapshot: Snapshot, arrays: Arrays, key_id: str) -> bytearray:
    """Return length and header, with zeros in place of the hashes and of the tag."""
    keyed = dict(zip(_KEYED, (key_id, "0" * TAG_DIGITS, "0" * TAG_DIGITS), strict=True)) if key_id else {}
    metadata = {
        "header_xxh3_64": _ZEROS.decode(),
        "data_xxh3_64": _ZEROS.decode(),
        **keyed,
        "format": _FORMAT_NAME,
        "format_version": FORMAT,
        "model": _dumps(snapshot.model),
        "machine": _dumps(snapshot.ledger),
    }
    tensors = [Tensor(item["name"], tuple(item["shape"])) for item in snapshot.model["tensors"]]
    text = _dumps({"__metadata__": metadata, **_entries(tensors, arrays)}).encode("ascii")
    text += b" " * (-(8 + len(text)) % _DATA_ALIGNMENT)
    return bytearray(struct.pack("<Q", len(text)) + text)


def _entries(tensors: Sequence[Tensor], arrays: Arrays) -> dict[str, Any]:
    """Return safetensors' description of each tensor."""
    entries, start = {}, 0
    for group, array in arrays.items():
        dtype = _DTYPE_NAMES[array.dtype.name]
        for tensor in tensors:
            shape = (blocks_of(tensor.size),) if group.endswith(SCALE) else tensor.shape
            end = start + math.prod(shape) * array.itemsize
            entries[f"{group}/{tensor.name}"] = {
                "dtype": dtype,
                "shape": list(shape),
                "data_offsets": [start, end],
            }
            start = end
    return entries


def _read_header(descriptor: int, path: str | os.PathLike[str], keys: Keys) -> bytes:
    """Return length and header, and verify their checksum and their tag."""
    first = os.pread(descriptor, 8, 0)
    if len(first) < 8:
        raise _corrupt(path, f"it ends after {len(first)} bytes, within its first field")
    (length,) = struct.unpack("<Q", first)
    if not _DATA_HASH_AT + _HASH_DIGITS - 8 <= length <= _LONGEST_HEADER_BYTES:
        raise _corrupt(path, f"its header's length, {length}, is impossible")
    header = first + _read_exactly(descriptor, length, 8)
    if len(header) < 8 + length:
        raise _corrupt(path, f"it ends at byte {len(header)}, within its header of {length} bytes")
    said = header[_HEADER_HASH_AT : _HEADER_HASH_AT + _HASH_DIGITS]
    blanked = header[:_HEADER_HASH_AT] + _ZEROS + header[_HEADER_HASH_AT + _HASH_DIGITS :]
    if header[8:_HEADER_HASH_AT] != _START or said != _digits(xxhash.xxh3_64(blanked)):
        raise _corrupt(path, "its header's checksum differs")
    key_id, tag = _key_id(header), header[_TAG_AT : _TAG_AT + TAG_DIGITS]
    untagged = blanked[:_TAG_AT] + b"0" * len(tag) + blanked[_TAG_AT + TAG_DIGITS :]
    why = keys.why_refused(f"snapshot {os.fspath(path)!r}", _KIND, key_id, tag.decode("ascii", "replace"), untagged)
    if why:
        raise SnapshotError(f"snapshot {os.fspath(path)!r}: {why}")
    return header


def _key_id(header: bytes) -> str:
    """Return the id of the key in a header; empty if the snapshot has no tag."""
    if header[_KEY_ID_AT - len(_KEY_ID) : _KEY_ID_AT] != _KEY_ID:
        return ""
    return header[_KEY_ID_AT : _KEY_ID_AT + KEY_ID_DIGITS].decode("ascii", "replace")


def _parse(header: bytes, path: str | os.PathLike[str]) -> tuple[Snapshot, dict[str, Any]]:
    """Return the records in a header, and its list of tensors."""
    try:
        content = json.loads(header[8:])
        metadata = content["__metadata__"]
        version = metadata["format_version"]
        if version not in _READ:
            raise SnapshotError(
                f"snapshot {os.fspath(path)!r}: its format version is {version!r}, and this numba-adam reads "
                f"{' and '.join(map(repr, _READ))}: read it with the newer one that wrote it"
            )
        needed = (*_METADATA, *(_KEYED if _key_id(header) else ()))
        check_keys(metadata, f"snapshot {os.fspath(path)!r}: its metadata", needed)
        check_value(metadata["format"], f"snapshot {os.fspath(path)!r}: its format", (_FORMAT_NAME,))
        return Snapshot(json.loads(metadata["model"]), json.loads(metadata["machine"])), _describe(content)
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, CorruptSnapshotError):
            raise
        raise _corrupt(path, f"its header is intact but invalid ({error!r})") from error


def _describe(content: dict[str, Any]) -> dict[str, Any]:
    return {name: entry for name, entry in content.items() if name != "__metadata__"}


def _read_array(
    descriptor: int, array: npt.NDArray[Any], position: int, data_hash: _Hash, path: str | os.PathLike[str]
) -> int:
    """Fill an array from the file and return the position after it."""
    raw = array.view(np.uint8).data
    for start in range(0, len(raw), _PIECE_BYTES):
        piece = raw[start : start + _PIECE_BYTES]
        done = 0
        while done < len(piece):
            count = os.preadv(descriptor, [piece[done:]], position)
            if not count:
                raise _corrupt(path, f"it ends at byte {position}, within its data")
            done += count
            position += count
        data_hash.update(piece)
    return position


def _read_exactly(descriptor: int, length: int, position: int) -> bytes:
    """Return `length` bytes from a position, or fewer at the end of the file."""
    parts = []
    while length and (part := os.pread(descriptor, min(length, _PIECE_BYTES), position)):
        parts.append(part)
        position += len(part)
        length -= len(part)
    return b"".join(parts)


def _write_all(descriptor: int, data: bytes | bytearray | memoryview) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _is_zero(piece: npt.NDArray[np.uint8]) -> bool:
    """Return whether all bytes are zero. Checks the first and the last byte first, which decides most cases."""
    return not (piece[0] or piece[-1] or piece.any())


class _Hash:
    """The hashes of the data.

    Args:
        is_keyed: whether the SHA-256 is needed.
    """

    def __init__(self, *, is_keyed: bool) -> None:
        self._xxh3 = xxhash.xxh3_64()
        self._sha256 = hashlib.sha256() if is_keyed else None

    def update(self, data: memoryview) -> None:
        self._xxh3.update(data)
        if self._sha256 is not None:
            self._sha256.update(data)

    def digits(self) -> bytes:
        return _digits(self._xxh3)

    def sha256_digits(self) -> bytes:
        return b"" if self._sha256 is None else self._sha256.hexdigest().encode("ascii")


def _digits(digest: xxhash.xxh3_64) -> bytes:
    return digest.hexdigest().encode("ascii")


def _dumps(value: object) -> str:
    return json.dumps(value, separators=(",", ":"), allow_nan=False)


def _corrupt(path: str | os.PathLike[str], what: str) -> CorruptSnapshotError:
    return CorruptSnapshotError(f"snapshot {os.fspath(path)!r}: {what}")
