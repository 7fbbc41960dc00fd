"""The gRPC edge: decode, call the host, encode; errors become statuses by the table of numba_adam.ps.errors.

Requests that stream arrays are decoded by numba_adam.ps.framing, which borrows a chunk's bytes where the generated
parser would copy them. Imports grpc and the host.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar

import grpc
from google.protobuf.message import DecodeError, Message

from numba_adam.errors import InvalidRequestError, NumbaAdamError
from numba_adam.ps import framing
from numba_adam.ps.checksum import SUPPORTED, new_checksum
from numba_adam.ps.errors import DETAIL_KEY, to_status
from numba_adam.ps.v1 import parameter_service_pb2 as pb
from numba_adam.ps.v1.transfer_pb2 import TransferTrailer
from numba_adam.server.host import Caller, Host
from numba_adam.server.image import Image
from numba_adam.server.receive import Parts
from numba_adam.server.watch import Watch

_log = logging.getLogger(__name__)

Context = grpc.ServicerContext
_PullAnswer = TypeVar("_PullAnswer", pb.PullResponse, pb.PushPullResponse)
SERVICE_NAME = pb.DESCRIPTOR.services_by_name["ParameterService"].full_name


class Malformed(NamedTuple):
    """Stands for a request that is no message at all, so that it gets an answer that says so."""

    why: str
    """The parser's words."""


class ParameterService:
    """The calls of numba_adam.ps.v1.ParameterService; see the .proto files for what each does.

    Args:
        host: what they act on.
        watch: ends transfers that have stopped.
    """

    def __init__(self, host: Host, watch: Watch) -> None:
        self._host = host
        self._watch = watch

    def create_model(self, request: Iterator[Any], context: Context) -> pb.CreateModelResponse:
        """Create a model from a stream."""
        header, parts = self._open(request, context)
        model, created = self._host.create_model(header, parts)
        return pb.CreateModelResponse(model=model.to_proto(), created=created)

    def get_model(self, request: pb.GetModelRequest, _: Context) -> pb.GetModelResponse:
        """Describe a model."""
        return pb.GetModelResponse(model=self._host.model(request.model).to_proto())

    def list_models(self, _: pb.ListModelsRequest, __: Context) -> pb.ListModelsResponse:
        """Describe all models."""
        return pb.ListModelsResponse(models=[model.to_proto() for model in self._host.models()])

    def delete_model(self, request: pb.DeleteModelRequest, _: Context) -> pb.DeleteModelResponse:
        """Delete a model."""
        return pb.DeleteModelResponse(state=self._host.delete_model(request.model))

    def open_session(self, request: pb.OpenSessionRequest, _: Context) -> pb.OpenSessionResponse:
        """Open a worker's session."""
        epoch, state = self._host.open_session(request.model, request.worker_id)
        return pb.OpenSessionResponse(epoch=epoch, first_sequence=1, state=state)

    def push(self, request: Iterator[Any], context: Context) -> pb.PushResponse:
        """Take one gradient."""
        return pb.PushResponse(ack=self._host.push(*self._open(request, context)))

    def pull(self, request: pb.PullRequest, context: Context) -> Iterator[pb.PullResponse | bytes]:
        """Send the parameters."""
        _check_kind(request.checksum_kind)
        with self._host.pull(request, _caller(context)) as image:
            yield from self._watch.send(_pulled(image, request.checksum_kind, pb.PullResponse), context)

    def push_pull(self, request: Iterator[Any], context: Context) -> Iterator[pb.PushPullResponse | bytes]:
        """Take one gradient and send the parameters that came of it."""
        header, parts = self._open(request, context)
        _check_kind(header.checksum_kind)
        ack = self._host.push(header, parts)
        yield pb.PushPullResponse(ack=ack)
        with self._host.pull(pb.PullRequest(model=header.model), _caller(context)) as image:
            yield from self._watch.send(_pulled(image, header.checksum_kind, pb.PushPullResponse), context)

    def snapshot(self, request: pb.SnapshotRequest, _: Context) -> pb.SnapshotResponse:
        """Write snapshots."""
        return pb.SnapshotResponse(snapshots=self._host.snapshot(request.model))

    def get_server_status(self, _: pb.GetServerStatusRequest, __: Context) -> pb.GetServerStatusResponse:
        """Describe the server."""
        return self._host.status()

    def _open(self, request: Iterator[Any], context: Context) -> tuple[Any, Parts]:
        """Return the header of a stream, and the parts that follow it."""
        parts = map(_well_formed, self._watch.receive(request, context))
        first = next(parts, None)
        if not isinstance(first, Message) or first.WhichOneof("part") != "header":
            raise InvalidRequestError("a transfer is a header, chunks, a trailer: this stream begins otherwise")
        header: Any = getattr(first, "header")  # noqa: B009 - every transfer message has one, Message itself has not
        return header, parts


class _Method(NamedTuple):
    """How one call is decoded and run."""

    decode: Callable[[bytes], Any]
    run: Callable[..., Any]


METHODS: dict[str, _Method] = {
    "CreateModel": _Method(framing.decode_create_model_request, ParameterService.create_model),
    "GetModel": _Method(pb.GetModelRequest.FromString, ParameterService.get_model),
    "ListModels": _Method(pb.ListModelsRequest.FromString, ParameterService.list_models),
    "DeleteModel": _Method(pb.DeleteModelRequest.FromString, ParameterService.delete_model),
    "OpenSession": _Method(pb.OpenSessionRequest.FromString, ParameterService.open_session),
    "Push": _Method(framing.decode_push_request, ParameterService.push),
    "Pull": _Method(pb.PullRequest.FromString, ParameterService.pull),
    "PushPull": _Method(framing.decode_push_pull_request, ParameterService.push_pull),
    "Snapshot": _Method(pb.SnapshotRequest.FromString, ParameterService.snapshot),
    "GetServerStatus": _Method(pb.GetServerStatusRequest.FromString, ParameterService.get_server_status),
}
"""Every call of the service, by its name in the protocol."""


def handlers(service: ParameterService) -> grpc.GenericRpcHandler[Any, Any]:
    """Return what a gRPC server needs to serve the calls."""
    calls = pb.DESCRIPTOR.services_by_name["ParameterService"].methods_by_name
    return grpc.method_handlers_generic_handler(
        SERVICE_NAME, {name: _handler(service, METHODS[name], call) for name, call in calls.items()}
    )


def _handler(service: ParameterService, method: _Method, call: Any) -> grpc.RpcMethodHandler[Any, Any]:
    """Return gRPC's handler of one call, of the kind that its description asks for."""
    sides = {True: "stream", False: "unary"}
    make = getattr(grpc, f"{sides[call.client_streaming]}_{sides[call.server_streaming]}_rpc_method_handler")
    guard = _guard_stream if call.server_streaming else _guard
    handler: grpc.RpcMethodHandler[Any, Any] = make(
        guard(method.run.__get__(service)),
        request_deserializer=_tolerant(method.decode),
        response_serializer=framing.encode_message,
    )
    return handler


def _guard(run: Callable[[Any, Context], Any]) -> Callable[[Any, Context], Any]:
    """Have errors answered by the table."""

    def guarded(request: Any, context: Context) -> Any:
        try:
            return run(_well_formed(request), context)
        except grpc.RpcError:  # the caller is gone: nobody to answer
            raise
        except Exception as error:
            _refuse(context, error)

    return guarded


def _guard_stream(run: Callable[[Any, Context], Iterator[Any]]) -> Callable[[Any, Context], Iterator[Any]]:
    """Have errors of a call that answers with a stream answered by the table."""

    def guarded(request: Any, context: Context) -> Iterator[Any]:
        try:
            yield from run(_well_formed(request), context)
        except grpc.RpcError:
            raise
        except Exception as error:
            _refuse(context, error)

    return guarded


def _refuse(context: Context, error: Exception) -> None:
    """End a call with the status that an error means."""
    code, message, detail = to_status(error)
    if not isinstance(error, NumbaAdamError):
        _log.error("a call failed with an error of the server's own", exc_info=error)
    context.set_trailing_metadata(((DETAIL_KEY, detail.SerializeToString()),))
    context.abort(code, message)


def _tolerant(decode: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    """Have a request that is no message passed on as such; gRPC itself would call it an error of the server's."""

    def decoded(raw: bytes) -> Any:
        try:
            return decode(raw)
        except DecodeError as error:
            return Malformed(str(error))

    return decoded


def _well_formed(request: Any) -> Any:
    """Return a request, unless it is no message at all."""
    if isinstance(request, Malformed):
        raise InvalidRequestError(f"the request is no message of this call ({request.why}); check the .proto version")
    return request


def _caller(context: Context) -> Caller:
    return Caller(context.time_remaining, lambda: not context.is_active(), context.add_callback)


def _check_kind(kind: int) -> None:
    if kind not in SUPPORTED:
        raise InvalidRequestError(f"checksum_kind={kind}: it must be one of {SUPPORTED}")


def _pulled(image: Image, kind: int, response: type[_PullAnswer]) -> Iterator[_PullAnswer | bytes]:
    """Return the messages that carry an image: header, chunks (already encoded), trailer."""
    payload, checksum = image.bytes.data, new_checksum(kind)
    header = pb.PullHeader(state=image.state, total_bytes=len(payload), checksum_kind=kind)  # type: ignore[arg-type]
    yield response(header=header)
    for offset in range(0, len(payload), framing.DEFAULT_CHUNK_BYTES):
        piece = payload[offset : offset + framing.DEFAULT_CHUNK_BYTES]
        checksum.update(piece)
        yield framing.encode_chunk(offset, piece)
    yield response(trailer=TransferTrailer(checksum=checksum.value()))
