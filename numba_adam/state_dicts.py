"""State dicts in PyTorch's nesting, with NumPy arrays: written, and read with every check. Knows no kernel.

{"state": {0: {"step": 3, "exp_avg": array, "exp_avg_sq": array}, ...},
"param_groups": [{"lr": 0.001, ..., "params": [0, 1, ...]}]}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from numba_adam.arrays import Array, check_like
from numba_adam.errors import ArrayError, StateDictError
from numba_adam.hyperparameters import Hyperparameters
from numba_adam.interop import borrow
from numba_adam.param_groups import HYPERPARAMETER_NAMES, ParamGroup, changed

_ARRAYS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")
_REQUIRED = {"step", "exp_avg", "exp_avg_sq"}


class Loaded(NamedTuple):
    """What a state dict says, checked."""

    states: list[dict[str, Any]]  # one for each parameter, in order; empty where there is none
    hyperparameters: list[Hyperparameters]  # one for each group


def dump(groups: Sequence[ParamGroup], states: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the state dict of these groups and states."""
    entries, first = [], 0
    for group in groups:
        count = len(group["params"])
        entries.append({**group, "params": list(range(first, first + count))})
        first += count
    return {"state": {index: state for index, state in enumerate(states) if state}, "param_groups": entries}


def parse(state_dict: Mapping[str, Any], groups: Sequence[ParamGroup], params: Sequence[Array]) -> Loaded:
    """Check a state dict against an optimizer's groups and parameters.

    Raises:
        StateDictError: it does not fit; the message says where.
        HyperparameterError: a hyperparameter is out of range.
    """
    if not isinstance(state_dict, Mapping) or not {"state", "param_groups"} <= set(state_dict):
        raise StateDictError("a state dict has the keys 'state' and 'param_groups'; pass what state_dict() returned")
    entries = state_dict["param_groups"]
    counts = [len(entry["params"]) for entry in entries], [len(group["params"]) for group in groups]
    if counts[0] != counts[1]:
        raise StateDictError(
            f"the state dict has groups of {counts[0]} arrays, the optimizer groups of {counts[1]}: they must be equal"
        )
    keys = [key for entry in entries for key in entry["params"]]
    strangers = [key for key in state_dict["state"] if key not in set(keys)]
    if strangers:
        raise StateDictError(f"state[{strangers[0]!r}] belongs to no param group of the state dict")
    states = [_state(state_dict["state"].get(key, {}), key, param) for key, param in zip(keys, params, strict=True)]
    return Loaded(states, [_hyperparameters(entry, group) for entry, group in zip(entries, groups, strict=True)])


def _hyperparameters(entry: Mapping[str, Any], group: ParamGroup) -> Hyperparameters:
    """Return a group's hyperparameters; what the entry does not say stays as it is, but for eps_mode."""
    said = {key: _plain(entry[key]) for key in HYPERPARAMETER_NAMES if key in entry}
    return changed(group.hyperparameters, {"eps_mode": "algorithm1", **said})


def _plain(value: Any) -> Any:
    """Return a hyperparameter as Python's own type; PyTorch may keep lr and step as tensors of one element."""
    return value.item() if hasattr(value, "item") else value


def _state(state: Mapping[str, Any], key: object, param: Array) -> dict[str, Any]:
    """Return one parameter's state with borrowed arrays."""
    if not state:
        return {}
    if not set(state) >= _REQUIRED:
        raise StateDictError(f"state[{key!r}] has no {sorted(_REQUIRED - set(state))[0]!r}")
    step = _plain(state["step"])
    if step != int(step) or step < 0:
        raise StateDictError(f"state[{key!r}]['step'] is {step!r}: it must be a whole number, at least 0")
    arrays = {name: _array(state[name], f"state[{key!r}][{name!r}]", param) for name in _ARRAYS if name in state}
    return {"step": int(step), **arrays}


def _array(value: object, name: str, param: Array) -> Array:
    try:
        array = borrow(value, name=name)
        check_like(array, name, param, "its parameter")
    except ArrayError as error:
        raise StateDictError(str(error)) from error
    return array
