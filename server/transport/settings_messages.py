"""Converts settings and their changes between messages and plain values.

Imports the generated messages, the models and their values.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from numba_adam.errors import HyperparameterError, InvalidRequestError
from numba_adam.ps import convert
from numba_adam.ps.mode_settings import ModeSettings
from numba_adam.ps.schedule_forms import schedule_from_proto, schedule_to_proto
from numba_adam.ps.v1 import model_pb2
from numba_adam.ps.v1 import parameter_service_pb2 as pb
from numba_adam.server.model.changes import ChangeRequest, GroupChange, SettingsChange
from numba_adam.server.model.spec import Spec
from numba_adam.server.model.steering import Group, Steering, check_power, grouped, places_of
from numba_adam.settings.hyperparameters import Hyperparameters

_NUMBERS = ("lr", "beta1", "beta2", "eps", "weight_decay", "decoupled_weight_decay", "maximize")


def settings_from_proto(
    message: model_pb2.Settings, names: Sequence[str], hyperparameters: Hyperparameters
) -> Steering:
    """Return the settings that a model begins with.

    Args:
        message: the settings.
        names: those of the model's arrays.
        hyperparameters: those of the arrays in no group.

    Raises:
        InvalidRequestError: a group or an array's name is not allowed.
        HyperparameterError: a value is out of range.
    """
    groups = [
        (
            tuple(group.params),
            convert.hyperparameters_from_proto(group.hyperparameters),
            schedule_from_proto(group.schedule) if group.HasField("schedule") else None,
        )
        for group in message.groups
    ]
    return Steering(
        groups=grouped(groups, names, hyperparameters),
        max_grad_norm=message.max_grad_norm if message.HasField("max_grad_norm") else None,
        clip_value=message.clip_value if message.HasField("clip_value") else None,
        frozen=places_of(message.frozen, names, "frozen"),
        staleness_power=check_power(message.staleness_power),
        largest_staleness=_largest_staleness(message) if message.HasField("largest_staleness") else None,
    )


def _largest_staleness(message: model_pb2.Settings) -> int:
    if not message.largest_staleness:
        raise HyperparameterError("largest_staleness=0: it must be at least 1; leave it out to take any push")
    return message.largest_staleness


def settings_to_proto(settings: Steering, spec: Spec, version: int) -> model_pb2.Settings:
    """Return the message for settings, with the learning rates of the push that follows a version."""
    last = len(settings.groups) - 1
    message = model_pb2.Settings(
        groups=[_group_to_proto(group, spec, version, index == last) for index, group in enumerate(settings.groups)],
        max_grad_norm=settings.max_grad_norm,
        clip_value=settings.clip_value,
        frozen=[spec.tensors[tensor].name for tensor in sorted(settings.frozen)],
        staleness_power=settings.staleness_power,
        largest_staleness=settings.largest_staleness,
    )
    if settings.mode is not None:
        convert.set_mode_settings(message, settings.mode)
    return message


def change_from_proto(request: pb.UpdateModelRequest) -> ChangeRequest:
    """Return the request to change a model's settings, whose values are not checked yet.

    Raises:
        InvalidRequestError: this version does not know an eps_mode or a schedule.
    """
    change = request.change
    plain = SettingsChange(
        groups=tuple(map(_group_change, change.groups)),
        max_grad_norm=change.max_grad_norm if change.HasField("max_grad_norm") else None,
        clip_value=change.clip_value if change.HasField("clip_value") else None,
        freeze=tuple(change.freeze),
        unfreeze=tuple(change.unfreeze),
        staleness_power=change.staleness_power if change.HasField("staleness_power") else None,
        largest_staleness=change.largest_staleness if change.HasField("largest_staleness") else None,
        mode=_mode_change(change),
    )
    return ChangeRequest(request.state_id, request.request_id, request.seen_change, plain)


def _mode_change(change: pb.SettingsChange) -> ModeSettings | None:
    if not change.mode:
        if change.HasField("rounds") or change.HasField("staleness"):
            raise InvalidRequestError("change: rounds or staleness without a mode; give the mode too")
        return None
    return convert.mode_settings_from_proto(change)


def _group_change(message: pb.GroupChange) -> GroupChange:
    fields: Any = message
    values: dict[str, Any] = {name: getattr(fields, name) for name in _NUMBERS if fields.HasField(name)}
    if message.eps_mode:
        mode = convert.EPS_MODES.get(message.eps_mode)
        if mode is None:
            raise InvalidRequestError(
                f"eps_mode={message.eps_mode}: it must be EPS_MODE_HAT (1) or EPS_MODE_ALGORITHM1 (2)"
            )
        values["eps_mode"] = mode
    return GroupChange(
        group=message.group if message.HasField("group") else None,
        values=values,
        schedule=schedule_from_proto(message.schedule) if message.HasField("schedule") else None,
    )


def _group_to_proto(group: Group, spec: Spec, version: int, is_last: bool) -> model_pb2.ParamGroup:
    """Return the message of a group; the last one has no names, because it has all other arrays."""
    in_order = is_last and list(group.tensors) == sorted(group.tensors)
    return model_pb2.ParamGroup(
        params=[] if in_order else [spec.tensors[tensor].name for tensor in group.tensors],
        hyperparameters=convert.hyperparameters_to_proto(group.at(version)),
        schedule=None if group.schedule is None else schedule_to_proto(group.schedule),
    )
