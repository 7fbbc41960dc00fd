"""State dicts in PyTorch's nesting, with NumPy arrays: written, read, and validated. Knows no kernel.

    {"state": {0: {"step": array(3), "exp_avg": array, "exp_avg_sq": array}, ...},
     "param_groups": [{"lr": 0.001, ..., "params": [0, 1, ...]}]}

The numbers in "params" are the keys in "state". As in PyTorch, "state" holds the optimizer's own arrays, the step among
them, and "param_groups" is a copy.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any, NamedTuple

import numpy as np

from numba_adam.errors import ArrayError, StateDictError
from numba_adam.interop import borrow
from numba_adam.interop.arrays import check_shape
from numba_adam.interop.axes import Axes, in_memory_order
from numba_adam.numerics.array import Array
from numba_adam.numerics.eight_bit import EightBit, blocks_of
from numba_adam.settings.fixed import HYPERPARAMETER_NAMES
from numba_adam.settings.group_keys import FIXED, PYTORCHS
from numba_adam.settings.hyperparameters import LAST_STEP, Hyperparameters
from numba_adam.settings.param_groups import ParamGroup, changed
from numba_adam.settings.scalars import plain

_MOMENTS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")
_KEPT = ("master_param", "ema")
_REQUIRED = {"step", "exp_avg", "exp_avg_sq"}


class Loaded(NamedTuple):
    """The contents of a state dict, validated."""

    states: list[dict[str, Any]]  # one for each parameter, in order; empty where there is none
    hyperparameters: list[Hyperparameters]  # one for each group
    notes: list[dict[str, Any]]  # the other keys of each group


def dump(groups: Sequence[ParamGroup], states: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the state dict of these groups and states."""
    entries, first = [], 0
    for group in groups:
        count = len(group["params"])
        own = {key: deepcopy(value) for key, value in group.items() if key not in ("lr", "params")}
        entries.append({"lr": group.hyperparameters.lr, **own, "params": list(range(first, first + count))})
        first += count
    return {"state": {index: state for index, state in enumerate(states) if state}, "param_groups": entries}


def parse(state_dict: Mapping[str, Any], groups: Sequence[ParamGroup], params: Sequence[Array]) -> Loaded:
    """Check a state dict against an optimizer's groups and parameters.

    Raises:
        StateDictError: it does not fit; the message says where.
        HyperparameterError: a hyperparameter is out of range.
    """
    entries, by_key = _nesting(state_dict)
    counts = [len(entry["params"]) for entry in entries], [len(group["params"]) for group in groups]
    if counts[0] != counts[1]:
        raise StateDictError(
            f"the state dict has groups of {counts[0]} arrays, the optimizer groups of {counts[1]}: they must be equal"
        )
    keys = [key for entry in entries for key in entry["params"]]
    _check_keys(keys, by_key)
    _check_names(entries, groups)
    states = [_state(by_key.get(key, {}), key, param) for key, param in zip(keys, params, strict=True)]
    pairs = [_hyperparameters(entry, group) for entry, group in zip(entries, groups, strict=True)]
    return Loaded(states, [pair[0] for pair in pairs], [pair[1] for pair in pairs])


def _nesting(state_dict: object) -> tuple[Sequence[Mapping[str, Any]], Mapping[Any, Any]]:
    """Return the groups and the states, and check their types."""
    if not isinstance(state_dict, Mapping) or not {"state", "param_groups"} <= set(state_dict):
        raise StateDictError("a state dict has the keys 'state' and 'param_groups'; pass what state_dict() returned")
    entries, by_key = state_dict["param_groups"], state_dict["state"]
    if not isinstance(by_key, Mapping):
        raise StateDictError(f"'state' is of type {type(by_key).__name__}: it must be a dict from keys to states")
    if not isinstance(entries, (list, tuple)) or not all(isinstance(entry, Mapping) for entry in entries):
        raise StateDictError("'param_groups' must be a list of dicts; pass what state_dict() returned")
    for index, entry in enumerate(entries):
        if not isinstance(entry.get("params"), (list, tuple)):
            raise StateDictError(f"param_groups[{index}] must have 'params', the list of its arrays' keys in 'state'")
    return entries, by_key


def _check_keys(keys: Sequence[Any], by_key: Mapping[Any, Any]) -> None:
    """Refuse a state that belongs to no array or to two."""
    numbers = [key for key in keys if isinstance(key, (int, str))]
    if len(numbers) < len(keys):
        raise StateDictError("the 'params' of 'param_groups' must be numbers; pass what state_dict() returned")
    twice = [key for key, count in Counter(numbers).items() if count > 1]
    if twice:
        raise StateDictError(f"the 'params' of 'param_groups' have {twice[0]!r} twice: each array has its own number")
    strangers = by_key.keys() - set(numbers)
    if strangers:
        raise StateDictError(f"state[{min(strangers, key=repr)!r}] belongs to no param group of the state dict")


def _check_names(entries: Sequence[Mapping[str, Any]], groups: Sequence[ParamGroup]) -> None:
    """Refuse the same names in another order, which would exchange states between arrays. Accept new names."""
    for index, entry in enumerate(entries):
        names = entry.get("param_names") or []
        if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
            raise StateDictError(f"param_groups[{index}]['param_names'] is {names!r}: it must be a list of strings")
    given = [name for entry in entries for name in entry.get("param_names") or ()]
    own = [name for group in groups for name in group.get("param_names", ())]
    if given != own and Counter(given) == Counter(own):
        one, other = next((a, b) for a, b in zip(given, own, strict=True) if a != b)
        raise StateDictError(
            f"the state dict has {one!r} where the optimizer has {other!r}: make the optimizer with its arrays in the "
            "order of the state dict's 'param_names'"
        )


def _hyperparameters(entry: Mapping[str, Any], group: ParamGroup) -> tuple[Hyperparameters, dict[str, Any]]:
    """Return a group's hyperparameters and notes. Missing entries keep their values, except eps_mode."""
    silent = (*FIXED, *PYTORCHS, *group.owned)
    said = {key: plain(value) for key, value in entry.items() if key in HYPERPARAMETER_NAMES and key not in silent}
    notes = {key: deepcopy(value) for key, value in entry.items() if key not in (*HYPERPARAMETER_NAMES, *silent)}
    loaded = changed(group.hyperparameters, {"eps_mode": "algorithm1", **said, **notes}, group.owned)
    group.checked(loaded[0])
    return loaded


def _state(state: Any, key: object, param: Array) -> dict[str, Any]:
    """Return one parameter's state with borrowed arrays."""
    where = f"state[{key!r}]"
    if not isinstance(state, Mapping):
        raise StateDictError(f"{where} is of type {type(state).__name__}: it must be a dict")
    if not state:
        return {}
    if not set(state) >= _REQUIRED:
        raise StateDictError(f"{where} has no {sorted(_REQUIRED - set(state))[0]!r}")
    arrays = {name: _moment(state, name, where, param) for name in _MOMENTS if name in state}
    arrays |= {name: _array(state[name], f"{where}[{name!r}]", param) for name in _KEPT if name in state}
    if isinstance(arrays["exp_avg"], EightBit) != isinstance(arrays["exp_avg_sq"], EightBit):
        raise StateDictError(
            f"{where} has only one of 'exp_avg' and 'exp_avg_sq' in 8 bits: the first is kept as its ratio to the "
            "second's root, so both must be, or neither"
        )
    axes = _axes(state, where, param)
    return {"step": _step(state["step"], f"{where}['step']"), **arrays, **({} if axes is None else {"axes": axes})}


def _step(value: object, name: str) -> int:
    """Return a step number, which PyTorch keeps as a float."""
    step = plain(value)
    if isinstance(step, bool) or not isinstance(step, (int, float)) or not 0 <= step <= LAST_STEP or step != int(step):
        raise StateDictError(f"{name} is {value!r}: it must be a whole number from 0 to 2**53")
    return int(step)


def _moment(state: Mapping[str, Any], name: str, where: str, param: Array) -> Array | EightBit:
    """Return one array of a state, in its own format."""
    label = f"{where}[{name!r}]"
    if _dtype_name(state[name]) != "uint8":
        return _array(state[name], label, param)
    codes, scales = state[name], state.get(f"{name}_scale")
    needed = (blocks_of(param.size),)
    if _dtype_name(scales) != "float32":
        raise StateDictError(f"{label} is in 8 bits: {where} must have its scales too, a float32 array '{name}_scale'")
    codes, scales = _read(codes, label), _read(scales, f"{where}['{name}_scale']")
    if scales.shape != needed or codes.shape != param.shape:
        raise StateDictError(
            f"{label} has shape {codes.shape} with scales of shape {scales.shape}: they must have {param.shape} "
            f"and {needed}"
        )
    codes = in_memory_order(codes, _axes(state, where, param))
    return EightBit(_in_c_order(codes), _in_c_order(scales))


def _axes(state: Mapping[str, Any], where: str, param: Array) -> Axes | None:
    """Return the order of axes of the blocks of codes; None for C order."""
    given = state.get("axes")
    if given is None:
        return None
    try:
        axes = tuple(map(operator.index, given))
    except (TypeError, ValueError, RuntimeError):  # frameworks raise different errors
        axes = ()
    if sorted(axes) != list(range(param.ndim)):
        raise StateDictError(
            f"{where}['axes'] is {given!r}: it must have each of the parameter's {param.ndim} axes once"
        )
    return axes


def _dtype_name(array: object) -> str:
    """Return the name of an array's dtype, for any framework."""
    return str(getattr(array, "dtype", "")).rpartition(".")[2]


def _read(array: Any, name: str) -> Array:
    """Convert an array of any framework to a NumPy array; return a NumPy array itself."""
    try:
        return np.asarray(array)
    except (TypeError, ValueError, RuntimeError) as error:  # on a GPU, for instance
        raise StateDictError(f"{name} ({type(array).__name__}) cannot be read ({error}): give a NumPy array") from error


def _in_c_order(array: Array) -> Array:
    """Return an array in C order: itself, or a copy. Loading copies it later."""
    return array if array.flags.c_contiguous else np.array(array, order="C")


def _array(value: object, name: str, param: Array) -> Array:
    try:
        array = borrow(value, name=name, narrow=True, any_order=True)
        check_shape(array, name, param, "its parameter")
    except ArrayError as error:
        raise StateDictError(str(error)) from error
    return array
