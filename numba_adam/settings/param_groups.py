"""A group of parameters and the hyperparameters that they share: `opt.param_groups[0]`. Imports no kernel.

A group is a mapping with PyTorch's keys and with notes of the user ("name", "initial_lr"). A value is validated when it
is set, so a step never reads an invalid one.
"""

from __future__ import annotations

from collections import Counter, UserDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, NoReturn

from numba_adam.errors import HyperparameterError, ImmutableError, NamesError
from numba_adam.settings.fixed import HYPERPARAMETER_NAMES, FixedDict, FixedList
from numba_adam.settings.group_keys import FIXED, check_note, is_switch_left_off
from numba_adam.settings.hyperparameters import Hyperparameters
from numba_adam.settings.limits import check_held

_FIXED_LIST = (
    "the {} of a param group are fixed when the optimizer is made: write into the arrays, or make another optimizer "
    "and load_state_dict"
)
_FIXED_GROUPS = (
    "the number of param groups is fixed when the optimizer is made: make another optimizer with all groups, and "
    "load_state_dict"
)

Schedule = Callable[[int], float]  # from the number of an update, 1 for the first, to its learning rate


class ParamGroup(UserDict[str, Any]):
    """One group: "params", "param_names" if they have names, every field of `Hyperparameters`, and notes.

    "lr" may also be a schedule: a function of the number of the update.
    """

    hyperparameters: Hyperparameters
    schedule: Schedule | None
    owned: Mapping[str, object]
    dtypes: frozenset[str]  # the compute dtypes of its parameters

    def __init__(
        self,
        params: list[object],
        names: list[str] | None,
        hyperparameters: Hyperparameters,
        schedule: Schedule | None = None,
        owned: Mapping[str, object] | None = None,
        notes: Mapping[str, object] | None = None,
    ) -> None:
        """Hold `params`, called `names`, with these hyperparameters; the optimizer's class fixes those in `owned`."""
        self._put("dtypes", frozenset())
        fixed = {"params": FixedList(params, _FIXED_LIST.format("params"))}
        if names is not None:
            fixed["param_names"] = FixedList(names, _FIXED_LIST.format("names"))
        self._put("data", FixedDict(fixed, "group.data only shows the group's values: group['lr'] = ... sets one"))
        self._put("owned", owned or {})
        self._put("schedule", schedule)
        self.take_over(hyperparameters, notes or {})

    def compute_in(self, dtypes: Iterable[str]) -> None:
        """Set the compute dtypes of the group's parameters; values that these cannot represent are refused from now on.

        Raises:
            HyperparameterError: they cannot represent a value that is set already.
        """
        self._put("dtypes", frozenset(dtypes))
        self.checked(self.hyperparameters)

    def checked(self, hyperparameters: Hyperparameters) -> Hyperparameters:
        """Return the given hyperparameters, validated for the compute dtypes of the group.

        Raises:
            HyperparameterError: a compute dtype cannot represent one.
        """
        for dtype in self.dtypes:
            check_held(hyperparameters, dtype)
        return hyperparameters

    def take_over(self, hyperparameters: Hyperparameters, notes: Mapping[str, object]) -> None:
        """Use other hyperparameters and notes; a schedule stays, and sets the learning rate of the next update."""
        self._put("hyperparameters", hyperparameters)
        shown = {**asdict(hyperparameters), **notes}
        dict.update(self.data, shown if self.schedule is None else {**shown, "lr": self.schedule})

    def use_rate(self, lr: float) -> None:
        """Use the learning rate of the schedule for the next update."""
        self._put("hyperparameters", replace(self.hyperparameters, lr=lr))

    @property
    def notes(self) -> dict[str, Any]:
        """The keys of the group besides its parameters and hyperparameters."""
        known = (*HYPERPARAMETER_NAMES, *FIXED)
        return {key: value for key, value in self.data.items() if key not in known}

    def _put(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise ImmutableError(f"group.{name} cannot be set, for nothing reads it: group[{name!r}] = ... sets a value")

    def __delattr__(self, name: str) -> NoReturn:
        raise ImmutableError(f"group.{name} cannot be deleted: what belongs to a param group stays with it")

    def __setitem__(self, key: str, value: object) -> None:
        """Set one hyperparameter, or a note.

        Raises:
            HyperparameterError: the value is not valid, or the key looks misspelled.
        """
        self.replace({key: value})

    # UserDict and MutableMapping would set the values of these one by one, or without validation.

    def update(self, *others: Any, **values: object) -> None:
        """Set several hyperparameters at once: all of them, or none if one is not valid."""
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
        if key in self.data and key not in self.notes:
            raise HyperparameterError(f"{key!r} cannot be removed from a param group; set it to its default instead")
        dict.__delitem__(self.data, key)

    def replace(self, values: Mapping[str, object]) -> None:
        """Set several hyperparameters and notes at once: all of them, or none if one is not valid."""
        plain, schedule = separated(values)
        hyperparameters, notes = changed(self.hyperparameters, plain, self.owned)
        self.checked(hyperparameters)
        if "lr" in values:
            self._put("schedule", schedule)
        self.take_over(hyperparameters, notes)


def follow_schedules(groups: Sequence[ParamGroup], steps: Sequence[int]) -> None:
    """Set the learning rate of the next update of every group; of no group if a schedule fails.

    Args:
        groups: groups with schedules.
        steps: the number of the next update of each group.

    Raises:
        HyperparameterError: a schedule returned something that is not a learning rate, or one that is too large.
    """
    rates = [_scheduled(group, step) for group, step in zip(groups, steps, strict=True) if group.schedule is not None]
    for group, lr in zip(groups, rates, strict=True):
        group.use_rate(lr)


def _scheduled(group: ParamGroup, step: int) -> float:
    """Return the learning rate of a group's schedule for a step, validated for the group."""
    assert group.schedule is not None
    rate = _rate(group.schedule, step)
    try:
        return group.checked(replace(group.hyperparameters, lr=rate)).lr
    except HyperparameterError as error:
        raise _of_schedule(step, error) from None


class ParamGroups(tuple[ParamGroup, ...]):
    """All groups of an optimizer. Their number is fixed; their values may change."""

    __slots__ = ()

    def __setitem__(self, index: int, group: object) -> None:
        """Allow `groups[0] |= {...}`, which assigns the same group again, and nothing else.

        Raises:
            NamesError: it is another group.
        """
        if group is not self[index]:
            raise NamesError("a param group cannot be replaced: set its values, or make another optimizer")

    def _refuse(self, *_: object, **__: object) -> NoReturn:
        raise ImmutableError(_FIXED_GROUPS)

    append = extend = insert = remove = pop = clear = sort = reverse = __delitem__ = __iadd__ = _refuse


def changed(
    hyperparameters: Hyperparameters, values: Mapping[str, object], owned: Mapping[str, object]
) -> tuple[Hyperparameters, dict[str, object]]:
    """Return a copy with some values changed, and the values that are notes.

    Args:
        hyperparameters: the current ones.
        values: new hyperparameters, and notes.
        owned: the hyperparameters that the optimizer's class fixes.

    Raises:
        HyperparameterError: a value is not valid, the class fixes it, or its key looks misspelled.
    """
    notes = {key: value for key, value in values.items() if key not in HYPERPARAMETER_NAMES}
    for key in notes:
        check_note(key)
    result = Hyperparameters(**{**asdict(hyperparameters), **{k: v for k, v in values.items() if k not in notes}})
    for key, value in owned.items():
        if getattr(result, key) != value:
            raise HyperparameterError(
                f"{key}={getattr(result, key)!r}: it is always {value!r} in this class; use Adam to choose it"
            )
    return result, notes


def separated(values: Mapping[str, object]) -> tuple[dict[str, object], Schedule | None]:
    """Return the values, with a schedule replaced by its first learning rate, and the schedule.

    Raises:
        HyperparameterError: the schedule returned something that is not a learning rate.
    """
    schedule = values.get("lr")
    if not callable(schedule):
        return dict(values), None
    return {**values, "lr": _rate(schedule, 1)}, schedule


def _rate(schedule: Schedule, step: int) -> float:
    """Return the learning rate of a schedule for a step."""
    try:
        return Hyperparameters(lr=schedule(step)).lr
    except HyperparameterError as error:
        raise _of_schedule(step, error) from None


def _of_schedule(step: int, error: HyperparameterError) -> HyperparameterError:
    return HyperparameterError(f"the learning rate's schedule returned, for update {step}, {error}")


def groups_of(
    params: object,
    defaults: Hyperparameters,
    schedule: Schedule | None = None,
    owned: Mapping[str, object] | None = None,
) -> list[ParamGroup]:
    """Return the param groups for the argument `params` of an optimizer.

    Args:
        params: one array; a mapping from names to arrays; an iterable of arrays, or of pairs (name, array); or an
            iterable of groups, each a mapping with "params" (any of the former), and its own hyperparameters and notes.
        defaults: the hyperparameters of groups that do not set them.
        schedule: the learning rate of groups that do not set one, instead of that in `defaults`.
        owned: the hyperparameters that the optimizer's class fixes.

    Raises:
        NamesError: there is no array, a name is not a string or used twice, or only some groups have names.
        HyperparameterError: a group sets a value that is not valid.
    """
    if not isinstance(params, Mapping) and not is_array(params) and isinstance(params, Iterable):
        params = list(params)
    grouped = isinstance(params, list) and params and all(isinstance(entry, Mapping) for entry in params)
    entries: Any = params if grouped else [{"params": params}]
    groups = [_group(entry, defaults, schedule, owned or {}) for entry in entries]
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


def _group(
    entry: Mapping[str, Any], defaults: Hyperparameters, schedule: Schedule | None, owned: Mapping[str, object]
) -> ParamGroup:
    if "params" not in entry:
        raise NamesError(f"a param group has the keys {sorted(map(str, entry))}: it must have 'params'")
    params, names = _with_names(entry["params"])
    values = {key: value for key, value in entry.items() if key != "params" and not is_switch_left_off(key, value)}
    if names is None and is_names(values.get("param_names"), len(params)):  # the group comes from another optimizer
        names = list(values.pop("param_names"))
    own, own_schedule = separated(values)
    hyperparameters, notes = changed(defaults, own, owned)
    return ParamGroup(params, names, hyperparameters, own_schedule if "lr" in own else schedule, owned, notes)


def _with_names(params: Any) -> tuple[list[object], list[str] | None]:
    """Return the arrays of a group, and their names if they have any."""
    if isinstance(params, Mapping):
        return list(params.values()), [_name(name) for name in params]
    if is_array(params) or not isinstance(params, Iterable):
        return [params], None
    arrays = list(params)
    pairs = [entry for entry in arrays if is_pair(entry)]
    if not pairs:
        return arrays, None
    if len(pairs) < len(arrays):
        raise NamesError("some params are pairs (name, array) and others are not: give every array a name, or none")
    return [array for _, array in pairs], [_name(name) for name, _ in pairs]


def is_pair(entry: object) -> bool:
    """Say whether an entry of a collection is a pair (name, array)."""
    return isinstance(entry, tuple) and len(entry) == 2 and isinstance(entry[0], str)


def is_names(names: object, count: int) -> bool:
    """Say whether an object is a list of `count` names."""
    return isinstance(names, (list, tuple)) and len(names) == count and all(isinstance(name, str) for name in names)


def _name(name: object) -> str:
    if not isinstance(name, str):
        raise NamesError(f"an array is named {name!r}, a {type(name).__name__}: names must be strings")
    return name


def _check_names(groups: list[ParamGroup]) -> None:
    """Refuse names in some groups only, and names that are used twice."""
    if not any(group["params"] for group in groups):
        raise NamesError("params is empty: give at least one array")
    named = [group for group in groups if "param_names" in group]
    if named and len(named) != len(groups):
        raise NamesError("some param groups have names and others do not: give every group a dict, or none")
    counts = Counter(name for group in named for name in group["param_names"])
    twice = [name for name, count in counts.items() if count > 1]
    if twice:
        raise NamesError(f"two arrays are named {twice[0]!r}: names must be unique")
