"""The changes of a model's settings: which were made, and the answers to their requests.

A change has a request id, and says the number of the newest change that its caller knew. If there were others since, it
is refused. So a request that arrives late, or twice, changes nothing that a newer one decided. Deterministic, as the
push ledger is. Imports the settings, the schedules and the error tree.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import xxhash

from numba_adam.errors import HyperparameterError, InvalidRequestError, SettingsChangedError
from numba_adam.ps.detail import with_detail
from numba_adam.ps.mode_settings import ModeSettings
from numba_adam.ps.schedule_records import schedule_record
from numba_adam.ps.schedules import Schedule
from numba_adam.server.model.records import check_keys
from numba_adam.server.model.steering import Group, Steering, places_of

_KEYS = ("number", "version", "settings", "kept")
_MOST_KEPT = 64


class GroupChange(NamedTuple):
    """New settings of one group, or of all."""

    group: int | None
    """The group's place; None: all groups."""

    values: Mapping[str, Any]
    """New hyperparameters by name; "beta1" and "beta2" instead of "betas"."""

    schedule: Schedule | None = None
    """The new schedule of the learning rate; None: none is given."""


class SettingsChange(NamedTuple):
    """New settings of a model. None: as before."""

    groups: tuple[GroupChange, ...] = ()
    """Those of its groups, in order."""

    max_grad_norm: float | None = None
    """Largest norm; 0: any."""

    clip_value: float | None = None
    """Largest magnitude of an element; 0: any."""

    freeze: tuple[str, ...] = ()
    """Names of the arrays to freeze."""

    unfreeze: tuple[str, ...] = ()
    """Names of the arrays that change again."""

    staleness_power: float | None = None
    """Power of the staleness by which learning rates are divided."""

    largest_staleness: int | None = None
    """Largest staleness; 0: any."""

    mode: ModeSettings | None = None
    """Another mode."""

    def digest(self) -> str:
        """Return a digest of the content, by which a repeated request is known."""
        groups = [
            [each.group, sorted(each.values.items()), each.schedule and schedule_record(each.schedule)]
            for each in self.groups
        ]
        newer = {
            **({} if self.staleness_power is None else {"staleness_power": self.staleness_power}),
            **({} if self.largest_staleness is None else {"largest_staleness": self.largest_staleness}),
            **({} if self.mode is None else {"mode": self.mode.to_record()}),
        }  # without them, the digest is that of earlier releases
        content = [groups, *self[1:5], *([newer] if newer else [])]
        return xxhash.xxh3_64_hexdigest(json.dumps(content, separators=(",", ":")).encode())


class ChangeRequest(NamedTuple):
    """A request to change a model's settings."""

    state_id: str
    """The state that it is for."""

    request_id: str
    """Id of the request; a retry has the same."""

    seen_change: int
    """Number of the newest change that the caller knew."""

    change: SettingsChange
    """What to change."""


class Changed(NamedTuple):
    """The answer to a change."""

    number: int
    """Its number."""

    version: int
    """The model's version at the change: later versions have the new settings."""


class Changes:
    """The changes of one model's settings.

    Args:
        settings: those that the model begins with; None: not known here.
    """

    def __init__(self, settings: Steering | None = None) -> None:
        self.settings = settings
        """The newest settings."""

        self.newest = Changed(0, 0)
        """The newest change; number 0: there was none."""

        self._kept: dict[str, tuple[str, Changed]] = {}  # by request id: digest of the content, and the answer

    @property
    def frozen(self) -> frozenset[int]:
        """Places of the arrays that pushes do not change now."""
        return frozenset() if self.settings is None else self.settings.frozen

    def judge(self, request: ChangeRequest) -> Changed | None:
        """Return the answer to an earlier try, or None if the change may be made. Changes nothing.

        Raises:
            InvalidRequestError: the id belongs to another change, or `seen_change` does not exist yet.
            SettingsChangedError: there were changes that the caller did not know of.
        """
        if request.request_id in self._kept:
            digest, answer = self._kept[request.request_id]
            if digest != request.change.digest():
                raise InvalidRequestError(
                    f"request_id={request.request_id!r}: change {answer.number} has this id and other content; use a "
                    "new random id for each change"
                )
            return answer
        if request.seen_change > self.newest.number:
            raise InvalidRequestError(
                f"seen_change={request.seen_change}: the newest change of the settings is {self.newest.number}"
            )
        if request.seen_change < self.newest.number:
            error = SettingsChangedError(
                f"seen_change={request.seen_change}: the settings have changed since, and change {self.newest.number} "
                f"came at version {self.newest.version}; look at them, and change them again if that is still right"
            )
            raise with_detail(error, change=self.newest.number)
        return None

    def make(self, request_id: str, digest: str, settings: Steering, version: int) -> Changed:
        """Use other settings from now on."""
        self.settings, self.newest = settings, Changed(self.newest.number + 1, version)
        self._kept[request_id] = (digest, self.newest)
        if len(self._kept) > _MOST_KEPT:
            del self._kept[next(iter(self._kept))]
        return self.newest

    def to_record(self) -> dict[str, Any]:
        """Return everything as plain values that JSON can hold; empty if there was no change."""
        if self.settings is None or not self.newest.number:
            return {}
        return {
            "number": self.newest.number,
            "version": self.newest.version,
            "settings": self.settings.to_record(),
            "kept": [[request_id, digest, *answer] for request_id, (digest, answer) in self._kept.items()],
        }

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Changes:
        """Return the changes that `to_record` wrote.

        Raises:
            SnapshotError: it has a key or value that this version does not know.
        """
        changes = cls()
        if record:
            check_keys(record, "the record of the settings' changes", _KEYS)
            changes.settings = Steering.from_record(record["settings"])
            changes.newest = Changed(record["number"], record["version"])
            changes._kept = {request_id: (digest, Changed(*answer)) for request_id, digest, *answer in record["kept"]}
        return changes


def changed(settings: Steering, change: SettingsChange, names: Sequence[str], dtype: str) -> Steering:
    """Return settings with a change.

    Args:
        settings: those before.
        change: what to change.
        names: those of the model's arrays.
        dtype: the model's.

    Raises:
        InvalidRequestError: nothing is given, or a group or an array does not exist.
        HyperparameterError: a value is not allowed.
    """
    if change == SettingsChange():
        raise InvalidRequestError("change: it has no setting; give at least one")
    groups = list(settings.groups)
    for each in change.groups:
        if each.group is not None and each.group >= len(groups):
            raise InvalidRequestError(f"group={each.group}: the model has {len(groups)}, from 0")
        if not each.values and each.schedule is None:
            raise InvalidRequestError("change: a group has no setting; give at least one")
        if "lr" in each.values and each.schedule is not None:
            raise InvalidRequestError("change: lr and schedule are both given; leave one of them out")
        for index in range(len(groups)) if each.group is None else [each.group]:
            groups[index] = _group_with(groups[index], each)
    freeze, unfreeze = places_of(change.freeze, names, "freeze"), places_of(change.unfreeze, names, "unfreeze")
    if freeze & unfreeze:
        raise InvalidRequestError(f"freeze, unfreeze: {names[min(freeze & unfreeze)][:80]!r} is in both")
    result = Steering(
        groups=tuple(groups),
        max_grad_norm=_limit("max_grad_norm", change.max_grad_norm, settings.max_grad_norm),
        clip_value=_limit("clip_value", change.clip_value, settings.clip_value),
        frozen=settings.frozen - unfreeze | freeze,
        staleness_power=settings.staleness_power if change.staleness_power is None else change.staleness_power,
        largest_staleness=(
            settings.largest_staleness if change.largest_staleness is None else change.largest_staleness or None
        ),
        mode=settings.mode if change.mode is None else change.mode,
    )
    return result.check(dtype, settings.groups[0].hyperparameters.amsgrad)


def _group_with(group: Group, change: GroupChange) -> Group:
    before = group.hyperparameters
    values = {name: value for name, value in change.values.items() if name not in ("beta1", "beta2")}
    betas = (change.values.get("beta1", before.betas[0]), change.values.get("beta2", before.betas[1]))
    schedule = None if "lr" in values else group.schedule
    if change.schedule is not None:
        schedule, values = change.schedule, {**values, "lr": change.schedule.lr_at(0)}
    return Group(group.tensors, replace(before, betas=betas, **values), schedule)


def _limit(name: str, given: float | None, before: float | None) -> float | None:
    """Return a limit after a change: 0 removes it."""
    if given is None:
        return before
    if not 0 <= given < float("inf"):
        raise HyperparameterError(f"{name}={given!r}: it must be above 0, or 0 for none")
    return given or None
