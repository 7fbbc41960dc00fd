"""Converts an optimizer to plain contents for `copy.deepcopy` and pickle, and back. Imports neither module.

The contents include the parameters' arrays themselves. So a model and its optimizer are copied together, and the copied
optimizer updates the copied model. Locks, launch plans and views are created again.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict
from functools import partial
from types import FunctionType
from typing import Any, NamedTuple

from numba_adam.cpu.copies import adopt_copies
from numba_adam.cpu.part import CpuPart
from numba_adam.cuda.arrays import CudaArray
from numba_adam.errors import HyperparameterError, StateDictError
from numba_adam.interop.axes import as_given, in_memory_order
from numba_adam.settings.contract import Part
from numba_adam.settings.hyperparameters import Hyperparameters
from numba_adam.settings.options import Options
from numba_adam.settings.param_groups import ParamGroup, Schedule
from numba_adam.settings.step_arrays import Copies

_FORMAT = 1
_COPIES = {"masters": "masters", "emas": "emas", "own_copies": "low_precision"}  # pickled name: column of Copies


class Said(NamedTuple):
    """The contents of an optimizer, read back."""

    groups: list[ParamGroup]
    options: Options
    is_single: bool
    state_dict: dict[str, Any]


class PickledSchedule:
    """A schedule for copies and pickles. deepcopy copies any; pickle refuses one that cannot be found by its name."""

    def __init__(self, schedule: Schedule) -> None:
        """Hold the schedule."""
        self.schedule = schedule

    def __deepcopy__(self, memo: dict[int, Any]) -> PickledSchedule:
        return PickledSchedule(deepcopy(self.schedule, memo))

    def __reduce_ex__(self, protocol: object) -> tuple[type[PickledSchedule], tuple[Schedule]]:
        _check_named(self.schedule)
        return PickledSchedule, (self.schedule,)


def dump(
    groups: Sequence[ParamGroup],
    options: Options,
    parts: Sequence[Part[Any]],
    state: Mapping[int, Any],
    *,
    is_single: bool,
) -> dict[str, Any]:
    """Return everything that an optimizer needs to continue with the same bits, in plain containers.

    Raises:
        TypeError: a parameter cannot be copied.
    """
    for part in parts:
        for member in part.roster.members:
            _check_copyable(member.given, member.param, f"params{member.label}")
    return {
        "format": _FORMAT,
        "groups": [_group(group) for group in groups],
        "options": asdict(options),
        "is_single": is_single,
        "state": {index: dict(entry) for index, entry in state.items()},
        "kept": {
            name: _by_position(parts, [_as_given(part, getattr(part.copies, column)) for part in parts])
            for name, column in _COPIES.items()
        },
        "sums": _by_position(parts, [part.accumulator.grads() if part.accumulator else [] for part in parts]),
    }


def parse(said: Mapping[str, Any], owned: Mapping[str, object]) -> Said:
    """Read the result of `dump`.

    Raises:
        StateDictError: another version of this library wrote it.
    """
    if said.get("format") != _FORMAT:
        raise StateDictError(
            f"this optimizer was pickled in format {said.get('format')!r}, expected {_FORMAT}: another version of "
            "numba-adam wrote it; use state_dict() between versions"
        )
    groups, entries, first = [], [], 0
    for entry in said["groups"]:
        hyperparameters, schedule = Hyperparameters(**entry["hyperparameters"]), entry["schedule"]
        names, schedule = entry["names"], schedule and schedule.schedule
        groups.append(ParamGroup(entry["params"], names, hyperparameters, schedule, owned, entry["notes"]))
        entries.append({**entry["hyperparameters"], "params": list(range(first, first + len(entry["params"])))})
        first += len(entry["params"])
    state_dict = {"state": said["state"], "param_groups": entries}
    return Said(groups, Options(**said["options"]), said["is_single"], state_dict)


def restore(parts: Sequence[Part[Any]], said: Mapping[str, Any]) -> None:
    """Set the averages, copies and sums of a `dump`. Averages and copies stay the same arrays if they fit."""
    for part in parts:
        assert isinstance(part, CpuPart)  # `dump` checked it
        kept = [_in_memory_order(part, _of_part(part, said["kept"][name])) for name in _COPIES]
        adopt_copies(part.copies, Copies(part.roster.params, *kept))
        grads = _of_part(part, said["sums"])
        if any(grad is not None for grad in grads):
            part.make_accumulator()
            assert part.accumulator is not None
            part.accumulator.restore(grads)


def _of_part(part: Part[Any], by_position: Mapping[int, Any]) -> list[Any]:
    """Return the array of each parameter of a part, or None."""
    return [by_position.get(place) for place in part.roster.places]


def _group(group: ParamGroup) -> dict[str, Any]:
    names = group.get("param_names")
    return {
        "params": list(group["params"]),
        "names": None if names is None else list(names),
        "hyperparameters": asdict(group.hyperparameters),
        "schedule": None if group.schedule is None else PickledSchedule(group.schedule),
        "notes": group.notes,
    }


def _as_given(part: Part[Any], arrays: Sequence[Any]) -> list[Any]:
    """Return a part's arrays with the axes of its parameters as they were given."""
    return [
        None if array is None else as_given(array, axes) for array, axes in zip(arrays, part.roster.axes, strict=True)
    ]


def _in_memory_order(part: Part[Any], arrays: Sequence[Any]) -> list[Any]:
    """Return arrays with the axes in the order in which the part's parameters have them in memory."""
    pairs = zip(arrays, part.roster.axes, strict=True)
    return [None if array is None else in_memory_order(array, axes) for array, axes in pairs]


def _by_position(parts: Sequence[Part[Any]], columns: Sequence[Sequence[Any]]) -> dict[int, Any]:
    """Return the arrays of parts by their parameters' positions, without None."""
    return {
        place: array
        for part, column in zip(parts, columns, strict=True)
        for place, array in zip(part.roster.places, column, strict=False)
        if array is not None
    }


def _check_copyable(given: object, param: object, name: str) -> None:
    """Refuse a parameter that cannot be copied."""
    if isinstance(param, CudaArray):
        where, remedy = "in a GPU's memory", "make another optimizer over arrays of its own, and load_state_dict"
    elif isinstance(given, memoryview):
        where, remedy = "a memoryview", "give a NumPy array over the same memory: np.asarray(x)"
    else:
        return
    raise TypeError(f"{name} is {where}: such an optimizer cannot be copied or pickled; {remedy}")


def _check_named(schedule: Any) -> None:
    """Refuse a function that pickle cannot find by its name."""
    function = schedule.func if isinstance(schedule, partial) else schedule
    if not isinstance(function, FunctionType):
        return
    found: Any = sys.modules.get(function.__module__)
    for name in function.__qualname__.split("."):
        found = getattr(found, name, None)
    if found is not function:
        raise HyperparameterError(
            f"lr={function.__qualname__!r} is a schedule that cannot be pickled, because no module has it under that "
            "name: use a function at the top level of a module, or an object with __call__; or save state_dict(), "
            "which has the last learning rate as a number"
        )
