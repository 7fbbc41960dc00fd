"""Converts dtypes, tensor specs, hyperparameters and states between protobuf messages and Python values.

May import NumPy and the generated messages; never grpc or Numba.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from numba_adam.errors import DtypeError, InvalidRequestError
from numba_adam.ps import detail
from numba_adam.ps.guards import NAMES as GUARDS
from numba_adam.ps.guards import Guards
from numba_adam.ps.mode_settings import DEFAULT_LEASE_SECONDS, ModeSettings, lease_seconds_of
from numba_adam.ps.modes import Durability, Mode
from numba_adam.ps.round_settings import RoundSettings
from numba_adam.ps.v1 import model_pb2
from numba_adam.ps.v1.model_pb2 import Dtype, EpsMode, Hyperparameters, StatePoint, TensorSpec
from numba_adam.settings.hyperparameters import EpsMode as EpsModeName
from numba_adam.settings.hyperparameters import Hyperparameters as PlainHyperparameters
from numba_adam.settings.options import Options, Rounding, StateDtype

_DTYPE_PAIRS: tuple[tuple[Dtype, np.dtype[Any]], ...] = (
    (Dtype.DTYPE_FLOAT32, np.dtype("<f4")),
    (Dtype.DTYPE_FLOAT64, np.dtype("<f8")),
)
_DTYPES: dict[int, np.dtype[Any]] = dict(_DTYPE_PAIRS)
PAYLOAD_DTYPES: dict[str, Dtype] = {
    "float32": Dtype.DTYPE_FLOAT32,
    "float64": Dtype.DTYPE_FLOAT64,
    "bfloat16": Dtype.DTYPE_BFLOAT16,
    "float16": Dtype.DTYPE_FLOAT16,
}
"""The Dtypes that the payload of a push may have, by name."""
EPS_MODES: dict[int, EpsModeName] = {
    EpsMode.EPS_MODE_UNSPECIFIED: "hat",
    EpsMode.EPS_MODE_HAT: "hat",
    EpsMode.EPS_MODE_ALGORITHM1: "algorithm1",
}
"""The places of eps, by the protocol's number."""

MODES: dict[int, Mode] = {
    model_pb2.MODE_ASYNC: Mode.ASYNC,
    model_pb2.MODE_SYNC: Mode.SYNC,
    model_pb2.MODE_SSP: Mode.SSP,
}
"""The modes of this version, by the protocol's number."""

DURABILITIES: dict[int, Durability] = {
    model_pb2.DURABILITY_MEMORY: Durability.MEMORY,
    model_pb2.DURABILITY_PROCESS: Durability.PROCESS,
    model_pb2.DURABILITY_DISK: Durability.DISK,
}
"""The durabilities of this version, by the protocol's number."""

_STATE_DTYPES: dict[int, StateDtype | None] = {
    model_pb2.STATE_DTYPE_UNSPECIFIED: None,
    model_pb2.STATE_DTYPE_FLOAT32: "float32",
    model_pb2.STATE_DTYPE_FLOAT64: "float64",
    model_pb2.STATE_DTYPE_BFLOAT16: "bfloat16",
    model_pb2.STATE_DTYPE_EIGHT_BIT: "8bit",
}
_ROUNDINGS: dict[int, Rounding] = {
    model_pb2.ROUNDING_UNSPECIFIED: "nearest",
    model_pb2.ROUNDING_NEAREST: "nearest",
    model_pb2.ROUNDING_STOCHASTIC: "stochastic",
}
_STATE_DTYPE_NUMBERS = {name: number for number, name in _STATE_DTYPES.items()}
_ROUNDING_NUMBERS = {name: number for number, name in _ROUNDINGS.items()}
_MODE_NUMBERS = {mode: number for number, mode in MODES.items()}
_DURABILITY_NUMBERS = {durability: number for number, durability in DURABILITIES.items()}
_NUMBERS = ("lr", "eps", "weight_decay")
_FLAGS = ("decoupled_weight_decay", "maximize", "amsgrad")


def dtype_from_proto(dtype: int) -> np.dtype[Any]:
    """Return the NumPy dtype of a Dtype.

    Raises:
        InvalidRequestError: the Dtype is not set, or this version does not know it.
    """
    found = _DTYPES.get(dtype)
    if found is None:
        raise InvalidRequestError(f"dtype={dtype}: it must be DTYPE_FLOAT32 (1) or DTYPE_FLOAT64 (2)")
    return found


def dtype_to_proto(dtype: npt.DTypeLike) -> Dtype:
    """Return the Dtype of a NumPy dtype.

    Raises:
        DtypeError: the dtype is neither float32 nor float64.
    """
    for number, known in _DTYPE_PAIRS:
        if np.dtype(dtype) == known:
            return number
    raise DtypeError(f"dtype {np.dtype(dtype)}: the parameter server holds float32 and float64")


def tensor_specs(arrays: Mapping[str, np.ndarray[Any, Any]]) -> list[TensorSpec]:
    """Return the name and shape of each array, in order."""
    return [TensorSpec(name=name, shape=array.shape) for name, array in arrays.items()]


def hyperparameters_from_proto(message: Hyperparameters) -> PlainHyperparameters:
    """Return validated hyperparameters; fields that are not set get their defaults.

    Raises:
        HyperparameterError: a value is out of range.
        InvalidRequestError: this version does not know the eps_mode.
    """
    if message.eps_mode not in EPS_MODES:
        raise InvalidRequestError(
            f"eps_mode={message.eps_mode}: it must be EPS_MODE_HAT (1) or EPS_MODE_ALGORITHM1 (2)"
        )
    default = PlainHyperparameters()
    numbers = {name: getattr(message, name) for name in _NUMBERS if message.HasField(name)}
    betas = (
        message.beta1 if message.HasField("beta1") else default.betas[0],
        message.beta2 if message.HasField("beta2") else default.betas[1],
    )
    flags = {name: getattr(message, name) for name in _FLAGS}
    return PlainHyperparameters(betas=betas, eps_mode=EPS_MODES[message.eps_mode], **numbers, **flags)


def hyperparameters_to_proto(plain: PlainHyperparameters) -> Hyperparameters:
    """Return the message with every field set, so that a later change of defaults does not change a model."""
    numbers = {name: getattr(plain, name) for name in _NUMBERS}
    flags = {name: getattr(plain, name) for name in _FLAGS}
    mode = EpsMode.EPS_MODE_HAT if plain.eps_mode == "hat" else EpsMode.EPS_MODE_ALGORITHM1
    return Hyperparameters(beta1=plain.betas[0], beta2=plain.betas[1], eps_mode=mode, **numbers, **flags)


def guards_from_proto(message: model_pb2.Guards) -> Guards:
    """Return validated guards.

    Raises:
        HyperparameterError: a limit is not a finite number above 0.
    """
    return Guards(**{name: getattr(message, name) for name in GUARDS if message.HasField(name)})


def guards_to_proto(guards: Guards) -> model_pb2.Guards | None:
    """Return the message; None if there are no limits."""
    limits = guards.limits()
    return model_pb2.Guards(**limits) if limits else None


def mode_settings_from_proto(message: Any) -> ModeSettings:
    """Return the validated mode of a ModelSpec, of Settings or of a change, with what belongs to it.

    Raises:
        HyperparameterError: a value is out of range.
        InvalidRequestError: the mode is unknown, or what belongs to it is missing, or something else is there.
    """
    mode = MODES.get(message.mode or model_pb2.MODE_ASYNC)
    if mode is None:
        known = ", ".join(f"{name.value} ({number})" for number, name in MODES.items())
        raise InvalidRequestError(f"mode={message.mode}: this version knows {known}")
    if (mode is Mode.SYNC) is not message.HasField("rounds"):
        raise InvalidRequestError(f"mode={message.mode}: models of MODE_SYNC (2) need rounds, and others have none")
    if (mode is Mode.SSP) is not message.HasField("staleness"):
        raise InvalidRequestError(f"mode={message.mode}: models of MODE_SSP (3) need staleness, and others have none")
    return ModeSettings(
        mode=mode,
        rounds=_rounds_from_proto(message.rounds) if mode is Mode.SYNC else None,
        staleness=message.staleness if mode is Mode.SSP else None,
    )


def _rounds_from_proto(rounds: model_pb2.Rounds) -> RoundSettings:
    timeout = {"timeout_seconds": rounds.timeout_seconds} if rounds.HasField("timeout_seconds") else {}
    return RoundSettings(workers=rounds.workers, backup=rounds.backup, **timeout)


def set_mode_settings(message: Any, settings: ModeSettings) -> None:
    """Write a mode, with what belongs to it, into a ModelSpec, Settings or a change."""
    message.mode = _MODE_NUMBERS[settings.mode]
    if settings.rounds is not None:
        message.rounds.CopyFrom(model_pb2.Rounds(**settings.rounds.to_record()))
    if settings.staleness is not None:
        message.staleness = settings.staleness


def lease_seconds_from_proto(message: model_pb2.ModelSpec) -> float:
    """Return the seconds of a model's leases.

    Raises:
        HyperparameterError: it is not a finite number above 0.
    """
    return lease_seconds_of(message.lease_seconds) if message.HasField("lease_seconds") else DEFAULT_LEASE_SECONDS


def options_from_proto(message: model_pb2.Options) -> Options:
    """Return validated options; fields that are not set get their defaults.

    Raises:
        HyperparameterError: a value is out of range.
        InvalidRequestError: this version does not know the state_dtype or the rounding.
    """
    if message.state_dtype not in _STATE_DTYPES:
        known = ", ".join(f"{name} ({number})" for number, name in _STATE_DTYPES.items() if name)
        raise InvalidRequestError(f"state_dtype={message.state_dtype}: it must be one of {known}")
    if message.rounding not in _ROUNDINGS:
        raise InvalidRequestError(
            f"rounding={message.rounding}: it must be ROUNDING_NEAREST (1) or ROUNDING_STOCHASTIC (2)"
        )
    return Options(
        state_dtype=_STATE_DTYPES[message.state_dtype],
        rounding=_ROUNDINGS[message.rounding],
        seed=message.seed,
        ema_decay=message.ema_decay if message.HasField("ema_decay") else None,
    )


def options_to_proto(options: Options) -> model_pb2.Options | None:
    """Return the message; None if all options have their defaults."""
    if options == Options():
        return None
    state_dtype: Any = _STATE_DTYPE_NUMBERS[options.state_dtype]
    rounding: Any = _ROUNDING_NUMBERS[options.rounding]
    return model_pb2.Options(state_dtype=state_dtype, rounding=rounding, seed=options.seed, ema_decay=options.ema_decay)


def durability_to_proto(durability: Durability) -> Any:
    """Return the protocol's number of a durability."""
    return _DURABILITY_NUMBERS[durability]


def state_to_proto(state: detail.StatePoint) -> StatePoint:
    """Return the message for a model's state."""
    return StatePoint(
        state_id=state.state_id,
        version=state.version,
        first_version=state.first_version,
        snapshot_version=state.snapshot_version,
        durability=durability_to_proto(state.durability) if state.durability else None,
    )
