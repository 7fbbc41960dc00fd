"""Calls of any method with encoded messages, as any client may send them. No test itself."""

from __future__ import annotations

import contextlib

import grpc
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from numba_adam.ps.v1 import model_pb2
from numba_adam.ps.v1 import parameter_service_pb2 as pb

LONG = 800.0
SERVICE = pb.DESCRIPTOR.services_by_name["ParameterService"]
SERVICES = [
    SERVICE,
    health_pb2.DESCRIPTOR.services_by_name["Health"],
    reflection_pb2.DESCRIPTOR.services_by_name["ServerReflection"],
]
METHODS = [f"/{service.full_name}/{method.name}" for service in SERVICES for method in service.methods]
METHODS.append("/unknown.Service/Method")


def status_of(address, method, metadata, *messages):
    """Return the status code of a call of any method with encoded messages."""
    with grpc.insecure_channel(address, [("grpc.enable_http_proxy", 0)]) as channel:
        call = channel.stream_stream(method)(iter(messages), metadata=metadata, timeout=LONG)
        with contextlib.suppress(grpc.RpcError):
            list(call)
        return call.code()


def bearer(token):
    return (("authorization", f"Bearer {token}"),)


def requests(model):
    """Return the first message of a call of each method, for a model."""
    return {
        "CreateModel": pb.CreateModelRequest(header=pb.CreateModelHeader(spec=model_pb2.ModelSpec(name=model))),
        "GetModel": pb.GetModelRequest(model=model),
        "UpdateModel": pb.UpdateModelRequest(model=model, state_id="0" * 32, request_id="r"),
        "DeleteModel": pb.DeleteModelRequest(model=model, state_id="0" * 32),
        "OpenSession": pb.OpenSessionRequest(model=model, worker_id="w"),
        "Push": pb.PushRequest(header=pb.PushHeader(model=model, worker_id="w")),
        "AwaitPush": pb.AwaitPushRequest(model=model, worker_id="w", epoch=1, sequence=1),
        "Heartbeat": pb.HeartbeatRequest(model=model, worker_id="w", epoch=1),
        "ListWorkers": pb.ListWorkersRequest(model=model),
        "EvictWorker": pb.EvictWorkerRequest(model=model, state_id="0" * 32, worker_id="w", epoch=1),
        "Pull": pb.PullRequest(model=model, checksum_kind=1),
        "PushPull": pb.PushPullRequest(header=pb.PushHeader(model=model, worker_id="w")),
        "Snapshot": pb.SnapshotRequest(model=model),
    }
