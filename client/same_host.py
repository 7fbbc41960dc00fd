"""Pulls from a server on this machine: parameters are read where they lie, in memory that the server shares.

May import NumPy, `numba_adam.ps` and its neighbours here.
"""

from __future__ import annotations

import math
import mmap
import os
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from numba_adam.client.model_arrays import Array, ModelArrays, Parameters
from numba_adam.client.transport.connection import Connection
from numba_adam.client.transport.local_socket import LocalSocket
from numba_adam.client.transport.shared_memory import allocate
from numba_adam.errors import ConfigurationError, CorruptTransferError, InvalidRequestError, ServiceError
from numba_adam.ps.local import Kind, Packet
from numba_adam.ps.v1.model_pb2 import StatePoint
from numba_adam.ps.v1.parameter_service_pb2 import GetModelRequest, PullHeader, PullRequest

_TRIES = 2  # of a copy that an update may disturb
_FIELDS = {"model", "min_version", "state_id", "checksum_kind"}


class ModelMemory(NamedTuple):
    """The parameters of one model, as the server has them."""

    id: int
    """No other memory has it."""

    versions: npt.NDArray[np.uint64]
    """The version whose update began last, and the one whose update ended last."""

    flat: Array
    """The parameters. They change at any time."""

    def copy(self, version: int, places: list[Array]) -> bool:
        """Copy the parameters; return whether they are all of the wanted version."""
        if int(self.versions[1]) != version or int(self.versions[0]) != version:
            return False
        _scatter(self.flat, places)
        return int(self.versions[0]) == version


def pull_on_same_host(
    connection: Connection, request: PullRequest, model_arrays: ModelArrays, out: Parameters | None, timeout: float
) -> tuple[Parameters, StatePoint] | None:
    """Pull without the network into `out` or new arrays, if that is possible; else return None.

    Raises:
        ServiceError: the call failed.
        InvalidRequestError: the model is not the one that this handle opened.
    """
    if {field.name for field, _ in request.ListFields()} - _FIELDS:
        return None
    return connection.on_same_host(lambda local: _pull(local, connection, request, model_arrays, out, timeout))


def _pull(
    local: LocalSocket,
    connection: Connection,
    request: PullRequest,
    model_arrays: ModelArrays,
    out: Parameters | None,
    timeout: float,
) -> tuple[Parameters, StatePoint]:
    raw, milliseconds = request.SerializeToString(), int(timeout * 1000)
    parameters = model_arrays.allocate()[1] if out is None else out
    places = list(parameters.values())
    for _ in range(_TRIES):
        answer = local.call(Packet(Kind.PULL, milliseconds, body=raw), timeout)
        header = _header(answer.body, model_arrays)
        memory = _memory(local, connection, request.model, model_arrays, answer.number, timeout)
        if memory is not None and memory.copy(header.state.version, places):
            return parameters, header.state
    scratch = local.scratch(max(_nbytes(model_arrays), 1))
    region = local.region(scratch, 0, _nbytes(model_arrays), timeout)
    answer = local.call(Packet(Kind.COPY, milliseconds, [region], raw), timeout)
    header = _header(answer.body, model_arrays)
    _scatter(np.frombuffer(scratch, model_arrays.dtype, _nbytes(model_arrays) // model_arrays.dtype.itemsize), places)
    return parameters, header.state


def memory_of(connection: Connection, model: str, model_arrays: ModelArrays, timeout: float) -> ModelMemory:
    """Return the memory of a model's parameters.

    Raises:
        ConfigurationError: the server is not on this machine, or does not share memory.
        ServiceError: the call failed.
    """

    def ask(local: LocalSocket) -> ModelMemory | None:
        return _memory(local, connection, model, model_arrays, None, timeout)

    found = connection.on_same_host(ask)
    if found is None:
        raise ConfigurationError(
            f"model {model!r}: a view needs memory that the server shares, and here it cannot "
            f"({connection.same_host.look()}); use pull"
        )
    return found


def gradient_memory(model_arrays: ModelArrays) -> Parameters:
    """Return zeros for a model's gradients, in memory that the server of this machine can read."""
    if not hasattr(os, "memfd_create"):
        flat, parameters = model_arrays.allocate()
        flat[:] = 0
        return parameters
    memory = allocate(max(_nbytes(model_arrays), 1))
    return _views(np.frombuffer(memory, model_arrays.dtype, _size(model_arrays)), model_arrays)


def parameter_views(memory: ModelMemory, model_arrays: ModelArrays) -> Parameters:
    """Return read-only views of the parameters."""
    return _views(memory.flat, model_arrays)


def _memory(
    local: LocalSocket,
    connection: Connection,
    model: str,
    model_arrays: ModelArrays,
    wanted: int | None,
    timeout: float,
) -> ModelMemory | None:
    """Return the memory with an id, or any if that is None; None: the model has other memory now."""
    known: dict[str, Any] = connection.same_host.memories
    memory: ModelMemory | None = known.get(model)
    if memory is not None and memory.id == wanted:
        return memory
    request = GetModelRequest(model=model).SerializeToString()
    answer, descriptor = local.map(Packet(Kind.MAP, body=request), timeout)
    try:
        if len(answer.regions) != 2 or answer.regions[1].size != _nbytes(model_arrays):
            raise InvalidRequestError(f"model {model!r} was deleted and created again; open it again")
        versions, flat = answer.regions
        mapping = mmap.mmap(descriptor, flat.offset + flat.size, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ)
        words = np.frombuffer(mapping, np.uint64, 2, versions.offset)
        array = np.frombuffer(mapping, model_arrays.dtype, _size(model_arrays), flat.offset)
    except (OSError, ValueError) as error:
        raise ServiceError(f"model {model!r}: its parameters cannot be mapped ({error})") from error
    finally:
        os.close(descriptor)
    memory = known[model] = ModelMemory(answer.number, words, array)
    return memory if wanted is None or memory.id == wanted else None


def _header(raw: bytes, model_arrays: ModelArrays) -> PullHeader:
    try:
        header = PullHeader.FromString(raw)
    except Exception as error:
        raise CorruptTransferError(f"the server of this machine sent no header ({error})") from error
    if header.total_bytes != _nbytes(model_arrays):
        raise InvalidRequestError(
            f"expected {_nbytes(model_arrays)} bytes of parameters, got {header.total_bytes}: the model was "
            "deleted and created again; open it again"
        )
    return header


def _views(flat: Array, model_arrays: ModelArrays) -> Parameters:
    views, start = {}, 0
    for name, shape in model_arrays.shapes.items():
        stop = start + math.prod(shape)
        views[name] = flat[start:stop].reshape(shape)
        start = stop
    return views


def _size(model_arrays: ModelArrays) -> int:
    return sum(map(math.prod, model_arrays.shapes.values()))


def _nbytes(model_arrays: ModelArrays) -> int:
    return _size(model_arrays) * model_arrays.dtype.itemsize


def _scatter(flat: Array, places: list[Array]) -> None:
    """Copy a flat vector into arrays, in order."""
    start = 0
    for place in places:
        np.copyto(place, flat[start : start + place.size].reshape(place.shape))
        start += place.size
