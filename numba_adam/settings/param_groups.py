"""A group of parameters and the hyperparameters they share, as `opt.param_groups[0]`. Knows no kernel.

A group is a mapping with PyTorch's keys, and with notes of the user's own ("name", "initial_lr"). A value is checked
when it is set, so that a step never meets a bad one.
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

Schedule = Callable[[int], float]  # a learning rate, given the number of the update: 1 for the first


class ParamGroup(UserDict[str, Any]):
    """One group: "params", "param_names" when they have names, every field of `Hyperparameters`, and notes.

    "lr" may also be a schedule: a function of the number of the update.
    """

    hyperparameters: Hyperparameters
    schedule: Schedule | None
    owned: Mapping[str, object]
    dtypes: frozenset[str]  # in which its parameters are computed

    def __init__(
        self,
        params: list[object],
        names: list[str] | None,
        hyperparameters: Hyperparameters,
        schedule: Schedule | None = None,
        owned: Mapping[str, object] | None = None,
        notes: Mapping[str, object] | None = None,
    ) -> None:
        """Hold `params`, called `names`, with these hyperparameters; `owned` are those that the class says."""
        self._put("dtypes", frozenset())
        fixed = {"params": FixedList(params, _FIXED_LIST.format("params"))}
        if names is not None:
            fixed["param_names"] = FixedList(names, _FIXED_LIST.format("names"))
        self._put("data", FixedDict(fixed, "group.data only shows the group's values: group['lr'] = ... sets one"))
        self._put("owned", owned or {})
        self._put("schedule", schedule)
        self.take_over(hyperparameters, notes or {})

    def compute_in(self, dtypes: Iterable[str]) -> None:
        """Note in which dtypes the group's parameters are computed: what they cannot hold is refused from now on.

        Raises:
            HyperparameterError: they cannot hold what is set already.
        """
        self._put("dtypes", frozenset(dtypes))
        self.checked(self.hyperparameters)

    def checked(self, hyperparameters: Hyperparameters) -> Hyperparameters:
        """Return hyperparameters that the group's parameters can be updated with.

        Raises:
            HyperparameterError: the dtype that is computed in cannot hold one.
        """
        for dtype in self.dtypes:
            check_held(hyperparameters, dtype)
        return hyperparameters

    def take_over(self, hyperparameters: Hyperparameters, notes: Mapping[str, object]) -> None:
        """Let others hold; a schedule stays, and sets the learning rate of the next update."""
        self._put("hyperparameters", hyperparameters)
        shown = {**asdict(hyperparameters), **notes}
        dict.update(self.data, shown if self.schedule is None else {**shown, "lr": self.schedule})

    def use_rate(self, lr: float) -> None:
        """Use a schedule's learning rate for the next update."""
        self._put("hyperparameters", replace(self.hyperparameters, lr=lr))

    @property
    def notes(self) -> dict[str, Any]:
        """What the group has besides its parameters and hyperparameters."""
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
            HyperparameterError: the value is not admissible, or the key looks like a slip.
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
        if key in self.data and key not in self.notes:
            raise HyperparameterError(f"{key!r} cannot be removed from a param group; set it to its default instead")
        dict.__delitem__(self.data, key)

    def replace(self, values: Mapping[str, object]) -> None:
        """Set several hyperparameters and notes at once: all of them, or none if one is not admissible."""
        plain, schedule = separated(values)
        hyperparameters, notes = changed(self.hyperparameters, plain, self.owned)
        self.checked(hyperparameters)
        if "lr" in values:
            self._put("schedule", schedule)
        self.take_over(hyperparameters, notes)


def follow_schedules(groups: Sequence[ParamGroup], steps: Sequence[int]) -> None:
    """Set the learning rate of every group's next update; no group's changes if a schedule fails.

    Args:
        groups: groups with schedules.
        steps: the number of each one's update.

    Raises:
        HyperparameterError: a schedule returned something that is no learning rate, or too large a one.
    """
    rates = [_scheduled(group, step) for group, step in zip(groups, steps, strict=True) if group.schedule is not None]
    for group, lr in zip(groups, rates, strict=True):
        group.use_rate(lr)


def _scheduled(group: ParamGroup, step: int) -> float:
    """Return what a group's schedule says of a step, if the group's parameters can be updated with it."""
    assert group.schedule is not None
    rate = _rate(group.schedule, step)
    try:
        return group.checked(replace(group.hyperparameters, lr=rate)).lr
    except HyperparameterError as error:
        raise _of_schedule(step, error) from None


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

    def _refuse(self, *_: object, **__: object) -> NoReturn:
        raise ImmutableError(_FIXED_GROUPS)

    append = extend = insert = remove = pop = clear = sort = reverse = __delitem__ = __iadd__ = _refuse


def changed(
    hyperparameters: Hyperparameters, values: Mapping[str, object], owned: Mapping[str, object]
) -> tuple[Hyperparameters, dict[str, object]]:
    """Return a copy with some values changed, and the values that are notes.

    Args:
        hyperparameters: those that hold.
        values: new ones, and notes.
        owned: those that the optimizer's class says, and nobody else.

    Raises:
        HyperparameterError: a value is not admissible, is the class's own, or has a key that looks like a slip.
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
        raise _of_schedule(step, error) from None


def _of_schedule(step: int, error: HyperparameterError) -> HyperparameterError:
    return HyperparameterError(f"the learning rate's schedule returned, for update {step}, {error}")


def groups_of(
    params: object,
    defaults: Hyperparameters,
    schedule: Schedule | None = None,
    owned: Mapping[str, object] | None = None,
) -> list[ParamGroup]:
    """Return the param groups of what an optimizer is constructed with.

    Args:
        params: one array; a mapping from names to arrays; an iterable of arrays, or of pairs (name, array); or an
            iterable of groups, each a mapping with "params" (any of the former), hyperparameters and notes of its own.
        defaults: the hyperparameters of what has none of its own.
        schedule: the learning rate of what has none of its own, instead of the defaults'.
        owned: the hyperparameters that the optimizer's class says, and no group.

    Raises:
        NamesError: there is no array, a name is no string or used twice, or only some groups have names.
        HyperparameterError: a group sets what is not admissible.
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
    if names is None and is_names(values.get("param_names"), len(params)):  # a group of another optimizer
        names = list(values.pop("param_names"))
    own, own_schedule = separated(values)
    hyperparameters, notes = changed(defaults, own, owned)
    return ParamGroup(params, names, hyperparameters, own_schedule if "lr" in own else schedule, owned, notes)


def _with_names(params: Any) -> tuple[list[object], list[str] | None]:
    """Return the arrays of a group, and their names where they have such."""
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
    """Say whether an object is a list of so many names."""
    return isinstance(names, (list, tuple)) and len(names) == count and all(isinstance(name, str) for name in names)


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
