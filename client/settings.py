"""The settings of a model: what it begins with, what it has now, and changes while it trains.

May import `numba_adam.ps` and its neighbours here.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

from numba_adam.client.transport.connection import Connection
from numba_adam.errors import ConfigurationError, HyperparameterError, NamesError
from numba_adam.ps import convert
from numba_adam.ps.mode_settings import ModeSettings
from numba_adam.ps.schedule_forms import schedule_from_proto, schedule_to_proto
from numba_adam.ps.schedules import KINDS, Schedule
from numba_adam.ps.v1 import model_pb2
from numba_adam.ps.v1 import parameter_service_pb2 as pb
from numba_adam.settings.hyperparameters import Hyperparameters
from numba_adam.settings.scalars import flag, real, whole

_HYPERPARAMETERS = tuple(field.name for field in fields(Hyperparameters))
_FLAGS = ("decoupled_weight_decay", "maximize")


@dataclass(frozen=True, slots=True)
class GroupInfo:
    """Arrays with the same hyperparameters."""

    params: tuple[str, ...]
    """Names of its arrays."""

    hyperparameters: Hyperparameters
    """Its hyperparameters. `lr` is that of the next push."""

    schedule: Schedule | None = None
    """Its learning rate by version; None: always the same."""


@dataclass(frozen=True, slots=True)
class SettingsInfo:
    """The settings of a model now."""

    groups: tuple[GroupInfo, ...]
    """Its groups; one, with all arrays, unless it was created with others."""

    max_grad_norm: float | None
    """Largest 2-norm of a push's gradients: larger ones are scaled down to it. None: any."""

    clip_value: float | None
    """Largest magnitude of an element of a gradient, after that. None: any."""

    frozen: tuple[str, ...]
    """Names of the arrays that pushes do not change."""

    staleness_power: float
    """The learning rates are divided by (1 + staleness) to this power."""

    largest_staleness: int | None
    """Largest staleness of a push; None: any."""

    change: int
    """Number of the newest change; 0: there was none."""

    changed_at_version: int
    """Version of the model at the newest change: later versions have these settings."""


class Change(NamedTuple):
    """The server's answer to a change of settings."""

    number: int
    """Number of the change, from 1."""

    version: int
    """Version of the model at the change: later versions have the new settings."""


def settings_info(model: model_pb2.Model) -> SettingsInfo:
    """Return a model's settings.

    Raises:
        InvalidRequestError, HyperparameterError: this version does not know a schedule or a setting.
    """
    settings, names = model.settings, [tensor.name for tensor in model.spec.tensors]
    if not model.HasField("settings"):  # as it was created, in one group
        settings = model_pb2.Settings(groups=[model_pb2.ParamGroup(hyperparameters=model.spec.hyperparameters)])
    named = {name for group in settings.groups for name in group.params}
    rest = tuple(name for name in names if name not in named)
    groups = tuple(
        GroupInfo(
            params=tuple(group.params) or rest,
            hyperparameters=convert.hyperparameters_from_proto(group.hyperparameters),
            schedule=schedule_from_proto(group.schedule) if group.HasField("schedule") else None,
        )
        for group in settings.groups
    )
    return SettingsInfo(
        groups=groups,
        max_grad_norm=settings.max_grad_norm if settings.HasField("max_grad_norm") else None,
        clip_value=settings.clip_value if settings.HasField("clip_value") else None,
        frozen=tuple(settings.frozen),
        staleness_power=settings.staleness_power,
        largest_staleness=settings.largest_staleness if settings.HasField("largest_staleness") else None,
        change=model.change,
        changed_at_version=model.changed_at_version,
    )


def first_settings(
    hyperparameters: Hyperparameters,
    schedule: Schedule | None,
    groups: object,
    max_grad_norm: object,
    clip_value: object,
    frozen: object,
    staleness_power: object = 0.0,
    largest_staleness: object = None,
) -> model_pb2.Settings | None:
    """Return the settings that a model begins with; None if a hyperparameter is all that is given.

    Raises:
        NamesError, HyperparameterError: an argument is invalid.
    """
    listed = [] if groups is None else _groups(groups, hyperparameters, schedule)
    if schedule is not None:  # of the arrays in no group
        has_all = bool(listed) and not listed[-1].params
        rest = model_pb2.ParamGroup(hyperparameters=convert.hyperparameters_to_proto(hyperparameters))
        rest.schedule.CopyFrom(schedule_to_proto(schedule))
        listed += [] if has_all else [rest]
    settings = model_pb2.Settings(
        groups=listed,
        max_grad_norm=_limit("max_grad_norm", max_grad_norm),
        clip_value=_limit("clip_value", clip_value),
        frozen=_names("frozen", frozen),
        staleness_power=real("staleness_power", staleness_power),
        largest_staleness=None if largest_staleness is None else _largest_staleness(largest_staleness),
    )
    return settings if settings != model_pb2.Settings() else None


def split_rate(lr: Any) -> tuple[Any, Schedule | None]:
    """Return a learning rate for version 0, and the schedule if it is one."""
    return (lr.lr_at(0), lr) if isinstance(lr, KINDS) else (lr, None)


def check_known(model: model_pb2.Model, settings: model_pb2.Settings | None) -> None:
    """Refuse a server that ignores settings.

    Raises:
        ConfigurationError: it is older than they are.
    """
    if settings is not None and not model.HasField("settings"):
        raise ConfigurationError(
            f"model {model.spec.name!r}: the server does not know groups, schedules, clipping and frozen arrays, and "
            "has created the model without them; update the server, and delete the model"
        )


def change_of(
    *,
    group: int | None,
    max_grad_norm: float | None,
    clip_value: float | None,
    freeze: object,
    unfreeze: object,
    staleness_power: float | None = None,
    largest_staleness: float | None = None,
    mode: ModeSettings | None = None,
    **values: Any,
) -> pb.SettingsChange:
    """Return the message for a change; None: as before; infinity removes a limit.

    Raises:
        NamesError, HyperparameterError: an argument is invalid, or there is none.
    """
    change = pb.SettingsChange(freeze=_names("freeze", freeze), unfreeze=_names("unfreeze", unfreeze))
    for name, limit in (("max_grad_norm", max_grad_norm), ("clip_value", clip_value)):
        if limit is not None:
            setattr(change, name, 0.0 if limit == math.inf else _limit(name, limit))
    if staleness_power is not None:
        change.staleness_power = real("staleness_power", staleness_power)
    if largest_staleness is not None:
        is_any = largest_staleness == math.inf
        change.largest_staleness = 0 if is_any else _largest_staleness(largest_staleness)
    if mode is not None:
        convert.set_mode_settings(change, mode)
    given = {name: value for name, value in values.items() if value is not None}
    if given:
        change.groups.append(_group_change(group, given))
    elif group is not None:
        raise HyperparameterError(f"group={group!r}: give a setting of the group too, such as lr=0.1")
    if change == pb.SettingsChange():
        raise HyperparameterError("nothing is to be changed: give at least one setting, such as lr=0.1")
    return change


def change_settings(connection: Connection, name: str, change: pb.SettingsChange) -> Change:
    """Change a model's settings, once, however often the request is sent.

    Raises:
        SettingsChangedError: somebody else changed them at the same moment; nothing was changed.
        RewoundError: the server lost unsaved steps, or the model was deleted, at the same moment.
        ServiceError: the call failed; without an answer in time, the settings may have changed.
    """
    what, deadline = f"set of model {name!r}", connection.deadline()
    look = pb.GetModelRequest(model=name)
    model = connection.call("GetModel", look, pb.GetModelResponse, what=what, deadline=deadline).model
    request = pb.UpdateModelRequest(
        model=name,
        state_id=model.state.state_id,
        request_id=secrets.token_hex(16),
        seen_change=model.change,
        change=change,
    )
    answer = connection.call("UpdateModel", request, pb.UpdateModelResponse, what=what, deadline=deadline)
    return Change(answer.change, answer.version)


def checked_loss_scale(value: object) -> float:
    """Return a loss scale.

    Raises:
        HyperparameterError: it is not a finite number above 0.
    """
    scale = real("loss_scale", value)
    if scale <= 0:
        raise HyperparameterError(f"loss_scale={value!r}: it must be above 0")
    return scale


def _groups(groups: object, defaults: Hyperparameters, schedule: Schedule | None) -> list[model_pb2.ParamGroup]:
    if not isinstance(groups, (list, tuple)) or not all(isinstance(group, Mapping) for group in groups):
        raise NamesError(f'groups={groups!r}: it must be a list such as [{{"params": ["b"], "weight_decay": 0.0}}]')
    return [_group(index, dict(group), defaults, schedule) for index, group in enumerate(groups)]


def _group(
    index: int, given: dict[str, Any], defaults: Hyperparameters, schedule: Schedule | None
) -> model_pb2.ParamGroup:
    names = _names(f"groups[{index}]['params']", given.pop("params", ()))
    if unknown := [key for key in given if key not in _HYPERPARAMETERS]:
        raise NamesError(f"groups[{index}]: {unknown[0]!r} is not known; its keys are params and {_HYPERPARAMETERS}")
    if not names:
        raise NamesError(f"groups[{index}]: 'params' must have the name of at least one array")
    if "lr" in given:
        given["lr"], schedule = split_rate(given["lr"])
    group = model_pb2.ParamGroup(
        params=names, hyperparameters=convert.hyperparameters_to_proto(replace(defaults, **given))
    )
    if schedule is not None:
        group.schedule.CopyFrom(schedule_to_proto(schedule))
    return group


def _group_change(group: int | None, given: dict[str, Any]) -> pb.GroupChange:
    if unknown := [name for name in given if name not in _HYPERPARAMETERS or name == "amsgrad"]:
        raise HyperparameterError(f"{unknown[0]}: it cannot change while a model trains")
    rate, schedule = split_rate(given.get("lr"))
    checked = Hyperparameters(**{**given, **({"lr": rate} if "lr" in given else {})})
    change = pb.GroupChange()
    if group is not None:
        place = whole("group", group)
        if not 0 <= place < 1 << 32:
            raise HyperparameterError(f"group={group!r}: it must be a place in the model's groups, from 0")
        change.group = place
    for name in given:
        if name == "lr" and schedule is not None:
            change.schedule.CopyFrom(schedule_to_proto(schedule))
        elif name == "betas":
            change.beta1, change.beta2 = checked.betas
        elif name == "eps_mode":
            change.eps_mode = convert.hyperparameters_to_proto(checked).eps_mode
        elif name in _FLAGS:
            setattr(change, name, flag(name, given[name]))
        else:
            setattr(change, name, getattr(checked, name))
    return change


def _largest_staleness(value: object) -> int:
    number = whole("largest_staleness", value)
    if not 1 <= number < 1 << 63:
        raise HyperparameterError(f"largest_staleness={value!r}: it must be at least 1")
    return number


def _limit(name: str, value: object) -> float | None:
    if value is None:
        return None
    limit = real(name, value)
    if limit <= 0:
        raise HyperparameterError(f"{name}={value!r}: it must be above 0")
    return limit


def _names(argument: str, given: object) -> Sequence[str]:
    """Return names; a single text is one name."""
    names = [given] if isinstance(given, str) else given
    if not isinstance(names, (list, tuple, set, frozenset)) or not all(isinstance(name, str) for name in names):
        raise NamesError(f"{argument}={given!r}: it must be a list of names of arrays")
    return sorted(names) if isinstance(names, (set, frozenset)) else list(names)
