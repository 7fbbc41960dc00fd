"""Converts state dicts to one flat dict of arrays, for `numpy.savez`, and back. May import NumPy and our errors.

    {"state.0.step": array(3), "state.0.exp_avg": array, ..., "param_groups": array('[{"lr": 0.001, ...}]')}

The param groups are one JSON string. Neither direction needs pickle.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from numba_adam.errors import StateDictError
from numba_adam.numerics.formats import Format, format_of

_GROUPS = "param_groups"


def to_flat_arrays(state_dict: Mapping[str, Any]) -> dict[str, npt.NDArray[Any]]:
    """Convert a state dict to one flat dict of arrays, which `numpy.savez` saves without pickle.

        >>> import io
        >>> import numpy as np
        >>> import numba_adam as na
        >>> w = np.ones(3)
        >>> opt = na.Adam({"w": w}, lr=0.5)
        >>> opt.step({"w": np.ones(3)}).applied
        True
        >>> file = io.BytesIO()
        >>> np.savez(file, **to_flat_arrays(opt.state_dict()))
        >>> other = na.Adam({"w": w.copy()})
        >>> with np.load(io.BytesIO(file.getvalue()), allow_pickle=False) as arrays:
        ...     other.load_state_dict(from_flat_arrays(arrays))
        >>> int(other.state["w"]["step"]), other.param_groups[0]["lr"]
        (1, 0.5)

    Args:
        state_dict: the result of `Adam.state_dict()`.

    Returns:
        The arrays themselves, not copies. bfloat16 becomes a view of its bits as uint16.

    Raises:
        StateDictError: JSON cannot represent an entry of a param group.
    """
    try:
        groups = json.dumps(state_dict[_GROUPS])
    except (TypeError, ValueError) as error:
        raise StateDictError(
            f"'param_groups' contains an entry that JSON cannot represent ({error}): remove it from the param groups, "
            "or from the dict before you save it"
        ) from error
    arrays = {
        f"state.{index}.{name}": _plain(np.asarray(value))
        for index, entry in state_dict["state"].items()
        for name, value in entry.items()
    }
    return {**arrays, _GROUPS: np.array(groups)}


def from_flat_arrays(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Convert the arrays of `to_flat_arrays` back to a state dict, for `Adam.load_state_dict`.

    Args:
        arrays: the result of `numpy.load`, or any mapping with the same keys.

    Raises:
        StateDictError: the arrays do not come from `to_flat_arrays`.
    """
    if not isinstance(arrays, Mapping) or _GROUPS not in arrays:
        raise StateDictError(
            f"arrays: expected a mapping with the key {_GROUPS!r}: pass the result of to_flat_arrays()"
        )
    try:
        groups = json.loads(str(arrays[_GROUPS]))
    except ValueError as error:
        raise StateDictError(f"{_GROUPS!r} is not JSON ({error}): pass the result of to_flat_arrays()") from error
    state: dict[int, dict[str, Any]] = {}
    for key in arrays:
        if key != _GROUPS:
            index, name = _parsed(key)
            state.setdefault(index, {})[name] = arrays[key]
    return {"state": state, _GROUPS: groups}


def _parsed(key: object) -> tuple[int, str]:
    """Return the parameter's index and the entry's name in a key."""
    parts = str(key).split(".")
    if len(parts) != 3 or parts[0] != "state" or not parts[1].isdecimal():
        raise StateDictError(
            f"arrays: expected keys such as 'state.0.exp_avg', got {key!r}: pass the result of to_flat_arrays()"
        )
    return int(parts[1]), parts[2]


def _plain(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return the array; bfloat16 as its bits in uint16, because NumPy cannot save it without pickle."""
    return array.view(np.uint16) if format_of(array.dtype) == Format.BFLOAT16 else array
