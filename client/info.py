"""What the server says about its models and itself, as plain records. May import NumPy and the generated messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Any

import numpy as np

from numba_adam.errors import ConfigurationError
from numba_adam.ps import convert
from numba_adam.ps.v1 import model_pb2, parameter_service_pb2
from numba_adam.settings.hyperparameters import Hyperparameters


def durability_name(number: int, where: str) -> str:
    """Return "memory" for DURABILITY_MEMORY, and so on.

    Args:
        number: a Durability.
        where: what says so, for the message.

    Raises:
        ConfigurationError: not set, or unknown to this version: what it promises is not for us to guess.
    """
    return _name(convert.DURABILITIES, "durability", number, where)


def mode_name(number: int, where: str) -> str:
    """Return "async" for MODE_ASYNC, and so on; raises as `durability_name` does."""
    return _name(convert.MODES, "mode", number, where)


def _name(known: Mapping[int, StrEnum], field: str, number: int, where: str) -> str:
    if number not in known:
        choices = ", ".join(f"{choice} ({value})" for value, choice in known.items())
        raise ConfigurationError(f"{where}: {field}={number}, and this client knows {choices}; update numba-adam here")
    return known[number].value


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """A model as the server holds it."""

    name: str
    """Name, unique on the server."""

    dtype: np.dtype[Any]
    """Element type of every array."""

    shapes: Mapping[str, tuple[int, ...]]
    """Shape of each array, by name, in the order in which they travel."""

    hyperparameters: Hyperparameters
    """The optimizer's settings."""

    mode: str
    """How pushes become steps: "async"."""

    durability: str
    """What acknowledgements promise: "memory"."""

    state_id: str
    """Names the line of history that `version` belongs to; new after each rollback."""

    version: int
    """Number of pushes applied since the model was created."""

    snapshot_version: int
    """Version that the newest snapshot holds."""

    parameter_count: int
    """Number of elements of all arrays together."""

    def has_arrays_of(self, other: ModelInfo) -> bool:
        """Say whether both have the same arrays in the same order, so that one's bytes can be taken for the other's."""
        return self.dtype == other.dtype and list(self.shapes.items()) == list(other.shapes.items())


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """What has happened to one model since the server started."""

    model: ModelInfo
    """The model as it stands."""

    pushes_applied: int
    """Pushes applied."""

    pushes_repeated: int
    """Pushes that had their answer already, answered again."""

    pushes_rejected: int
    """Pushes rejected."""

    workers: int
    """Workers with a session."""


@dataclass(frozen=True, slots=True)
class ServerStatus:
    """What the server holds and has done."""

    server_version: str
    """Version of numba-adam that the server runs."""

    uptime_seconds: float
    """Seconds since it started."""

    models: tuple[ModelStatus, ...]
    """All models, by name."""

    memory_used_bytes: int
    """Bytes that models and transfers in progress hold."""

    memory_budget_bytes: int
    """Bytes that they may hold."""

    threading_layer: str
    """Numba's threading layer; empty before the first push."""

    threads: int
    """Threads that apply an update."""


@dataclass(frozen=True, slots=True)
class SnapshotInfo:
    """One snapshot that was written."""

    model: str
    """Name of the model."""

    version: int
    """Version that it holds."""

    size_bytes: int
    """Size of the file."""

    duration_seconds: float
    """Time from the request until it was on disk."""


def model_info(model: model_pb2.Model) -> ModelInfo:
    """Return a model's record.

    Raises:
        ConfigurationError: a mode or durability that this version does not know.
        InvalidRequestError, HyperparameterError: the same of a dtype, eps_mode or hyperparameter.
    """
    spec, state = model.spec, model.state
    where = f"model {spec.name!r}"
    return ModelInfo(
        name=spec.name,
        dtype=convert.dtype_from_proto(spec.dtype),
        shapes=MappingProxyType({tensor.name: tuple(tensor.shape) for tensor in spec.tensors}),
        hyperparameters=convert.hyperparameters_from_proto(spec.hyperparameters),
        mode=mode_name(spec.mode or model_pb2.Mode.MODE_ASYNC, where),
        durability=durability_name(
            state.durability or spec.durability or model_pb2.Durability.DURABILITY_MEMORY, where
        ),
        state_id=state.state_id,
        version=state.version,
        snapshot_version=state.snapshot_version,
        parameter_count=model.parameter_count,
    )


def server_status(pages: Sequence[parameter_service_pb2.GetServerStatusResponse]) -> ServerStatus:
    """Return the server's record; what is not about one model is the last page's."""
    answer = pages[-1]
    return ServerStatus(
        server_version=answer.server_version,
        uptime_seconds=answer.uptime_seconds,
        models=tuple(_model_status(status) for page in pages for status in page.models),
        memory_used_bytes=answer.memory_used_bytes,
        memory_budget_bytes=answer.memory_budget_bytes,
        threading_layer=answer.threading_layer,
        threads=answer.threads,
    )


def _model_status(status: parameter_service_pb2.ModelStatus) -> ModelStatus:
    return ModelStatus(
        model=model_info(status.model),
        pushes_applied=status.pushes_applied,
        pushes_repeated=status.pushes_repeated,
        pushes_rejected=status.pushes_rejected,
        workers=status.workers,
    )


def snapshot_info(snapshot: parameter_service_pb2.SnapshotInfo) -> SnapshotInfo:
    """Return a snapshot's record."""
    return SnapshotInfo(
        model=snapshot.model,
        version=snapshot.state.version,
        size_bytes=snapshot.size_bytes,
        duration_seconds=snapshot.duration_seconds,
    )
