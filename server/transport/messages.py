"""Converts between protobuf messages and the plain values of the layers below. No other file of the server knows both.

Imports the generated messages, the models and their values.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import numba_adam
from numba_adam.errors import InvalidRequestError
from numba_adam.ps import convert
from numba_adam.ps.detail import StatePoint
from numba_adam.ps.mode_settings import DEFAULT_LEASE_SECONDS
from numba_adam.ps.v1 import model_pb2
from numba_adam.ps.v1 import parameter_service_pb2 as pb
from numba_adam.server.model.names import check_random_id
from numba_adam.server.model.push_key import PushKey
from numba_adam.server.model.requests import Creation, Opening, PushRequest
from numba_adam.server.model.spec import Spec
from numba_adam.server.model.tensors import Tensor, check_count, to_tensors
from numba_adam.server.runtime.model import ChangeAnswer, Model, Opened
from numba_adam.server.runtime.pushes import Pushed
from numba_adam.server.runtime.runtime import Status
from numba_adam.server.runtime.snapshot_writer import Written
from numba_adam.server.transport.settings_messages import settings_from_proto, settings_to_proto


def spec_from_proto(message: model_pb2.ModelSpec) -> Spec:
    """Return the checked spec.

    Raises:
        InvalidRequestError: a name, shape, dtype, mode or durability that is not allowed.
        HyperparameterError: a hyperparameter, guard or option is out of range, or of that of the model's dtype.
        DtypeError: the model's dtype and the options cannot be combined.
    """
    mode = convert.mode_settings_from_proto(message)
    durability = convert.DURABILITIES.get(message.durability or model_pb2.DURABILITY_MEMORY)
    if durability is None:
        known = _known(model_pb2.Durability, convert.DURABILITIES)
        raise InvalidRequestError(f"durability={message.durability}: this server knows {known}")
    dtype = convert.dtype_from_proto(message.dtype)
    hyperparameters = convert.hyperparameters_from_proto(message.hyperparameters)
    guards = convert.guards_from_proto(message.guards)
    options = convert.options_from_proto(message.options)
    names = [tensor.name for tensor in message.tensors]
    settings = settings_from_proto(message.settings, names, hyperparameters) if message.HasField("settings") else None
    lease = convert.lease_seconds_from_proto(message)
    return Spec.checked(
        message.name, dtype, message.tensors, hyperparameters, mode, durability, guards, options, settings, lease
    )


def spec_to_proto(spec: Spec) -> model_pb2.ModelSpec:
    """Return the message, with every field set."""
    message = model_pb2.ModelSpec(
        name=spec.name,
        dtype=convert.dtype_to_proto(spec.dtype),
        tensors=[model_pb2.TensorSpec(name=tensor.name, shape=tensor.shape) for tensor in spec.tensors],
        hyperparameters=convert.hyperparameters_to_proto(spec.hyperparameters),
        durability=convert.durability_to_proto(spec.durability),
        guards=convert.guards_to_proto(spec.guards),
        options=convert.options_to_proto(spec.options),
        settings=None if spec.settings is None else settings_to_proto(spec.settings, spec, 0),
        lease_seconds=None if spec.lease_seconds == DEFAULT_LEASE_SECONDS else spec.lease_seconds,
    )
    convert.set_mode_settings(message, spec.mode_settings)
    return message


def creation_from_proto(header: pb.CreateModelHeader) -> Creation:
    """Return the checked request to create a model; raises as `spec_from_proto` does."""
    spec = spec_from_proto(header.spec)
    return Creation(
        spec=spec,
        request_id=check_random_id("request_id", header.request_id),
        exist_ok=header.exist_ok,
        after_state_id=header.after_state_id if header.HasField("after_state_id") else None,
        total_bytes=header.total_bytes,
        checksum_kind=header.checksum_kind,
    )


def opening_from_proto(request: pb.OpenSessionRequest) -> Opening:
    """Return the request to open a session, not checked yet."""
    return Opening(request.worker_id, request.nonce, request.state_id, request.seen_epoch)


class PushHeaders:
    """Converts the headers of pushes to plain values.

    It keeps each model's arrays as a message and compares headers with it. Protobuf does that in C, ten times as fast
    as making tuples of a thousand arrays.
    """

    def __init__(self) -> None:
        self._arrays: WeakKeyDictionary[Model, Any] = WeakKeyDictionary()

    def from_proto(self, header: pb.PushHeader, model: Model) -> PushRequest:
        """Return the push request of a header.

        Raises:
            InvalidRequestError: it names more arrays, or larger ones, than a model can have.
        """
        return PushRequest(
            key=PushKey(header.state_id, header.worker_id, header.epoch, header.sequence),
            base_version=header.base_version,
            dtype=header.dtype,
            tensors=self._tensors(header, model),
            absent=tuple(header.absent),
            total_bytes=header.total_bytes,
            checksum_kind=header.checksum_kind,
            loss_scale=header.loss_scale if header.HasField("loss_scale") else 1.0,
        )

    def _tensors(self, header: pb.PushHeader, model: Model) -> Sequence[Tensor]:
        """Return the arrays that a push declares; the spec's own tuple where it declares them all."""
        arrays = self._arrays.get(model)
        if arrays is None:
            arrays = self._arrays[model] = spec_to_proto(model.spec).tensors
        as_many = len(header.tensors) == len(arrays)  # first: comparing makes an object of each array
        if as_many and header.tensors == arrays and not header.absent:
            return model.spec.tensors
        check_count(header.tensors, len(header.absent))
        if as_many and header.tensors == arrays:
            return model.spec.tensors
        return to_tensors(header.tensors)


def model_to_proto(model: Model) -> model_pb2.Model:
    """Return the description of a model."""
    state, settled = model.state(), model.settled_changes
    is_plain = model.spec.settings is None and not settled.change.number  # `spec` says all, as in earlier releases
    return model_pb2.Model(
        spec=spec_to_proto(model.spec),
        state=convert.state_to_proto(state),
        parameter_count=model.spec.element_count,
        settings=None if is_plain else settings_to_proto(settled.settings, model.spec, state.version),
        change=settled.change.number,
        changed_at_version=settled.change.version,
    )


def model_status_to_proto(model: Model) -> pb.ModelStatus:
    """Return a model's status: its description and its counts."""
    return pb.ModelStatus(
        model=model_to_proto(model),
        pushes_applied=model.counters.applied,
        pushes_repeated=model.counters.repeated,
        pushes_rejected=model.counters.rejected,
        workers=len(model.ledger.sessions),
        held_pushes=len(model.ledger.round),
        mean_staleness=model.tally.staleness.mean(),
    )


def status_to_proto(
    status: Status, models: Iterable[pb.ModelStatus], next_page_token: str
) -> pb.GetServerStatusResponse:
    """Return the server's status, with one page of its models."""
    return pb.GetServerStatusResponse(
        server_version=numba_adam.__version__, models=models, next_page_token=next_page_token, **status._asdict()
    )


def opened_to_proto(opened: Opened, state: StatePoint, whole_push_bytes: int) -> pb.OpenSessionResponse:
    """Return the answer to the opening of a session; `whole_push_bytes`: the largest push in one message."""
    return pb.OpenSessionResponse(
        epoch=opened.epoch,
        first_sequence=opened.next_sequence,
        state=convert.state_to_proto(state),
        whole_push_bytes=whole_push_bytes,
    )


def change_to_proto(answer: ChangeAnswer, model: Model) -> pb.UpdateModelResponse:
    """Return the answer to a change of a model's settings."""
    return pb.UpdateModelResponse(
        change=answer.changed.number,
        version=answer.changed.version,
        duplicate=answer.is_duplicate,
        model=model_to_proto(model),
    )


def pushed_to_proto(pushed: Pushed) -> pb.PushAck:
    """Return the acknowledgement of a push."""
    return pb.PushAck(
        version=pushed.version,
        state=convert.state_to_proto(pushed.state),
        staleness=pushed.staleness,
        duplicate=pushed.is_duplicate,
    )


def snapshots_to_proto(snapshots: Iterable[tuple[Model, Written]]) -> pb.SnapshotResponse:
    """Return the answer to a request for snapshots."""
    return pb.SnapshotResponse(
        snapshots=[
            pb.SnapshotInfo(
                model=model.spec.name,
                state=convert.state_to_proto(written.state),
                size_bytes=written.size_bytes,
                duration_seconds=written.duration_seconds,
            )
            for model, written in snapshots
        ]
    )


def _known(enum: Any, numbers: Iterable[int]) -> str:
    """Return the names and numbers of an enum's values that this server knows."""
    return ", ".join(f"{enum.Name(number)} ({number})" for number in numbers)
