"""A group of parameters and the hyperparameters they share, as `opt.param_groups[0]`. Knows no kernel.

A group is a mapping with PyTorch's keys. A value is checked when it is set, so that a step never meets a bad one.
"""

from __future__ import annotations

from collections import Counter, UserDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, fields, replace
from typing import Any

from numba_adam.errors import HyperparameterError, NamesError
from numba_adam.hyperparameters import Hyperparameters

HYPERPARAMETER_NAMES = tuple(field.name for field in fields(Hyperparameters))
_FIXED = ("params", "param_names")

Schedule = Callable[[int], float]  # a learning rate, given the number of the update: 1 for the first


class ParamGroup(UserDict[str, Any]):
    """One group: "params", "param_names" when they have names, and every field of `Hyperparameters`.

    "lr" may also be a schedule: a function of the number of the update.
    """

    def __init__(
        self,
        params: list[object],
        names: list[str] | None,
        hyperparameters: Hyperparameters,
        schedule: Schedule | None = None,
    ) -> None:
        """Hold `params`, called `names`, with these hyperparameters."""
        super().__init__()
        self.hyperparameters = hyperparameters
        self.schedule = schedule
        self.data["params"] = params
        if names is not None:
            self.data["param_names"] = names
        self._show()

    def take_over(self, hyperparameters: Hyperparameters) -> None:
        """Let others hold; a schedule stays, and sets the learning rate of the next update."""
        self.hyperparameters = hyperparameters
        self._show()

    def _show(self) -> None:
        """Let the mapping say what holds."""
        self.data.update(asdict(self.hyperparameters))
        if self.schedule is not None:
            self.data["lr"] = self.schedule

    def __setitem__(self, key: str, value: object) -> None:
        """Set one hyperparameter.

        Raises:
            HyperparameterError: there is no hyperparameter of that name, or the value is not admissible.
        """
        self.replace({key: value})

    # What UserDict and MutableMapping would do value by value, or behind our back.

    def update(self, *others: Any, **values: object) -> None:
        """Set several hyperparameters at once: all of them, or none if one is not admissible."""
        self.replace(dict(*others, **values))

    def __ior__(self, other: Any) -> ParamGroup:  # type: ignore[override]
        self.replace(dict(other))
        return self

    def __or__(self, other: Any) -> dict[str, Any]:  # type: ignore[override]
        return self.data | dict(other)

    def copy(self) -> dict[str, Any]:  # type: ignore[override]
        """Return the group as a plain dict."""
        return dict(self.data)

    def __delitem__(self, key: str) -> None:
        raise HyperparameterError(f"{key!r} cannot be removed from a param group; set it to its default instead")

    def replace(self, values: Mapping[str, object]) -> None:
        """Set several hyperparameters at once: all of them, or none if one is not admissible."""
        plain, schedule = separated(values)
        self.hyperparameters = changed(self.hyperparameters, plain)
        if "lr" in values:
            self.schedule = schedule
        self._show()


def follow_schedules(groups: Sequence[ParamGroup], steps: Sequence[int]) -> None:
    """Set the learning rate of every group's next update; no group's changes if a schedule fails.

    Args:
        groups: groups with schedules.
        steps: the number of each one's update.

    Raises:
        HyperparameterError: a schedule returned something that is no learning rate.
    """
    rates = [
        _rate(group.schedule, step) for group, step in zip(groups, steps, strict=True) if group.schedule is not None
    ]
    for group, lr in zip(groups, rates, strict=True):
        group.hyperparameters = replace(group.hyperparameters, lr=lr)


class ParamGroups(tuple[ParamGroup, ...]):
    """All groups of an optimizer. Their number is fixed; what a group says may change."""

    __slots__ = ()

    def __setitem__(self, index: int, group: object) -> None:
        """Let `groups[0] |= {...}` end as it does in a list, and nothing else.

        Raises:
            NamesError: it is another group.
        """
        if group is not self[index]:
            raise NamesError("a param group cannot be replaced: set its values, or make another optimizer")


def changed(hyperparameters: Hyperparameters, values: Mapping[str, object]) -> Hyperparameters:
    """Return a copy with some values changed.

    Raises:
        HyperparameterError: there is no hyperparameter of that name, or a value is not admissible.
    """
    unknown = [key for key in values if key not in HYPERPARAMETER_NAMES]
    if unknown:
        reason = "cannot be changed" if unknown[0] in _FIXED else "is not a hyperparameter"
        raise HyperparameterError(f"{unknown[0]!r} {reason}; these can be set: {', '.join(HYPERPARAMETER_NAMES)}")
    return Hyperparameters(**{**asdict(hyperparameters), **values})


def separated(values: Mapping[str, object]) -> tuple[dict[str, object], Schedule | None]:
    """Return the values with the first learning rate in place of a schedule, and the schedule.

    Raises:
        HyperparameterError: the schedule returned something that is no learning rate.
    """
    schedule = values.get("lr")
    if not callable(schedule):
        return dict(values), None
    return {**values, "lr": _rate(schedule, 1)}, schedule


def _rate(schedule: Schedule, step: int) -> float:
    """Return what a schedule says of a step."""
    try:
        return Hyperparameters(lr=schedule(step)).lr
    except HyperparameterError as error:
        raise HyperparameterError(f"the learning rate's schedule returned, for update {step}, {error}") from None


def groups_of(params: object, defaults: Hyperparameters, schedule: Schedule | None = None) -> list[ParamGroup]:
    """Return the param groups of what an optimizer is constructed with.

    Args:
        params: one array; a mapping from names to arrays; an iterable of arrays; or an iterable of groups, each a
            mapping with "params" (any of the former) and hyperparameters of its own.
        defaults: the hyperparameters of what has none of its own.
        schedule: the learning rate of what has none of its own, instead of the defaults'.

    Raises:
        NamesError: there is no array, a name is no string or used twice, or only some groups have names.
        HyperparameterError: a group sets what is not a hyperparameter, or to what is not admissible.
    """
    if not isinstance(params, Mapping) and not is_array(params) and isinstance(params, Iterable):
        params = list(params)
    grouped = isinstance(params, list) and params and all(isinstance(entry, Mapping) for entry in params)
    entries: Any = params if grouped else [{"params": params}]
    groups = [_group(entry, defaults, schedule) for entry in entries]
    _check_names(groups)
    return groups


def is_array(value: object) -> bool:
    """Say whether `value` is one array rather than a collection of arrays."""
    if any(hasattr(value, name) for name in ("__array_interface__", "__dlpack__", "__cuda_array_interface__")):
        return True
    try:
        return bool(memoryview(value).nbytes >= 0)  # type: ignore[arg-type]
    except TypeError:
        return False


def _group(entry: Mapping[str, Any], defaults: Hyperparameters, schedule: Schedule | None) -> ParamGroup:
    if "params" not in entry:
        raise NamesError(f"a param group has the keys {sorted(map(str, entry))}: it must have 'params'")
    params, names = entry["params"], None
    if isinstance(params, Mapping):
        names, params = [_name(name) for name in params], list(params.values())
    own, own_schedule = separated({key: value for key, value in entry.items() if key != "params"})
    alone = is_array(params) or not isinstance(params, Iterable)
    chosen = own_schedule if "lr" in own else schedule
    return ParamGroup([params] if alone else list(params), names, changed(defaults, own), chosen)


def _name(name: object) -> str:
    if not isinstance(name, str):
        raise NamesError(f"an array is named {name!r}, a {type(name).__name__}: names must be strings")
    return name


def _check_names(groups: list[ParamGroup]) -> None:
    """Refuse groups of which some have names and others do not, and names used twice."""
    if not any(group["params"] for group in groups):
        raise NamesError("params is empty: give at least one array")
    named = [group for group in groups if "param_names" in group]
    if named and len(named) != len(groups):
        raise NamesError("some param groups have names and others do not: give every group a dict, or none")
    counts = Counter(name for group in named for name in group["param_names"])
    twice = [name for name, count in counts.items() if count > 1]
    if twice:
        raise NamesError(f"two arrays are named {twice[0]!r}: names must be unique")
