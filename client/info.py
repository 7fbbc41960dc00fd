"""Plain records that describe the server and its models. May import NumPy and the generated messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Any

import numpy as np

from numba_adam.client.settings import SettingsInfo, settings_info
from numba_adam.errors import ConfigurationError
from numba_adam.ps import convert
from numba_adam.ps.guards import NO_GUARDS, Guards
from numba_adam.ps.mode_settings import DEFAULT_LEASE_SECONDS
from numba_adam.ps.round_settings import RoundSettings
from numba_adam.ps.v1 import model_pb2, parameter_service_pb2
from numba_adam.settings.hyperparameters import Hyperparameters
from numba_adam.settings.options import Options


def durability_name(number: int, where: str) -> str:
    """Return "memory" for DURABILITY_MEMORY, and so on.

    Args:
        number: a Durability.
        where: what contains the number, for the error message.

    Raises:
        ConfigurationError: not set, or unknown to this version.
    """
    return _name(convert.DURABILITIES, "durability", number, where)


def mode_name(number: int, where: str) -> str:
    """Return "async" for MODE_ASYNC, and so on; raises as `durability_name` does."""
    return _name(convert.MODES, "mode", number, where)


def _name(known: Mapping[int, StrEnum], field: str, number: int, where: str) -> str:
    if number not in known:
        choices = ", ".join(f"{choice} ({value})" for value, choice in known.items())
        raise ConfigurationError(
            f"{where}: {field}={number}, expected one of {choices}; update numba-adam on this machine"
        )
    return known[number].value


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """A model as the server holds it."""

    name: str
    """Name, unique on the server."""

    dtype: np.dtype[Any]
    """Element type of every array."""

    shapes: Mapping[str, tuple[int, ...]]
    """Shape of each array, by name, in the order of transfers."""

    hyperparameters: Hyperparameters
    """The optimizer's settings, as the model was created."""

    mode: str
    """How the server applies pushes: "async", "sync" or "ssp"."""

    durability: str
    """What acknowledgements promise: "memory"."""

    state_id: str
    """Id of the line of history that `version` belongs to. It changes with each rollback."""

    version: int
    """Number of pushes applied since the model was created."""

    snapshot_version: int
    """Version of the newest snapshot."""

    parameter_count: int
    """Total number of elements of all arrays."""

    guards: Guards = NO_GUARDS
    """Limits of its pushes."""

    options: Options = Options()  # noqa: RUF009 - frozen
    """The formats of its state. A `state_dtype` of None is the model's dtype."""

    settings: SettingsInfo | None = None
    """Its current settings; `hyperparameters` has those that it was created with."""

    rounds: RoundSettings | None = None
    """The rounds of the mode "sync"; None for other modes."""

    staleness: int | None = None
    """For the mode "ssp": how many clocks a worker may be ahead of the slowest; None for other modes."""

    lease_seconds: float = DEFAULT_LEASE_SECONDS
    """Time after a worker's last call until nobody waits for it."""

    def has_arrays_of(self, other: ModelInfo) -> bool:
        """Return whether both have the same arrays in the same order, so that their transfers have the same format."""
        return self.dtype == other.dtype and list(self.shapes.items()) == list(other.shapes.items())


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """One model, with its counters since the server started."""

    model: ModelInfo
    """The model's current description."""

    pushes_applied: int
    """Number of pushes that were applied."""

    pushes_repeated: int
    """Number of repeated pushes, which got their earlier answer again."""

    pushes_rejected: int
    """Number of pushes that were rejected."""

    workers: int
    """Number of workers that have a session."""

    held_pushes: int = 0
    """Number of pushes that wait in the open round."""

    mean_staleness: float = 0.0
    """The mean staleness of the pushes that were applied since the server started."""


@dataclass(frozen=True, slots=True)
class ServerStatus:
    """The server's models, memory and threads."""

    server_version: str
    """Version of numba-adam on the server."""

    uptime_seconds: float
    """Seconds since the server started."""

    models: tuple[ModelStatus, ...]
    """All models, by name."""

    memory_used_bytes: int
    """Bytes in use by models and by transfers in progress."""

    memory_budget_bytes: int
    """Upper limit of `memory_used_bytes`."""

    threading_layer: str
    """Numba's threading layer; empty before the first push."""

    threads: int
    """Number of threads that apply an update."""

    compiling: str = ""
    """The dtype whose kernels the server compiles now, for a new model; empty if it compiles none."""


@dataclass(frozen=True, slots=True)
class SnapshotInfo:
    """One written snapshot."""

    model: str
    """Name of the model."""

    version: int
    """Version of the model in the snapshot."""

    size_bytes: int
    """Size of the file."""

    duration_seconds: float
    """Seconds from the request until the snapshot was on disk."""


def model_info(model: model_pb2.Model) -> ModelInfo:
    """Return a model's record.

    Raises:
        ConfigurationError: this version does not know the mode or durability.
        InvalidRequestError, HyperparameterError: this version does not know the dtype, eps_mode or a hyperparameter.
    """
    spec, state = model.spec, model.state
    where = f"model {spec.name!r}"
    has_changed_mode = bool(model.settings.mode)
    mode_name(model.settings.mode or spec.mode or model_pb2.Mode.MODE_ASYNC, where)
    mode = convert.mode_settings_from_proto(model.settings if has_changed_mode else spec)
    return ModelInfo(
        name=spec.name,
        dtype=convert.dtype_from_proto(spec.dtype),
        shapes=MappingProxyType({tensor.name: tuple(tensor.shape) for tensor in spec.tensors}),
        hyperparameters=convert.hyperparameters_from_proto(spec.hyperparameters),
        mode=str(mode.mode),
        durability=durability_name(
            state.durability or spec.durability or model_pb2.Durability.DURABILITY_MEMORY, where
        ),
        state_id=state.state_id,
        version=state.version,
        snapshot_version=state.snapshot_version,
        parameter_count=model.parameter_count,
        guards=convert.guards_from_proto(spec.guards),
        options=convert.options_from_proto(spec.options),
        settings=settings_info(model),
        rounds=mode.rounds,
        staleness=mode.staleness,
        lease_seconds=convert.lease_seconds_from_proto(spec),
    )


def server_status(pages: Sequence[parameter_service_pb2.GetServerStatusResponse]) -> ServerStatus:
    """Return the server's record. Models come from all pages, all other values from the last page."""
    answer = pages[-1]
    return ServerStatus(
        server_version=answer.server_version,
        uptime_seconds=answer.uptime_seconds,
        models=tuple(_model_status(status) for page in pages for status in page.models),
        memory_used_bytes=answer.memory_used_bytes,
        memory_budget_bytes=answer.memory_budget_bytes,
        threading_layer=answer.threading_layer,
        threads=answer.threads,
        compiling=answer.compiling,
    )


def _model_status(status: parameter_service_pb2.ModelStatus) -> ModelStatus:
    return ModelStatus(
        model=model_info(status.model),
        pushes_applied=status.pushes_applied,
        pushes_repeated=status.pushes_repeated,
        pushes_rejected=status.pushes_rejected,
        workers=status.workers,
        held_pushes=status.held_pushes,
        mean_staleness=status.mean_staleness,
    )


def snapshot_info(snapshot: parameter_service_pb2.SnapshotInfo) -> SnapshotInfo:
    """Return a snapshot's record."""
    return SnapshotInfo(
        model=snapshot.model,
        version=snapshot.state.version,
        size_bytes=snapshot.size_bytes,
        duration_seconds=snapshot.duration_seconds,
    )
