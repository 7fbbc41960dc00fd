"""One connection to the server of this machine over its Unix socket: one call at a time.

May import grpc's status codes and `numba_adam.ps`.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt
from google.protobuf.message import DecodeError

from numba_adam.client.pieces import Made, Piece, cut, piece_of, whole, write
from numba_adam.client.progress import Progress
from numba_adam.client.transport.shared_memory import SharedMemory, allocate, place_of
from numba_adam.errors import (
    BudgetExceededError,
    CorruptTransferError,
    DeadlineExceededError,
    InvalidRequestError,
    ServerUnavailableError,
    ServiceError,
)
from numba_adam.ps.errors import from_status
from numba_adam.ps.local import (
    LARGEST_PACKET_BYTES,
    SLOT_BYTES,
    SLOTS,
    Kind,
    Packet,
    Region,
    decode,
    decode_error,
    encode,
)
from numba_adam.ps.v1.error_pb2 import ErrorDetail

_CREDENTIALS = struct.Struct("3i")
_CONNECT_SECONDS = 5.0
_RESERVED_BYTES = 512  # of a packet, for the fields before the body
_CODES = {code.value[0]: code for code in grpc.StatusCode}
Array = npt.NDArray[Any]


class _Socket(socket.socket):
    """A socket that closes without a warning when its client was dropped without `close`."""

    def __del__(self) -> None:
        self.close()


class NoRoomError(Exception):
    """The call does not fit this path. Nothing was sent; the network takes it."""


class LocalSocket:
    """One connection.

    Args:
        path: of the socket.
        token: the access token to send; None: none.

    Raises:
        OSError: nobody listens there, or another user does.
        ServiceError: the server refused it.
    """

    def __init__(self, path: Path, token: str | None) -> None:
        self.token = token
        """The access token that it has sent."""

        self.is_broken = False
        """Whether it cannot be used for another call."""

        self._numbers: dict[int, tuple[weakref.ref[SharedMemory], int]] = {}
        self._ring: SharedMemory | None = None
        self._scratch: SharedMemory | None = None
        self._socket = _connected(path)
        try:
            self.call(Packet(Kind.HELLO, body=(token or "").encode()), _CONNECT_SECONDS)
        except BaseException:
            self._socket.close()
            raise

    def close(self) -> None:
        """End the connection, also under a call of another thread."""
        self.is_broken = True
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def release(self) -> None:
        """End the connection, which no call uses."""
        self.close()
        self._socket.close()

    def call(self, packet: Packet, timeout_seconds: float) -> Packet:
        """Send a request; return its answer.

        Raises:
            ServiceError: the server refused it, or the connection broke.
            NoRoomError: the request is too large for a packet.
        """
        raw = _encoded(packet)
        with self._guarded(timeout_seconds):
            self._socket.send(raw)
            return self._checked(self._receive()[0])

    def map(self, packet: Packet, timeout_seconds: float) -> tuple[Packet, int]:
        """Send a request whose answer passes a descriptor; return both.

        Raises:
            ServiceError: as `call` does.
        """
        with self._guarded(timeout_seconds):
            self._socket.send(encode(packet))
            answer, descriptors = self._receive()
            if len(descriptors) != 1:
                for descriptor in descriptors:
                    os.close(descriptor)
                self._checked(answer)
                raise CorruptTransferError("the server of this machine passed no memory")
            return answer, descriptors[0]

    def region(self, memory: SharedMemory, offset: int, size: int, timeout_seconds: float) -> Region:
        """Return a region of shared memory, which the server gets to know.

        Raises:
            ServiceError: the connection broke.
            NoRoomError: the server has no room for it now.
        """
        self._forget_dead(timeout_seconds)
        known = self._numbers.get(memory.descriptor)
        if known is None:
            known = weakref.ref(memory), self._pass(memory, timeout_seconds)
            self._numbers[memory.descriptor] = known
        return Region(known[1], offset, size)

    def _pass(self, memory: SharedMemory, timeout_seconds: float) -> int:
        """Pass memory to the server; return the number of the buffer."""
        with self._guarded(timeout_seconds):
            socket.send_fds(self._socket, [encode(Packet(Kind.BUFFER, len(memory)))], [memory.descriptor])
            answer = self._receive()[0]
            try:
                return self._checked(answer).number
            except (BudgetExceededError, InvalidRequestError) as error:
                raise NoRoomError(str(error)) from error

    def scratch(self, nbytes: int) -> SharedMemory:
        """Return shared memory of this connection for one call."""
        if self._scratch is None or len(self._scratch) != nbytes:
            self._scratch = allocate(nbytes)
        return self._scratch

    def push(self, header: bytes, arrays: Sequence[Array | Made], timeout_seconds: float, report: Progress) -> bytes:
        """Push a gradient; return the encoded answer.

        Args:
            header: the encoded PushRequest with the header.
            arrays: the payload: C-contiguous arrays, and what is made when it is needed.
            timeout_seconds: time until the deadline.
            report: called with (bytes passed, total bytes) before they are passed.

        Raises:
            ServiceError, NoRoomError: as `call` does.
        """
        milliseconds = int(timeout_seconds * 1000)
        pieces = [piece_of(array) for array in arrays]
        total = sum(piece.nbytes for piece in pieces)
        regions = self._regions(arrays, timeout_seconds)
        most = (LARGEST_PACKET_BYTES - len(header) - _RESERVED_BYTES) // 24
        if regions is None or len(regions) > most:
            ring = self._own_ring()
            if total > len(ring):
                return self._stream(
                    _encoded(Packet(Kind.PUSH_STREAM, milliseconds, (), header)), pieces, timeout_seconds, report
                )
            write(whole(pieces), memoryview(ring))
            regions = [self.region(ring, 0, total, timeout_seconds)] if total else []
        if total:
            report(total, total)
        return self.call(Packet(Kind.PUSH, milliseconds, regions, header), timeout_seconds).body

    def _regions(self, arrays: Sequence[Array | Made], timeout_seconds: float) -> list[Region] | None:
        """Return where the arrays lie in shared memory, neighbours as one; None if one lies elsewhere."""
        regions: list[Region] = []
        for array in arrays:
            if not array.nbytes:
                continue
            place = place_of(array) if isinstance(array, np.ndarray) else None
            if place is None:
                return None
            region = self.region(*place, array.nbytes, timeout_seconds)
            last = regions[-1] if regions else None
            if last is not None and last.buffer == region.buffer and last.offset + last.size == region.offset:
                regions[-1] = last._replace(size=last.size + region.size)
            else:
                regions.append(region)
        return regions

    def _stream(self, first: bytes, pieces: list[Piece], timeout_seconds: float, report: Progress) -> bytes:
        """Push through a few slots of shared memory: the server reads one while the next is written."""
        ring, offset, waiting = memoryview(self._own_ring()), 0, 0
        done, total = 0, sum(piece.nbytes for piece in pieces)
        base = self.region(self._own_ring(), 0, len(ring), timeout_seconds)
        with self._guarded(timeout_seconds):
            self._socket.send(first)
            for run in cut(pieces, SLOT_BYTES):
                if waiting == SLOTS:
                    packet = self._receive()[0]
                    if packet.kind is not Kind.CREDIT:  # an early answer; the server ends the connection after it
                        self.close()
                        return self._checked(packet).body
                    waiting -= 1
                size = write(run, ring[offset : offset + SLOT_BYTES])
                done += size
                report(done, total)
                self._socket.send(encode(Packet(Kind.PIECE, 0, [Region(base.buffer, offset, size)])))
                offset, waiting = (offset + SLOT_BYTES) % len(ring), waiting + 1
            while (packet := self._receive()[0]).kind is Kind.CREDIT:
                waiting -= 1
            if waiting:
                self.close()
            return self._checked(packet).body

    def _own_ring(self) -> SharedMemory:
        if self._ring is None:
            self._ring = allocate(SLOT_BYTES * SLOTS)
        return self._ring

    def _forget_dead(self, timeout_seconds: float) -> None:
        """Give back the buffers that no array views any more."""
        dead = [(key, number) for key, (memory, number) in self._numbers.items() if memory() is None]
        for key, number in dead:
            del self._numbers[key]
            self.call(Packet(Kind.FORGET, number), timeout_seconds)

    @contextlib.contextmanager
    def _guarded(self, timeout_seconds: float) -> Any:
        """Translate what goes wrong in the body, after which the connection cannot be used."""
        try:
            self._socket.settimeout(max(timeout_seconds, 0.001))
            yield
        except TimeoutError as error:
            self.close()
            raise DeadlineExceededError("the server of this machine did not answer in time") from error
        except (OSError, EOFError) as error:
            self.close()
            raise ServerUnavailableError(f"the connection to the server of this machine broke ({error})") from error
        except (ServiceError, NoRoomError):
            raise
        except ValueError as error:
            self.close()
            raise CorruptTransferError(f"the server of this machine sent no packet of ours ({error})") from error
        except BaseException:
            self.close()
            raise

    def _receive(self) -> tuple[Packet, list[int]]:
        raw, descriptors, _, _ = socket.recv_fds(self._socket, LARGEST_PACKET_BYTES + 1, 4, socket.MSG_CMSG_CLOEXEC)
        if not raw:
            raise EOFError("it was closed")
        return decode(raw), list(descriptors)

    def _checked(self, packet: Packet) -> Packet:
        if packet.kind is Kind.OK:
            return packet
        if packet.kind is not Kind.ERROR:
            raise ValueError(f"a packet {packet.kind.name} where an answer was due")
        message, raw = decode_error(packet.body)
        try:
            detail = ErrorDetail.FromString(raw)
        except DecodeError:
            detail = ErrorDetail()
        raise from_status(_CODES.get(packet.number, grpc.StatusCode.UNKNOWN), message, detail)


def _encoded(packet: Packet) -> bytes:
    try:
        return encode(packet)
    except ValueError as error:
        raise NoRoomError(str(error)) from error


def _connected(path: Path) -> socket.socket:
    """Return a socket that is connected to a server of this user.

    Raises:
        OSError: nobody listens there, or another user does.
    """
    folder = os.open(path.parent, os.O_PATH | os.O_CLOEXEC | os.O_DIRECTORY)
    sock = _Socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        sock.settimeout(_CONNECT_SECONDS)
        sock.connect(f"/proc/self/fd/{folder}/{path.name}")  # the system limits a path to 107 bytes
        _, user, _ = _CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
        if user != os.geteuid():
            raise PermissionError(f"user {user} listens on {str(path)!r}")
    except BaseException:
        sock.close()
        raise
    finally:
        os.close(folder)
    return sock
