"""One connection of a worker of this user over the Unix socket: its requests, one after the other.

The service answers them as those of the network. Only the way of the arrays differs: they lie in memory that both
processes map. Imports the packets, the service and the gate.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any, NamedTuple, cast

from numba_adam.errors import InvalidRequestError, NumbaAdamError
from numba_adam.ps import convert, framing
from numba_adam.ps.detail import StatePoint
from numba_adam.ps.errors import to_status
from numba_adam.ps.local import (
    LARGEST_PACKET_BYTES,
    SLOT_BYTES,
    Kind,
    Packet,
    Region,
    decode,
    encode,
    encode_error,
)
from numba_adam.ps.transfer import Chunk, Parts, Trailer
from numba_adam.ps.v1 import parameter_service_pb2 as pb
from numba_adam.server.model.arena import HEADER_BYTES
from numba_adam.server.model.sharing import VERSIONS_AT
from numba_adam.server.runtime.model import Model
from numba_adam.server.runtime.pulls import Caller
from numba_adam.server.runtime.runtime import Runtime
from numba_adam.server.transport.gate import Calls, Context
from numba_adam.server.transport.local_context import EndedError, LocalContext
from numba_adam.server.transport.local_memory import SharedMemory
from numba_adam.server.transport.service import ParameterService, note_refusal
from numba_adam.server.transport.watch import LONG_PATIENCE_SECONDS

_log = logging.getLogger(__name__)
_MOST_DESCRIPTORS = 4
_VERSIONS_BYTES = 16
_PULL_FIELDS = {"model", "state_id", "min_version", "checksum_kind"}


class Serving(NamedTuple):
    """What all connections share."""

    service: ParameterService
    """Answers the calls."""

    calls: Calls
    """Limits and counts them."""

    runtime: Runtime
    """Has the models."""

    stall_seconds: float
    """How long a peer may take for its turn."""


class _Answer(NamedTuple):
    """An answer, with the descriptor that it passes."""

    packet: Packet
    descriptor: int | None = None


class _Transfer(NamedTuple):
    """A push, as the service takes it."""

    first: Any
    parts: Parts


class LocalConnection:
    """One connection.

    Args:
        sock: its socket.
        serving: what all connections share.
        peer: who is at the other end.
    """

    def __init__(self, sock: socket.socket, serving: Serving, peer: str) -> None:
        self._socket, self._serving, self._peer = sock, serving, peer
        self._memory = SharedMemory(serving.runtime.pool)
        self._token = ""
        self._context: LocalContext | None = None
        self._is_stopping = self._is_over = False
        self._descriptors: list[int] = []
        self._handlers: dict[Kind, Callable[[Packet, LocalContext], _Answer]] = {
            Kind.HELLO: self._hello,
            Kind.BUFFER: self._buffer,
            Kind.FORGET: self._forget,
            Kind.PUSH: self._push,
            Kind.PUSH_STREAM: self._push,
            Kind.MAP: self._map,
            Kind.PULL: self._pull,
            Kind.COPY: self._copy,
        }

    def run(self, drop: Callable[[], None]) -> None:
        """Answer requests until either end closes the connection; `drop` is called just before it is closed."""
        try:
            while not self._is_stopping:
                packet = self._receive()
                if packet is None:
                    return
                self._answer(packet)
        except EndedError as error:
            _log.debug("a connection of %s ended: %s", self._peer, error)
        except OSError as error:
            _log.debug("a connection of %s broke: %s", self._peer, error)
        except ValueError as error:
            _log.warning("a connection of %s sent no packet of ours: %s", self._peer, error)
        finally:
            self._close_descriptors()
            self._memory.close()
            drop()
            self._socket.close()

    def gone(self) -> None:
        """Note that the peer has closed its end. Safe from any thread."""
        context = self._context
        if context is not None:
            context.end()

    def begin_stop(self) -> None:
        """End the connection after its current call."""
        self._is_stopping = True
        if self._context is None:
            self.hang_up()

    def hang_up(self) -> None:
        """End the connection now."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    # --- packets --------------------------------------------------------------------------------------------------

    def _receive(self) -> Packet | None:
        """Return the next packet; None if there is none any more."""
        self._close_descriptors()
        raw, descriptors, flags, _ = socket.recv_fds(
            self._socket, LARGEST_PACKET_BYTES + 1, _MOST_DESCRIPTORS, socket.MSG_CMSG_CLOEXEC
        )
        self._descriptors = list(descriptors)
        if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
            raise ValueError("a packet was too large")
        return decode(raw) if raw else None

    def _close_descriptors(self) -> None:
        descriptors, self._descriptors = self._descriptors, []
        for descriptor in descriptors:
            os.close(descriptor)

    def _answer(self, packet: Packet) -> None:
        """Answer one request."""
        context = LocalContext(self._token, packet.number / 1000, self.hang_up, self._peer)
        self._context = context
        try:
            raw, descriptor = self._result(packet, context)
            if descriptor is None:
                self._socket.send(raw)
            else:
                with contextlib.closing(open(descriptor, "rb", buffering=0)):
                    socket.send_fds(self._socket, [raw], [descriptor])
            if self._is_over:  # pieces may be on their way that nobody reads
                self._drain()
        finally:
            self._context = None
            context.end()

    def _result(self, packet: Packet, context: LocalContext) -> tuple[bytes, int | None]:
        """Return the bytes of the answer to a request, and the descriptor that it passes."""
        handler = self._handlers.get(packet.kind)
        try:
            if handler is None:
                raise InvalidRequestError(f"a packet of kind {packet.kind.name}: expected a request")
            answer = handler(packet, context)
            return encode(answer.packet), answer.descriptor
        except EndedError:
            raise
        except Exception as error:
            if not isinstance(error, NumbaAdamError):
                _log.error("a call failed with an internal error", exc_info=error)
            code, message, detail = to_status(error)
            note_refusal(self._serving.service, packet.kind.name, _as_context(context), (code, message, detail))
            number = cast("tuple[int, str]", code.value)[0]
            return encode_error(number, message, detail.SerializeToString()), None

    def _drain(self) -> None:
        """Say that no further answer comes, and read until the peer hangs up."""
        self._socket.shutdown(socket.SHUT_WR)
        self._socket.settimeout(self._serving.stall_seconds)
        while self._receive() is not None:
            pass
        raise EndedError("the peer sent what nobody reads")

    # --- requests -------------------------------------------------------------------------------------------------

    def _hello(self, packet: Packet, _: LocalContext) -> _Answer:
        self._token = packet.body.decode("ascii", "replace")
        return _Answer(Packet(Kind.OK))

    def _buffer(self, packet: Packet, _: LocalContext) -> _Answer:
        if len(self._descriptors) != 1:
            raise InvalidRequestError(f"a shared buffer has one descriptor, got {len(self._descriptors)}")
        return _Answer(Packet(Kind.OK, self._memory.add(self._descriptors[0], packet.number)))

    def _forget(self, packet: Packet, _: LocalContext) -> _Answer:
        self._memory.forget([packet.number])
        return _Answer(Packet(Kind.OK))

    def _push(self, packet: Packet, context: LocalContext) -> _Answer:
        serving, guard = self._serving, self._serving.service.guard
        with ExitStack() as held:
            first = serving.calls.requests.parse_part(framing.decode_push_request, packet.body, held)
            if not isinstance(first, pb.PushRequest) or first.WhichOneof("part") != "header":
                raise InvalidRequestError("a push begins with a header")
            if guard is not None:
                guard.check(context.invocation_metadata(), "Push", first.header)
            if packet.kind is Kind.PUSH:
                parts: Parts = (*self._chunks(packet.regions), Trailer(None))
            else:
                self._is_over = True  # unless all pieces are read
                parts = self._pieces(first.header.total_bytes, context)
            with serving.calls.served(_as_context(context)):
                answer = serving.service.push(cast("Any", _Transfer(first, parts)), _as_context(context))
        return _Answer(Packet(Kind.OK, body=answer.SerializeToString()))

    def _map(self, packet: Packet, context: LocalContext) -> _Answer:
        request = self._parsed(pb.GetModelRequest, packet)
        model = self._model("Pull", request, context)
        sharing, at = model.arena.sharing, model.arena.layout.offsets.get("param", HEADER_BYTES)

        def begin() -> None:
            sharing.begin(model.version)
            sharing.end(model.version)

        model.apply_queue.call(begin)
        regions = [Region(0, VERSIONS_AT, _VERSIONS_BYTES), Region(0, at, model.spec.nbytes)]
        try:
            return _Answer(Packet(Kind.OK, sharing.id, regions), sharing.read_only())
        except OSError as error:
            raise InvalidRequestError(f"the parameters cannot be mapped: {error}") from error

    def _pull(self, packet: Packet, context: LocalContext) -> _Answer:
        request = self._parsed(pb.PullRequest, packet)
        model = self._model("Pull", request, context)
        with self._serving.calls.served(_as_context(context)):
            if self._serving.service.guard is not None:
                self._serving.service.guard.count(context.invocation_metadata(), model.spec.nbytes)
            point = self._serving.runtime.pulls.point(model, _caller(context), request.state_id, request.min_version)
        return _Answer(Packet(Kind.OK, model.arena.sharing.id, body=_header(point, model)))

    def _copy(self, packet: Packet, context: LocalContext) -> _Answer:
        request = self._parsed(pb.PullRequest, packet)
        model = self._model("Pull", request, context)
        if len(packet.regions) != 1 or packet.regions[0].size != model.spec.nbytes:
            raise InvalidRequestError(
                f"a copy of model {request.model!r} needs one region of {model.spec.nbytes} bytes"
            )
        target = self._memory.bytes(packet.regions[0])
        if target.ctypes.data % model.arena.dtype.itemsize:
            raise InvalidRequestError("the region of a copy must begin at a multiple of the element's size")
        with self._serving.calls.served(_as_context(context)):
            pulls = self._serving.runtime.pulls
            point = pulls.copy_into(model, _caller(context), target, request.state_id, request.min_version)
        model.tally.note_sent(target.nbytes)
        return _Answer(Packet(Kind.OK, model.arena.sharing.id, body=_header(point, model)))

    def _parsed(self, kind: Any, packet: Packet) -> Any:
        return self._serving.calls.requests.parse_only(kind.FromString, packet.body)

    def _model(self, method: str, request: Any, context: LocalContext) -> Model:
        """Return the model of a request, if the caller may pull it."""
        if others := {field.name for field, _ in request.ListFields()} - _PULL_FIELDS:
            raise InvalidRequestError(f"{sorted(others)}: this path does not know them; use the network")
        if self._serving.service.guard is not None:
            self._serving.service.guard.check(context.invocation_metadata(), method, request)
        return self._serving.runtime.registry.get(request.model)

    # --- payloads -------------------------------------------------------------------------------------------------

    def _chunks(self, regions: Any) -> Iterator[Chunk]:
        """Yield the memory of regions in pieces that fit the CPU's cache."""
        at = 0
        for region in regions:
            memory = self._memory.bytes(region).data
            for start in range(0, region.size, SLOT_BYTES):
                piece = memory[start : start + SLOT_BYTES]
                yield Chunk(at, piece)
                at += piece.nbytes

    def _pieces(self, total_bytes: int, context: LocalContext) -> Iterator[Chunk | Trailer]:
        """Yield the pieces of a payload as they come. After each, its memory may be written again."""
        received, credit = 0, encode(Packet(Kind.CREDIT))
        while received < total_bytes:
            with self._serving.calls.watch.turn(_as_context(context), LONG_PATIENCE_SECONDS):
                packet = self._receive()
            if packet is None:
                raise EndedError("the peer is gone")
            if packet.kind is not Kind.PIECE or len(packet.regions) != 1:
                raise InvalidRequestError(f"expected a piece of the payload, got a packet {packet.kind.name}")
            yield Chunk(received, self._memory.bytes(packet.regions[0]).data)
            received += packet.regions[0].size
            self._is_over = received < total_bytes
            self._socket.send(credit)
        self._is_over = received != total_bytes
        yield Trailer(None)


def _as_context(context: LocalContext) -> Context:
    return cast("Context", context)


def _caller(context: LocalContext) -> Caller:
    return Caller(context.time_remaining, lambda: not context.is_active(), context.add_callback)


def _header(point: StatePoint, model: Model) -> bytes:
    return pb.PullHeader(state=convert.state_to_proto(point), total_bytes=model.spec.nbytes).SerializeToString()
