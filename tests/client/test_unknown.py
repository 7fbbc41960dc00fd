"""Unknown values in any field of any answer are refused by name, never guessed.

The relay is a newer server: it passes a real one's answers on, with one field of theirs changed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from concurrent import futures
from typing import NamedTuple

import grpc
import numpy as np
import pytest
from google.protobuf.descriptor import EnumDescriptor
from google.protobuf.message import Message

from numba_adam.client import Model, ParameterClient
from numba_adam.errors import ConfigurationError, CorruptTransferError, InvalidRequestError
from numba_adam.ps.v1 import error_pb2, model_pb2, transfer_pb2
from numba_adam.ps.v1 import parameter_service_pb2 as pb

SERVICE = "numba_adam.ps.v1.ParameterService"


class NewerServer:
    """A relay that changes answers."""

    def __init__(self, target: str) -> None:
        self.changes: dict[str, Callable[[Message], None]] = {}
        self._channel = grpc.insecure_channel(target)
        self._server = grpc.server(futures.ThreadPoolExecutor(8))
        self._server.add_generic_rpc_handlers((self,))
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        method = details.method.rsplit("/", 1)[1]
        answer_type = getattr(
            pb, pb.DESCRIPTOR.services_by_name["ParameterService"].methods_by_name[method].output_type.name
        )

        def relay(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
            call = self._channel.stream_stream(details.method)(requests)
            try:
                for raw in call:
                    answer = answer_type.FromString(raw)
                    self.changes.get(method, lambda _: None)(answer)
                    yield answer.SerializeToString()
            except grpc.RpcError:
                context.set_trailing_metadata(call.trailing_metadata())
                context.abort(call.code(), call.details())

        return grpc.stream_stream_rpc_method_handler(relay)

    def close(self) -> None:
        self._server.stop(None).wait()
        self._channel.close()


@pytest.fixture
def newer(server) -> Iterator[NewerServer]:
    with contextlib.closing(NewerServer(server.address)) as relay:
        yield relay


@pytest.fixture
def model(newer, connect, arrays, gradients_of):
    """A handle from before the server became newer, in mid-session."""
    model = connect(newer.address).create_model("m", arrays)
    model.push(gradients_of(arrays, 0))
    return model


class Tried(NamedTuple):
    """The objects for a call."""

    client: ParameterClient
    model: Model
    grads: dict[str, np.ndarray]


CALLS: dict[str, Callable[[Tried], object]] = {
    "create": lambda tried: tried.client.create_model("other", tried.grads),
    "create narrow": lambda tried: tried.client.create_model("other", tried.grads, state_dtype="bfloat16"),
    "open": lambda tried: tried.client.open_model("m"),
    "list": lambda tried: tried.client.list_models(),
    "status": lambda tried: tried.client.status(),
    "push": lambda tried: tried.model.push(tried.grads),
    "pull": lambda tried: tried.model.pull(),
    "push_pull": lambda tried: tried.model.push_pull(tried.grads),
    "first push": lambda tried: tried.client.create_model("fresh", tried.grads).push(tried.grads),
}


def change(path, value=9):
    """Return a function that sets a field in messages that have it."""

    def set_it(message):
        *steps, last = path.split(".")
        for step in steps:
            if step != "models" and not message.HasField(step):
                return
            message = getattr(message, step)
            message = message[0] if step == "models" else message
        setattr(message, last, value)

    return set_it


CASES = {
    "the mode of a model that is created": ("CreateModel", "create", "model.spec.mode", "model 'other': mode=9"),
    "the durability of it": ("CreateModel", "create", "model.state.durability", "model 'other': durability=9"),
    "its dtype": ("CreateModel", "create", "model.spec.dtype", "dtype=9"),
    "its eps_mode": ("CreateModel", "create", "model.spec.hyperparameters.eps_mode", "eps_mode=9"),
    "the format of its moments": ("CreateModel", "create narrow", "model.spec.options.state_dtype", "state_dtype=9"),
    "how they are rounded": ("CreateModel", "create narrow", "model.spec.options.rounding", "rounding=9"),
    "the element type of parameters": ("Pull", "pull", "header.dtype", "dtype=9"),
    "the mode of a model that is opened": ("GetModel", "open", "model.spec.mode", "model 'm': mode=9"),
    "the durability of that": ("GetModel", "open", "model.state.durability", "model 'm': durability=9"),
    "the mode of one that is listed": ("ListModels", "list", "models.spec.mode", "model 'm': mode=9"),
    "the mode of one in the status": ("GetServerStatus", "status", "models.model.spec.mode", "model 'm': mode=9"),
    "the durability of a session's state": ("OpenSession", "first push", "state.durability", "'fresh': durability=9"),
    "the durability of an ack": ("Push", "push", "ack.state.durability", "applied as version 2: durability=9"),
    "an ack that promises nothing": ("Push", "push", "ack.state.durability=0", "version 2: durability=0"),
    "the durability of both at once": ("PushPull", "push_pull", "ack.state.durability", "version 2: durability=9"),
    "the durability of parameters": ("Pull", "pull", "header.state.durability", "parameters' state: durability=9"),
    "their kind of checksum": ("Pull", "pull", "header.checksum_kind", "the parameters have checksum_kind=9"),
}


@pytest.mark.parametrize("case", CASES)
def test_an_answer_with_an_unknown_value_is_refused_by_name(newer, connect, model, arrays, gradients_of, case):
    method, call, path, words = CASES[case]
    path, _, value = path.partition("=")
    newer.changes[method] = change(path, int(value or 9))
    with pytest.raises((ConfigurationError, InvalidRequestError), match=words):
        CALLS[call](Tried(connect(newer.address), model, gradients_of(arrays, 1)))


def test_every_enum_in_an_answer_has_a_case():
    """A new enum fails here until it has a case above. Unknown reasons fall back to the status code."""
    files = (error_pb2, model_pb2, pb, transfer_pb2)
    enums: set[str] = {enum.name for file in files for enum in file.DESCRIPTOR.enum_types_by_name.values()}
    assert enums == {"Mode", "Durability", "Dtype", "StateDtype", "Rounding", "EpsMode", "ChecksumKind", "Reason"}
    for file in files:
        for message in file.DESCRIPTOR.message_types_by_name.values():
            for field in message.fields:
                if isinstance(field.enum_type, EnumDescriptor) and field.enum_type.name != "Reason":
                    asked = message.name in ("CreateModelHeader", "PushHeader", "PullRequest", "GroupChange")
                    assert asked or any(path.partition("=")[0].endswith(field.name) for _, _, path, _ in CASES.values())


def test_a_push_after_an_ack_of_unknown_durability_is_not_mistaken_for_it(newer, model, arrays, gradients_of):
    newer.changes["Push"] = change("ack.state.durability")
    with pytest.raises(ConfigurationError):
        model.push(gradients_of(arrays, 1))
    newer.changes.clear()
    ack = model.push(gradients_of(arrays, 2))
    assert (ack.version, ack.applied, ack.duplicate) == (3, True, False)


def test_an_unknown_part_of_a_stream_is_refused(newer, connect, model, hurry):
    def forget_the_part(message):
        if message.WhichOneof("part") == "chunk":
            message.Clear()

    newer.changes["Pull"] = forget_the_part
    quick = connect(newer.address).open_model("m")
    hurry(quick, 3.0)  # it tries again meanwhile
    with pytest.raises(CorruptTransferError, match="neither a chunk nor a trailer"):
        quick.pull()
