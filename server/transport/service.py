"""The gRPC service: decodes a request, calls the runtime, encodes the answer.

Errors become statuses as numba_adam.ps.errors lists them. numba_adam.ps.framing decodes requests that stream arrays: it
views a chunk's bytes, where the generated parser would copy them. Imports grpc and the runtime.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any, NamedTuple

import grpc
from google.protobuf.message import Message

from numba_adam.errors import InvalidRequestError, NumbaAdamError, PushHeldError, ServiceError, WorkerAheadError
from numba_adam.ps import convert, framing
from numba_adam.ps.checksum import SUPPORTED
from numba_adam.ps.detail import Detail
from numba_adam.ps.errors import to_status
from numba_adam.ps.transfer import Parts
from numba_adam.ps.v1 import parameter_service_pb2 as pb
from numba_adam.ps.v1.error_pb2 import ErrorDetail, Reason
from numba_adam.ps.whole import read_whole, whole_of
from numba_adam.server.logs import push_fields
from numba_adam.server.model.requests import narrow_dtype
from numba_adam.server.runtime.heap import give_back_what_is_forgotten
from numba_adam.server.runtime.model import Model
from numba_adam.server.runtime.model_errors import saying_state_of
from numba_adam.server.runtime.pulls import Caller
from numba_adam.server.runtime.runtime import Runtime
from numba_adam.server.runtime.sessions import open_session
from numba_adam.server.runtime.steering import change_settings
from numba_adam.server.runtime.tally import Refusals
from numba_adam.server.runtime.workers import end_lease, list_workers, renew_lease
from numba_adam.server.storage.token_file import EVERY_MODEL
from numba_adam.server.transport import messages
from numba_adam.server.transport.access import Guard
from numba_adam.server.transport.audit import Audit
from numba_adam.server.transport.await_push import AwaitPush
from numba_adam.server.transport.gate import SMALL_MESSAGE_BYTES, Calls, Context, Entry, Handler, end
from numba_adam.server.transport.pages import page_of
from numba_adam.server.transport.sending import PayloadForm, PullSender
from numba_adam.server.transport.settings_messages import change_from_proto
from numba_adam.server.transport.watch import Watch

_log = logging.getLogger(__name__)

SERVICE_NAME = pb.DESCRIPTOR.services_by_name["ParameterService"].full_name


class _Transfer(NamedTuple):
    """A transfer whose first message is there."""

    first: Any
    """What must be a message with a header."""

    parts: Parts
    """What follows it."""


class ParameterService:
    """The calls of numba_adam.ps.v1.ParameterService. The .proto files say what each does.

    Args:
        runtime: the runtime that serves them.
        watch: ends stalled transfers.
        guard: checks the tokens of calls; None: they need none.
        audit: notes administrative calls; None: they are not noted.
    """

    def __init__(self, runtime: Runtime, watch: Watch, guard: Guard | None = None, audit: Audit | None = None) -> None:
        self.guard = guard
        self.free_slot: Callable[[], object] = lambda: None
        """Is called before a push waits."""

        self.refusals = Refusals()
        """The calls that ended with an error."""

        self.audit = audit or Audit(None, guard)
        """Notes administrative calls."""

        self.waiting = AwaitPush(runtime, watch, guard, self._note_refusal)
        """The calls that wait for the answer to a push."""

        self._runtime = runtime
        self._watch = watch
        self._headers = messages.PushHeaders()
        self._describing = threading.Lock()  # a description may be large, so only one is made at a time
        self._sender = PullSender(watch)

    def create_model(self, request: _Transfer, context: Context) -> bytes:
        """Create a model from a stream."""
        header, parts = self._open(request)
        with self.audit.call(context, "CreateModel", header.spec.name):
            model, created = self._runtime.lifecycle.create(messages.creation_from_proto(header), parts)
        with self._describing:
            return pb.CreateModelResponse(model=messages.model_to_proto(model), created=created).SerializeToString()

    def get_model(self, request: pb.GetModelRequest, _: Context) -> bytes:
        """Describe a model."""
        with self._describing:
            model = self._runtime.registry.get(request.model)
            return pb.GetModelResponse(model=messages.model_to_proto(model)).SerializeToString()

    def list_models(self, request: pb.ListModelsRequest, context: Context) -> bytes:
        """Describe the models."""
        with self._describing:
            page = page_of(self._visible(context), request, messages.model_to_proto)
            answer = pb.ListModelsResponse(models=page.messages, next_page_token=page.next_page_token)
            return answer.SerializeToString()

    def update_model(self, request: pb.UpdateModelRequest, context: Context) -> bytes:
        """Change a model's settings."""
        with self.audit.call(context, "UpdateModel", request.model):
            model = self._runtime.registry.get(request.model)
            answer = change_settings(model, change_from_proto(request))
        with self._describing:
            return messages.change_to_proto(answer, model).SerializeToString()

    def delete_model(self, request: pb.DeleteModelRequest, context: Context) -> pb.DeleteModelResponse:
        """Delete a model."""
        with self.audit.call(context, "DeleteModel", request.model):
            state = self._runtime.lifecycle.delete(request.model, request.state_id)
        give_back_what_is_forgotten()
        return pb.DeleteModelResponse(state=convert.state_to_proto(state))

    def open_session(self, request: pb.OpenSessionRequest, _: Context) -> pb.OpenSessionResponse:
        """Open a worker's session."""
        model = self._runtime.registry.get(request.model)
        opened = open_session(model, messages.opening_from_proto(request), self._runtime.pool)
        return messages.opened_to_proto(*opened, SMALL_MESSAGE_BYTES if request.asks_whole_push_bytes else 0)

    def heartbeat(self, request: pb.HeartbeatRequest, _: Context) -> pb.HeartbeatResponse:
        """Renew the lease of a worker, or end it."""
        model = self._runtime.registry.get(request.model)
        key = request.state_id, request.worker_id, request.epoch
        if request.leaving:
            end_lease(model, *key, "leaves")
            seconds = 0.0
        else:
            seconds = renew_lease(model, *key)
        return pb.HeartbeatResponse(lease_seconds=seconds, state=convert.state_to_proto(model.state()))

    def list_workers(self, request: pb.ListWorkersRequest, _: Context) -> pb.ListWorkersResponse:
        """List the workers of a model."""
        model = self._runtime.registry.get(request.model)
        workers = [pb.Worker(**each._asdict()) for each in list_workers(model)]
        return pb.ListWorkersResponse(workers=workers, state=convert.state_to_proto(model.state()))

    def evict_worker(self, request: pb.EvictWorkerRequest, context: Context) -> pb.EvictWorkerResponse:
        """End the lease of a worker."""
        with self.audit.call(context, "EvictWorker", request.model):
            model = self._runtime.registry.get(request.model)
            end_lease(model, request.state_id, request.worker_id, request.epoch, "was evicted")
        return pb.EvictWorkerResponse(state=convert.state_to_proto(model.state()))

    def push(self, request: _Transfer, _: Context) -> pb.PushResponse:
        """Apply one gradient."""
        return pb.PushResponse(ack=self._push(*self._open(request)))

    def pull(self, request: pb.PullRequest, context: Context) -> Iterator[pb.PullResponse | bytes]:
        """Send the parameters."""
        _check_kind(request.checksum_kind)
        model = self._runtime.registry.get(request.model)
        form = PayloadForm(request.checksum_kind, request.dtype, narrow_dtype(model.spec, request.dtype))
        self._count(context, model, form)
        since = request.state_id, request.min_version
        pulled = self._runtime.pulls.pull(model, _caller(context), *since, is_average=request.average)
        with pulled as pull_copy:
            yield from self._sender.send(pull_copy, form, pb.PullResponse, context)

    def push_pull(self, request: _Transfer, context: Context) -> Iterator[pb.PushPullResponse | bytes]:
        """Apply one gradient, and send the updated parameters."""
        header, parts = self._open(request)
        _check_kind(header.checksum_kind)
        narrow = narrow_dtype(self._runtime.registry.get(header.model).spec, header.pull_dtype)
        form = PayloadForm(header.checksum_kind, header.pull_dtype, narrow)
        ack = self._push(header, parts)
        yield from self._watch.send([pb.PushPullResponse(ack=ack)], context)
        model = self._runtime.registry.get(header.model)
        self._count(context, model, form, must=True)
        with self._runtime.pulls.pull(model, _caller(context)) as pull_copy:
            yield from self._sender.send(pull_copy, form, pb.PushPullResponse, context)

    def snapshot(self, request: pb.SnapshotRequest, context: Context) -> pb.SnapshotResponse:
        """Write snapshots."""
        with self.audit.call(context, "Snapshot", request.model or EVERY_MODEL):
            return messages.snapshots_to_proto(self._runtime.snapshot_requests.write(request.model))

    def get_server_status(self, request: pb.GetServerStatusRequest, context: Context) -> bytes:
        """Describe the server."""
        with self._describing:
            page = page_of(self._visible(context), request, messages.model_status_to_proto)
            answer = messages.status_to_proto(self._runtime.status(), page.messages, page.next_page_token)
            return answer.SerializeToString()

    def _note_refusal(self, error: Exception, context: Context) -> None:
        """Count a refused call."""
        token = "" if self.guard is None else self.guard.name_of(context.invocation_metadata())
        self.refusals.note(_reason_of(*to_status(error)), token)

    def _visible(self, context: Context) -> list[Model]:
        """Return the models that a call may know of."""
        models = self._runtime.registry.all()
        if self.guard is None:
            return models
        is_visible = self.guard.visible(context.invocation_metadata())
        return [model for model in models if is_visible(model.spec.name)]

    def _count(self, context: Context, model: Model, form: PayloadForm, *, must: bool = False) -> None:
        """Count the parameters of a model, which a call sends, for its token."""
        if self.guard is not None:
            self.guard.count(context.invocation_metadata(), form.nbytes(model), must=must)

    def _push(self, header: pb.PushHeader, parts: Parts) -> pb.PushAck:
        """Apply one gradient; return the acknowledgement."""
        model = self._runtime.registry.get(header.model)
        begin = time.perf_counter()
        with saying_state_of(model):
            request = self._headers.from_proto(header, model)
        try:
            pushed = self._runtime.pushes.push(model, request, parts)
        except (PushHeldError, WorkerAheadError) as error:
            model.tally.note_waiting(is_held=isinstance(error, PushHeldError))
            _log_push(logging.DEBUG, model, header, "told to wait")
            raise
        except BaseException as error:
            if _is_recorded(error):
                model.tally.note_push(time.perf_counter() - begin, request.total_bytes, None)
            else:
                model.tally.note_failed_push()
            level = logging.DEBUG if isinstance(error, NumbaAdamError) or _is_of_grpc(error) else logging.ERROR
            _log_push(level, model, header, f"failed with {type(error).__name__}")
            raise
        staleness = None if pushed.is_duplicate else pushed.staleness
        model.tally.note_push(time.perf_counter() - begin, request.total_bytes, staleness)
        _log_push(logging.DEBUG, model, header, "repeated" if pushed.is_duplicate else "applied", pushed.version)
        return messages.pushed_to_proto(pushed)

    def _open(self, request: _Transfer) -> tuple[Any, Parts]:
        """Return the header of a transfer, and the parts that follow it."""
        first = request.first
        if not isinstance(first, Message) or first.WhichOneof("part") != "header":
            raise InvalidRequestError("the stream must begin with a header; send header, chunks, trailer")
        header: Any = getattr(first, "header")  # noqa: B009 - a field of every transfer message, not of Message
        return header, request.parts


_WAITING = "AwaitPush"  # it has a thread only at its beginning


class _Method(NamedTuple):
    """The decoder of a method's requests, and the function that answers them."""

    decode: Callable[[bytes], Any]
    run: Callable[..., Any]


METHODS: dict[str, _Method] = {
    "CreateModel": _Method(framing.decode_create_model_request, ParameterService.create_model),
    "GetModel": _Method(pb.GetModelRequest.FromString, ParameterService.get_model),
    "ListModels": _Method(pb.ListModelsRequest.FromString, ParameterService.list_models),
    "UpdateModel": _Method(pb.UpdateModelRequest.FromString, ParameterService.update_model),
    "DeleteModel": _Method(pb.DeleteModelRequest.FromString, ParameterService.delete_model),
    "OpenSession": _Method(pb.OpenSessionRequest.FromString, ParameterService.open_session),
    "Push": _Method(framing.decode_push_request, ParameterService.push),
    "Heartbeat": _Method(pb.HeartbeatRequest.FromString, ParameterService.heartbeat),
    "ListWorkers": _Method(pb.ListWorkersRequest.FromString, ParameterService.list_workers),
    "EvictWorker": _Method(pb.EvictWorkerRequest.FromString, ParameterService.evict_worker),
    "Pull": _Method(pb.PullRequest.FromString, ParameterService.pull),
    "PushPull": _Method(framing.decode_push_pull_request, ParameterService.push_pull),
    "Snapshot": _Method(pb.SnapshotRequest.FromString, ParameterService.snapshot),
    "GetServerStatus": _Method(pb.GetServerStatusRequest.FromString, ParameterService.get_server_status),
}
"""Every method of the service that runs on a thread, by its name in the protocol."""


def entries(service: ParameterService, calls: Calls) -> dict[str, Entry]:
    """Return the entries of the service's methods, by path."""
    service.free_slot = calls.executor.free_slot
    methods = pb.DESCRIPTOR.services_by_name["ParameterService"].methods_by_name
    found = {
        f"/{SERVICE_NAME}/{name}": Entry(calls.pool, _handler(service, calls, METHODS[name], call))
        for name, call in methods.items()
        if name != _WAITING
    }
    return {**found, f"/{SERVICE_NAME}/{_WAITING}": service.waiting.entry()}


def _handler(service: ParameterService, calls: Calls, method: _Method, call: Any) -> Handler:
    """Return gRPC's handler of one method, streaming as its descriptor says."""
    run, decode, requests, guard = method.run.__get__(service), method.decode, calls.requests, service.guard
    may_be_whole = "whole" in call.input_type.fields_by_name

    def refused(error: Exception, context: Context) -> tuple[grpc.StatusCode, str, ErrorDetail]:
        status = _status_of(error)
        note_refusal(service, call.name, context, status)
        return status

    def request_of(first: bytes, rest: Iterator[bytes], held: ExitStack, context: Context) -> Any:
        if not call.client_streaming:
            request = requests.parse_only(decode, first)
            if guard is not None:
                guard.check(context.invocation_metadata(), call.name, request)
            return request
        transfer = opened(first, rest, held)
        if guard is not None and isinstance(transfer.first, Message):
            header = getattr(transfer.first, "header")  # noqa: B009 - as in _open
            guard.check(context.invocation_metadata(), call.name, header)
        return transfer

    def opened(first: bytes, rest: Iterator[bytes], held: ExitStack) -> _Transfer:
        """Return a transfer whose first message is there."""
        whole = read_whole(first) if may_be_whole else None
        header = requests.parse_part(decode, first if whole is None else whole.header, held)
        parts: Parts = (requests.parse_part(decode, raw, held) for raw in rest)
        if whole is None and may_be_whole and isinstance(header, Message):
            whole = whole_of(header)
            header = header if whole is None else whole.header
        if whole is not None:
            if len(first) > SMALL_MESSAGE_BYTES:
                raise _too_large(len(first))
            parts = whole.parts
        return _Transfer(header, parts)

    def answer(first: bytes, rest: Iterator[bytes], context: Context) -> bytes:
        with ExitStack() as held:
            request = None
            try:
                request = request_of(first, rest, held, context)  # before `served`: an invalid request needs no permit
                with calls.served(context):
                    return calls.counted(framing.encode_message(run(request, context)), context)
            except Exception as error:
                status = refused(error, context)
            del request  # frees its memory before `held` stops counting it
            return end(context, *status)

    def answers(first: bytes, rest: Iterator[bytes], context: Context) -> Iterator[bytes]:
        with ExitStack() as held:
            request = None
            try:
                request = request_of(first, rest, held, context)
                with calls.served(context):
                    yield from map(framing.encode_message, run(request, context))
                return
            except Exception as error:
                status = refused(error, context)
            del request
            end(context, *status)

    streams = bool(call.server_streaming)
    return calls.handler(answers if streams else answer, answers_stream=streams, frees_slot=call.name == "Push")


def note_refusal(
    service: ParameterService, method: str, context: Context, status: tuple[grpc.StatusCode, str, ErrorDetail]
) -> None:
    """Note that a call was refused, for the metrics and the audit log."""
    if status[0] is grpc.StatusCode.PERMISSION_DENIED:
        service.audit.refused(context, method, status[1])
    token = "" if service.guard is None else service.guard.name_of(context.invocation_metadata())
    service.refusals.note(_reason_of(*status), token)


def _status_of(error: Exception) -> tuple[grpc.StatusCode, str, ErrorDetail]:
    """Return the status for an error.

    Raises:
        Exception: the error itself, if the call has already ended or been answered.
    """
    if _is_of_grpc(error):
        raise error
    if not isinstance(error, NumbaAdamError):
        _log.error("a call failed with an internal error", exc_info=error)
    return to_status(error)


def _reason_of(code: grpc.StatusCode, _: str, detail: ErrorDetail) -> str:
    """Return why a call is refused, for the metrics: the reason of the protocol, or the status code."""
    return Reason.Name(detail.reason).removeprefix("REASON_").lower() if detail.reason else code.name.lower()


def _is_of_grpc(error: BaseException) -> bool:
    """Return whether gRPC raised an error, because its call has ended."""
    return isinstance(error, (grpc.RpcError, GeneratorExit)) or (type(error) is Exception and not error.args)


def _is_recorded(error: BaseException) -> bool:
    """Return whether an error is an answer to a push that the server keeps."""
    return isinstance(error, ServiceError) and isinstance(error.detail, Detail) and error.detail.sequence_recorded


def _too_large(nbytes: int) -> InvalidRequestError:
    return InvalidRequestError(
        f"the whole push has {nbytes} bytes, and this server takes up to {SMALL_MESSAGE_BYTES} in one message: send "
        "header, chunks and trailer as a stream"
    )


def _log_push(level: int, model: Model, header: pb.PushHeader, what: str, version: int | None = None) -> None:
    """Log one push; without a version of its own, with the model's."""
    if _log.isEnabledFor(level):
        fields = push_fields(header.worker_id, header.epoch, header.sequence)
        extra = {**fields, "version": model.version if version is None else version}
        _log.log(level, "model %s: push %s: %s", model.spec.name, fields["request"], what, extra=extra)


def _caller(context: Context) -> Caller:
    return Caller(context.time_remaining, lambda: not context.is_active(), context.add_callback)


def _check_kind(kind: int) -> None:
    if kind not in SUPPORTED:
        raise InvalidRequestError(f"checksum_kind={kind}: expected one of {SUPPORTED}")
