"""The settings of a model that may change while it trains: hyperparameters of its groups, clipping, frozen arrays.

Plain frozen values: a change gives new settings. Imports the hyperparameters with their limits, the treatment of
gradients, the schedules and the checks of records.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

from numba_adam.errors import HyperparameterError, InvalidRequestError, SnapshotError
from numba_adam.ps.mode_settings import ModeSettings
from numba_adam.ps.schedule_records import schedule_of, schedule_record
from numba_adam.ps.schedules import Schedule
from numba_adam.server.model.records import check_keys, check_value
from numba_adam.settings.hyperparameters import EPS_MODES, Hyperparameters
from numba_adam.settings.limits import check_held
from numba_adam.settings.scaling import AS_THEY_ARE, Scaling, clip_value_of, max_norm_of

_OPTIONAL_KEYS = ("max_grad_norm", "clip_value", "frozen", "staleness_power", "largest_staleness", "mode")
_LARGEST_POWER = 4.0
_HYPERPARAMETERS = tuple(Hyperparameters.__dataclass_fields__)


class Group(NamedTuple):
    """Arrays with the same hyperparameters."""

    tensors: tuple[int, ...]
    """Places of its arrays in the model, in the group's order."""

    hyperparameters: Hyperparameters
    """Its settings; with a schedule, `lr` is that of version 0."""

    schedule: Schedule | None = None
    """Its learning rate by version; None: that of the hyperparameters."""

    def at(self, version: int) -> Hyperparameters:
        """Return the hyperparameters of the push that makes version `version` + 1."""
        if self.schedule is None:
            return self.hyperparameters
        return replace(self.hyperparameters, lr=self.schedule.lr_at(version))


class StepSettings(NamedTuple):
    """The settings of one step."""

    hyperparameters: tuple[Hyperparameters, ...]
    """Those of each group."""

    frozen: frozenset[int]
    """Places of the arrays that do not change."""

    scaling: Scaling
    """The treatment of the gradients."""


@dataclass(frozen=True)
class Steering:
    """The settings at one moment."""

    groups: tuple[Group, ...]
    """Every array is in one of them."""

    max_grad_norm: float | None = None
    """Largest 2-norm of a push's gradients: larger ones are scaled down to it. None: any."""

    clip_value: float | None = None
    """Largest magnitude of an element, after that. None: any."""

    frozen: frozenset[int] = frozenset()
    """Places of the arrays that pushes do not change."""

    staleness_power: float = 0.0
    """The learning rates are divided by (1 + staleness) to this power; see `staleness_divisor`."""

    largest_staleness: int | None = None
    """Largest staleness of a push; None: any."""

    mode: ModeSettings | None = None
    """The mode, if it was changed; None: that of the model's spec."""

    def step(self, version: int, loss_scale: float = 1.0, staleness: int = 0) -> StepSettings:
        """Return the settings of the push that makes version `version` + 1."""
        settings = self._always
        if self._has_schedule:
            settings = settings._replace(hyperparameters=tuple(group.at(version) for group in self.groups))
        if staleness and self.staleness_power:
            divisor = staleness_divisor(staleness, self.staleness_power)
            slower = tuple(replace(each, lr=each.lr / divisor) for each in settings.hyperparameters)
            settings = settings._replace(hyperparameters=slower)
        if loss_scale != 1.0:
            settings = settings._replace(scaling=settings.scaling.with_factor(1.0 / loss_scale))
        return settings

    @cached_property
    def group_of(self) -> tuple[int, ...]:
        """The group of each array of the model."""
        places = {tensor: index for index, group in enumerate(self.groups) for tensor in group.tensors}
        return tuple(places[tensor] for tensor in range(len(places)))

    @property
    def order(self) -> list[int]:
        """The places of the arrays in the order of an optimizer with these groups."""
        return [tensor for group in self.groups for tensor in group.tensors]

    @cached_property
    def _has_schedule(self) -> bool:
        return any(group.schedule is not None for group in self.groups)

    @cached_property
    def _always(self) -> StepSettings:
        """The settings of a step without schedules and loss scale."""
        scaling = AS_THEY_ARE
        if self.max_grad_norm is not None or self.clip_value is not None:
            max_norm = max_norm_of(self.max_grad_norm)
            scaling = Scaling(clip_value=self.clip_value or 0.0, max_norm=max_norm)
            scaling = scaling._replace(is_measured=self.max_grad_norm is not None)
        return StepSettings(tuple(group.hyperparameters for group in self.groups), self.frozen, scaling)

    def check(self, dtype: str, amsgrad: bool) -> Steering:
        """Return these settings, if a model can have them.

        Args:
            dtype: the model's.
            amsgrad: whether the model has the arrays of AMSGrad.

        Raises:
            HyperparameterError: the dtype cannot hold one of them, or a group's `amsgrad` is not the model's.
        """
        for index, group in enumerate(self.groups):
            if group.hyperparameters.amsgrad != amsgrad:
                raise HyperparameterError(
                    f"group {index}: amsgrad={group.hyperparameters.amsgrad}: the model has {amsgrad}, for all groups"
                )
            check_held(group.hyperparameters, dtype)
            if group.schedule is not None:
                check_held(replace(group.hyperparameters, lr=group.schedule.largest()), dtype)
        check_power(self.staleness_power)
        clip_value_of(self.clip_value, dtype)
        max_norm_of(self.max_grad_norm)
        return self

    def to_record(self) -> dict[str, Any]:
        """Return plain values that JSON can hold."""
        return {
            "groups": [_group_record(group) for group in self.groups],
            **({} if self.max_grad_norm is None else {"max_grad_norm": self.max_grad_norm}),
            **({} if self.clip_value is None else {"clip_value": self.clip_value}),
            **({"frozen": sorted(self.frozen)} if self.frozen else {}),
            **({"staleness_power": self.staleness_power} if self.staleness_power else {}),
            **({} if self.largest_staleness is None else {"largest_staleness": self.largest_staleness}),
            **({} if self.mode is None else {"mode": self.mode.to_record()}),
        }

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Steering:
        """Return the settings that `to_record` wrote.

        Raises:
            SnapshotError: it has a key or value that this version does not know.
        """
        check_keys(record, "the record of the settings", ("groups",), _OPTIONAL_KEYS)
        return cls(
            groups=tuple(map(_group_from, record["groups"])),
            max_grad_norm=record.get("max_grad_norm"),
            clip_value=record.get("clip_value"),
            frozen=frozenset(record.get("frozen", ())),
            staleness_power=record.get("staleness_power", 0.0),
            largest_staleness=record.get("largest_staleness"),
            mode=_mode_from(record["mode"]) if "mode" in record else None,
        )


def staleness_divisor(staleness: int, power: float) -> float:
    """Return what the learning rates of a stale push are divided by: (1 + staleness)^power.

    The power is a multiple of 0.5, so products and one square root make it, and each of them is the nearest float64: no
    library's `pow` has a part in the bits.
    """
    number, (whole, half) = float(1 + staleness), divmod(power, 1.0)
    return math.prod([number] * int(whole), start=1.0) * (math.sqrt(number) if half else 1.0)


def check_power(power: float) -> float:
    """Return a staleness power.

    Raises:
        HyperparameterError: it is not a multiple of 0.5 from 0 to 4.
    """
    if not 0 <= power <= _LARGEST_POWER or power * 2 != int(power * 2):
        raise HyperparameterError(f"staleness_power={power!r}: it must be 0, 0.5, 1, 1.5, ... up to {_LARGEST_POWER:g}")
    return power


def grouped(
    groups: Iterable[tuple[Sequence[str], Hyperparameters, Schedule | None]],
    names: Sequence[str],
    rest: Hyperparameters,
) -> tuple[Group, ...]:
    """Return groups of a model's arrays.

    Args:
        groups: names, hyperparameters and schedule of each; no names, in the last one: the arrays of no other group.
        names: those of the model's arrays.
        rest: hyperparameters of a last group, if the groups do not have all arrays.

    Raises:
        InvalidRequestError: a name is unknown or in two groups, or a group has no array.
    """
    places = {name: place for place, name in enumerate(names)}
    left, given, result = dict(places), list(groups), []
    for index, (members, hyperparameters, schedule) in enumerate(given):
        is_rest = not members and index == len(given) - 1
        for name in members:
            if left.pop(name, None) is None:
                why = "is in two groups" if name in places else "the model has no such array"
                raise InvalidRequestError(f"groups: group {index}: {name[:80]!r}: {why}")
        tensors = tuple(left.values()) if is_rest else tuple(places[name] for name in members)
        if not tensors:
            raise InvalidRequestError(f"groups: group {index} has no array; leave it out")
        if is_rest:
            left = {}
        result.append(Group(tensors, hyperparameters, schedule))
    return (*result, Group(tuple(left.values()), rest)) if left else tuple(result)


def places_of(given: Iterable[str], names: Sequence[str], what: str) -> frozenset[int]:
    """Return the places of arrays by name.

    Raises:
        InvalidRequestError: a name is unknown.
    """
    places = {name: place for place, name in enumerate(names)}
    for name in given:
        if name not in places:
            raise InvalidRequestError(f"{what}: {name[:80]!r}: the model has no such array")
    return frozenset(places[name] for name in given)


def setting_differences(have: Steering, want: Steering) -> list[str]:
    """Return the differences between the first settings of two models with the same arrays, one line each."""
    if [group.tensors for group in have.groups] != [group.tensors for group in want.groups]:
        return [f"groups: the model has {len(have.groups)} with other arrays, asked for {len(want.groups)}"]
    lines = []
    for index, (old, new) in enumerate(zip(have.groups, want.groups, strict=True)):
        if old.schedule != new.schedule:
            lines.append(f"group {index}: lr: the model has {old.schedule}, asked for {new.schedule}")
        if len(have.groups) > 1:  # those of a single group are compared as the model's
            lines += [
                f"group {index}: {name}: the model has {getattr(old.hyperparameters, name)!r}, asked for "
                f"{getattr(new.hyperparameters, name)!r}"
                for name in _HYPERPARAMETERS
                if getattr(old.hyperparameters, name) != getattr(new.hyperparameters, name)
            ]
    for name in ("max_grad_norm", "clip_value", "staleness_power", "largest_staleness"):
        if getattr(have, name) != getattr(want, name):
            lines.append(f"{name}: the model began with {getattr(have, name)}, asked for {getattr(want, name)}")
    if have.frozen != want.frozen:
        lines.append(f"frozen: the model began with {len(have.frozen)} arrays, asked for {len(want.frozen)} or others")
    return lines


def _mode_from(record: Mapping[str, Any]) -> ModeSettings:
    try:
        return ModeSettings.from_record(record)
    except (HyperparameterError, KeyError, TypeError, ValueError) as error:
        raise SnapshotError(
            f"the record of the mode cannot be read ({error!r}); a newer numba-adam may have written it"
        ) from error


def _group_record(group: Group) -> dict[str, Any]:
    hyperparameters = {**asdict(group.hyperparameters), "betas": list(group.hyperparameters.betas)}
    schedule = {} if group.schedule is None else {"schedule": schedule_record(group.schedule)}
    return {"tensors": list(group.tensors), "hyperparameters": hyperparameters, **schedule}


def _group_from(record: Mapping[str, Any]) -> Group:
    check_keys(record, "the record of a group", ("tensors", "hyperparameters"), ("schedule",))
    values = record["hyperparameters"]
    check_keys(values, "the record of the hyperparameters", _HYPERPARAMETERS)
    check_value(values["eps_mode"], "eps_mode", EPS_MODES)
    try:
        schedule = schedule_of(record["schedule"]) if "schedule" in record else None
    except (KeyError, TypeError, ValueError) as error:
        raise SnapshotError(
            f"the record of a schedule cannot be read ({error!r}); a newer numba-adam may have written it"
        ) from error
    return Group(tuple(record["tensors"]), Hyperparameters(**values), schedule)
