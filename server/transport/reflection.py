"""The standard reflection service, under the limits of all other calls. Imports grpc's reflection and the gate."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

from google.protobuf.message import DecodeError
from grpc_reflection.v1alpha import reflection
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest

from numba_adam.server.transport.gate import Calls, Context, Entry, end_as_invalid

_LONGEST_REQUEST_BYTES = 1 << 14


def reflection_entries(services: Iterable[str], calls: Calls) -> dict[str, Entry]:
    """Return the entry of the service's method.

    Args:
        services: names of the services that it describes.
        calls: the server's limits.
    """
    servicer: Any = reflection.ReflectionServicer(services)

    def run(first: bytes, rest: Iterator[bytes], context: Context) -> Iterator[bytes]:
        requests = (_decoded(raw, context) for raw in chain([first], rest))
        answers = (answer.SerializeToString() for answer in servicer.ServerReflectionInfo(requests, context))
        return calls.watch.send(answers, context)

    path = f"/{reflection.SERVICE_NAME}/ServerReflectionInfo"
    return {path: Entry(calls.pool, calls.handler(run, answers_stream=True))}


def _decoded(raw: bytes, context: Context) -> ServerReflectionRequest:
    try:
        if len(raw) <= _LONGEST_REQUEST_BYTES:
            return ServerReflectionRequest.FromString(raw)
    except DecodeError:
        pass
    return end_as_invalid(context, f"expected a reflection request of at most {_LONGEST_REQUEST_BYTES} bytes")
