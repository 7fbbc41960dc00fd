"""The packets between a client and a server of one user on one machine. docs/same-host.md describes them.

They travel over a Unix socket of packets (SOCK_SEQPACKET). Arrays do not: a packet names regions of shared memory,
whose descriptor was passed before. Imports the loopback token's folder and the standard library.

    0    magic "NBAL"
    4    version, 1 byte
    5    kind, 1 byte
    6    number of regions, 2 bytes
    8    a number whose meaning depends on the kind, 8 bytes
    16   the regions: buffer, offset, size; 8 bytes each
    ...  the body
"""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping, Sequence
from enum import IntEnum
from pathlib import Path
from typing import NamedTuple

from numba_adam.ps.loopback_token import configuration_folder

VERSION = 1
LARGEST_PACKET_BYTES = 1 << 16
SLOT_BYTES = 1 << 19
"""Size of a piece of a streamed push."""

SLOTS = 8
"""Pieces of a streamed push that the server may not have read yet."""

_MAGIC = b"NBAL"
_HEAD = struct.Struct("<4sBBHQ")
_REGION = struct.Struct("<3Q")
_ERROR = struct.Struct("<I")


class Kind(IntEnum):
    """What a packet is. Each request has one answer: OK or ERROR."""

    HELLO = 1
    """First request of a connection. Body: an access token, or nothing."""

    BUFFER = 2
    """Passes the descriptor of shared memory. Number: its size. OK's number: the buffer's."""

    FORGET = 3
    """Gives a buffer back. Number: the buffer's."""

    PUSH = 4
    """A push. Number: milliseconds until its deadline. Regions: its payload. Body: PushRequest with a header.

    OK's body: PushResponse.
    """

    PUSH_STREAM = 5
    """A push whose payload follows in PIECEs. Otherwise as PUSH."""

    PIECE = 6
    """The next part of a payload. One region. It has no answer of its own, but a CREDIT."""

    MAP = 7
    """Asks for the memory of a model's parameters. Body: GetModelRequest.

    OK passes a descriptor. Its number: the memory's id. Regions: the version words, the parameters.
    """

    PULL = 8
    """Asks for the newest version. Number and body: milliseconds, PullRequest.

    OK's number: the id of the model's memory. Body: PullHeader.
    """

    COPY = 9
    """Asks for a copy of the newest version, made between two updates, in a region. Otherwise as PULL."""

    OK = 64
    ERROR = 65
    """Number: the gRPC status code. Body: size of the message (4 bytes), message, ErrorDetail."""

    CREDIT = 66
    """A PIECE was read, and its memory may be written again."""


class Region(NamedTuple):
    """A range of shared memory."""

    buffer: int
    """Number of the buffer."""

    offset: int
    """Position of its first byte."""

    size: int
    """Its size in bytes."""


class Packet(NamedTuple):
    """One packet."""

    kind: Kind
    """What it is."""

    number: int = 0
    """See the kinds."""

    regions: Sequence[Region] = ()
    """The memory that it is about."""

    body: bytes = b""
    """See the kinds."""


def encode(packet: Packet) -> bytes:
    """Return a packet's bytes.

    Raises:
        ValueError: it would be too large.
    """
    head = _HEAD.pack(_MAGIC, VERSION, packet.kind, len(packet.regions) & 0xFFFF, packet.number)
    raw = b"".join((head, *(_REGION.pack(*region) for region in packet.regions), packet.body))
    if len(raw) > LARGEST_PACKET_BYTES:
        raise ValueError(f"a packet of {len(raw)} bytes: expected at most {LARGEST_PACKET_BYTES}")
    return raw


def decode(raw: bytes) -> Packet:
    """Return the packet in bytes.

    Raises:
        ValueError: they are not a packet of this version.
    """
    if len(raw) < _HEAD.size or len(raw) > LARGEST_PACKET_BYTES:
        raise ValueError(f"a packet of {len(raw)} bytes: expected {_HEAD.size} to {LARGEST_PACKET_BYTES}")
    magic, version, kind, count, number = _HEAD.unpack_from(raw)
    if magic != _MAGIC or version != VERSION:
        raise ValueError(f"a packet of version {version}: expected {VERSION}")
    end = _HEAD.size + count * _REGION.size
    if end > len(raw):
        raise ValueError(f"a packet of {len(raw)} bytes cannot have {count} regions")
    regions = [Region(*fields) for fields in _REGION.iter_unpack(raw[_HEAD.size : end])]
    return Packet(Kind(kind), number, regions, raw[end:])


def encode_error(code: int, message: str, detail: bytes) -> bytes:
    """Return the packet of an error."""
    words = message.encode("utf-8", "replace")
    return encode(Packet(Kind.ERROR, code, (), _ERROR.pack(len(words)) + words + detail))


def decode_error(body: bytes) -> tuple[str, bytes]:
    """Return message and detail in the body of an error.

    Raises:
        ValueError: it is malformed.
    """
    if len(body) < _ERROR.size:
        raise ValueError("the body of an error is too short")
    (size,) = _ERROR.unpack_from(body)
    end = _ERROR.size + size
    if end > len(body):
        raise ValueError("the body of an error is shorter than its message")
    return body[_ERROR.size : end].decode("utf-8", "replace"), body[end:]


def socket_path(environ: Mapping[str, str], port: int) -> Path:
    """Return the path of the socket of this user's server on a port of this machine, whether or not it exists.

    The name has the network namespace, because another one has other ports, and the start of the system, because
    machines may share a home folder.
    """
    return configuration_folder(environ) / "sockets" / f"{port}{_here()}"


def dead_sockets(path: Path) -> list[Path]:
    """Return the sockets beside a path that belong to this system, on which a server may have been killed."""
    return [other for other in path.parent.glob(f"[0-9]*{_here()}") if other != path]


def _here() -> str:
    try:
        namespace = os.stat("/proc/self/ns/net").st_ino
        start = Path("/proc/sys/kernel/random/boot_id").read_text()[:8]
    except OSError:
        return "-0"
    return f"-{namespace}-{start}"
