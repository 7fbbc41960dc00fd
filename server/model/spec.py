"""The properties of a model that do not change while it trains, as plain frozen values.

Imports the error tree, the hyperparameters with their limits, and the modes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np

from numba_adam.ps.guards import NAMES as GUARDS
from numba_adam.ps.guards import NO_GUARDS, Guards
from numba_adam.ps.mode_settings import DEFAULT_LEASE_SECONDS, ModeSettings
from numba_adam.ps.modes import Durability, Mode
from numba_adam.ps.round_settings import NAMES as ROUNDS
from numba_adam.ps.round_settings import RoundSettings
from numba_adam.server.model.names import check_model_name
from numba_adam.server.model.options import NO_OPTIONS, check_options, option_differences, options_from, to_options
from numba_adam.server.model.records import check_keys, check_value
from numba_adam.server.model.steering import Group, Steering, setting_differences
from numba_adam.server.model.tensors import Described, Tensor, check_tensors
from numba_adam.settings.hyperparameters import EPS_MODES, Hyperparameters
from numba_adam.settings.limits import check_held
from numba_adam.settings.options import Options

DTYPE_NUMBERS = {"float32": 1, "float64": 2}
"""Element types of models, and their numbers in the protocol and in the digests of snapshots."""

NARROW_DTYPE_NUMBERS = {"bfloat16": 3, "float16": 4}
"""Likewise, the element types that gradients alone may have. The server widens them to the model's."""

_BYTES_OF_A_MODEL = 1 << 16  # measured, and rounded up: threads, locks, tables
_BYTES_OF_AN_ARRAY = 3 << 9
_KNOWN_VALUES = {
    "dtype": tuple(DTYPE_NUMBERS),
    "mode": tuple(mode.value for mode in Mode),
    "durability": tuple(durability.value for durability in Durability),
}
_KEYS = ("name", "tensors", "hyperparameters", *_KNOWN_VALUES)
_OPTIONAL_KEYS = ("request_id", "initial", "guards", "options", "settings", "rounds", "staleness", "lease_seconds")
_HYPERPARAMETERS = tuple(Hyperparameters.__dataclass_fields__)


@dataclass(frozen=True)
class Spec:
    """The properties of a model that do not change while it trains."""

    name: str
    """Unique on the server, and a valid folder name."""

    dtype: str
    """"float32" or "float64", for all arrays."""

    tensors: tuple[Tensor, ...]
    """The arrays, in the order of their bytes in a payload."""

    hyperparameters: Hyperparameters
    """The optimizer's settings."""

    mode: Mode = Mode.ASYNC
    """How the server applies pushes."""

    durability: Durability = Durability.MEMORY
    """What a crash may lose."""

    guards: Guards = NO_GUARDS
    """Limits of its pushes."""

    options: Options = NO_OPTIONS
    """The formats of its state. A `state_dtype` that the dtype implies is None."""

    settings: Steering | None = None
    """The settings that it begins with. None: one group, with `hyperparameters`."""

    rounds: RoundSettings | None = None
    """Its rounds; None unless the mode is SYNC."""

    staleness: int | None = None
    """How many clocks a worker may be ahead of the slowest; None unless the mode is SSP."""

    lease_seconds: float = DEFAULT_LEASE_SECONDS
    """Time after a worker's last call until nobody waits for it."""

    @property
    def mode_settings(self) -> ModeSettings:
        """The mode that it begins with."""
        return ModeSettings(mode=self.mode, rounds=self.rounds, staleness=self.staleness)

    @cached_property
    def first_settings(self) -> Steering:
        """The settings that it begins with."""
        return self.settings or Steering((Group(tuple(range(len(self.tensors))), self.hyperparameters),))

    @property
    def numpy_dtype(self) -> np.dtype[Any]:
        """The element type, little-endian as on the wire. NumPy's own object, by which kernels know plain arrays."""
        return np.dtype(np.dtype(self.dtype).newbyteorder("<").str)

    @property
    def element_count(self) -> int:
        """Number of elements of all arrays."""
        return sum(tensor.size for tensor in self.tensors)

    @property
    def nbytes(self) -> int:
        """Size of all parameters in bytes."""
        return self.element_count * self.numpy_dtype.itemsize

    @property
    def description_bytes(self) -> int:
        """Approximate memory of a model with this spec, without its arrays."""
        return _BYTES_OF_A_MODEL + _BYTES_OF_AN_ARRAY * len(self.tensors)

    def to_record(self) -> dict[str, Any]:
        """Return plain values that JSON can hold."""
        guards = self.guards.limits()  # without any, the record is that of earlier releases
        return {
            "name": self.name,
            "dtype": self.dtype,
            "tensors": [{"name": tensor.name, "shape": list(tensor.shape)} for tensor in self.tensors],
            "hyperparameters": {**asdict(self.hyperparameters), "betas": list(self.hyperparameters.betas)},
            "mode": self.mode.value,
            "durability": self.durability.value,
            **({"guards": guards} if guards else {}),
            **({"options": options} if (options := to_options(self.options)) else {}),
            **({} if self.settings is None else {"settings": self.settings.to_record()}),
            **({"rounds": self.rounds.to_record()} if self.rounds else {}),
            **({} if self.staleness is None else {"staleness": self.staleness}),
            **({} if self.lease_seconds == DEFAULT_LEASE_SECONDS else {"lease_seconds": self.lease_seconds}),
        }

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Spec:
        """Return the spec that `to_record` wrote. The record may also have keys about the creation.

        Raises:
            SnapshotError: it has a key or value that this version does not know.
        """
        check_keys(record, "the model's record", _KEYS, _OPTIONAL_KEYS)
        check_keys(record["hyperparameters"], "the record of the hyperparameters", _HYPERPARAMETERS)
        check_keys(record.get("guards", {}), "the record of the guards", (), GUARDS)
        check_keys(record.get("rounds", {}), "the record of the rounds", (), ROUNDS)
        for item in record["tensors"]:
            check_keys(item, "an array's record", Tensor._fields)
        for key, known in _KNOWN_VALUES.items():
            check_value(record[key], key, known)
        check_value(record["hyperparameters"]["eps_mode"], "eps_mode", EPS_MODES)
        return cls(
            name=check_model_name(record["name"]),
            dtype=record["dtype"],
            tensors=tuple(Tensor(item["name"], tuple(item["shape"])) for item in record["tensors"]),
            hyperparameters=Hyperparameters(**record["hyperparameters"]),
            mode=Mode(record["mode"]),
            durability=Durability(record["durability"]),
            guards=Guards(**record.get("guards", {})),
            options=options_from(record.get("options", {})),
            settings=Steering.from_record(record["settings"]) if "settings" in record else None,
            rounds=RoundSettings(**record["rounds"]) if "rounds" in record else None,
            staleness=record.get("staleness"),
            lease_seconds=record.get("lease_seconds", DEFAULT_LEASE_SECONDS),
        )

    @classmethod
    def checked(
        cls,
        name: str,
        dtype: np.dtype[Any],
        arrays: Sequence[Described],
        hyperparameters: Hyperparameters,
        mode: ModeSettings,
        durability: Durability,
        guards: Guards = NO_GUARDS,
        options: Options = NO_OPTIONS,
        settings: Steering | None = None,
        lease_seconds: float = DEFAULT_LEASE_SECONDS,
    ) -> Spec:
        """Return the spec of a new model.

        Raises:
            InvalidRequestError: the name or an array cannot be used.
            HyperparameterError: the model's dtype cannot hold a hyperparameter, a setting or an option.
            DtypeError: the model's dtype and the options cannot be combined.
        """
        options = check_options(options, dtype.name)
        check_held(hyperparameters, dtype.name)
        return cls(
            name=check_model_name(name),
            dtype=dtype.name,
            tensors=check_tensors(arrays, dtype.itemsize),
            hyperparameters=hyperparameters,
            mode=mode.mode,
            durability=durability,
            guards=guards,
            options=options,
            settings=None if settings is None else settings.check(dtype.name, hyperparameters.amsgrad),
            rounds=mode.rounds,
            staleness=mode.staleness,
            lease_seconds=lease_seconds,
        )


def differences(have: Spec, want: Spec) -> list[str]:
    """Return the differences between an existing model and the requested one, one line each."""
    lines = _tensor_differences(have, want)
    if have.dtype != want.dtype:
        lines.append(f"dtype: the model has {have.dtype}, asked for {want.dtype}")
    for name in _HYPERPARAMETERS:
        old, new = getattr(have.hyperparameters, name), getattr(want.hyperparameters, name)
        if old != new:
            lines.append(f"{name}: the model has {old!r}, asked for {new!r}")
    for name in GUARDS:
        limit, wanted = getattr(have.guards, name), getattr(want.guards, name)
        if limit != wanted:
            lines.append(f"guards: {name}: the model has {limit}, asked for {wanted}")
    lines += option_differences(have.options, want.options, have.dtype)
    if not lines:  # the arrays are the same
        lines += setting_differences(have.first_settings, want.first_settings)
    if have.mode != want.mode:
        lines.append(f"mode: the model has {have.mode}, asked for {want.mode}")
    elif have.rounds and want.rounds:
        for name in ROUNDS:
            value, other = getattr(have.rounds, name), getattr(want.rounds, name)
            if value != other:
                lines.append(f"rounds: {name}: the model has {value}, asked for {other}")
    elif have.staleness != want.staleness:
        lines.append(f"staleness: the model has {have.staleness}, asked for {want.staleness}")
    if have.lease_seconds != want.lease_seconds:
        lines.append(f"lease_seconds: the model has {have.lease_seconds:g}, asked for {want.lease_seconds:g}")
    if have.durability != want.durability:
        lines.append(
            f"durability: the model has {have.durability}, asked for {want.durability} (durability="
            f"{have.durability.value!r} takes it as it is)"
        )
    return lines


def _tensor_differences(have: Spec, want: Spec) -> list[str]:
    old, new = dict(have.tensors), dict(want.tensors)
    lines = [f"array {name!r}: the model does not have it" for name in new if name not in old]
    lines += [f"array {name!r}: the model has it, it was not given" for name in old if name not in new]
    lines += [
        f"array {name!r}: the model has shape {old[name]}, asked for {shape}"
        for name, shape in new.items()
        if name in old and old[name] != shape
    ]
    if not lines and list(old) != list(new):
        lines.append(f"order of the arrays: the model has {list(old)}, asked for {list(new)}")
    return lines
