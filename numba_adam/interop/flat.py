"""State dicts as one flat dict of plain arrays, as `numpy.savez` writes them, and back. May import NumPy.

    {"state.0.step": array(3), "state.0.exp_avg": array, ..., "param_groups": array('[{"lr": 0.001, ...}]')}

The param groups are one string, as JSON. No pickle is needed in either direction.
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
    """Return our state dict as one dict of arrays: what `numpy.savez` writes without pickle.

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
        state_dict: what `Adam.state_dict()` returned.

    Returns:
        the arrays themselves, not copies; bfloat16 as its bits in uint16.

    Raises:
        StateDictError: a note in a param group is nothing that JSON can say.
    """
    try:
        groups = json.dumps(state_dict[_GROUPS])
    except (TypeError, ValueError) as error:
        raise StateDictError(
            f"'param_groups' holds something that JSON cannot say ({error}): leave such notes out of the param groups, "
            "or out of the dict before you save it"
        ) from error
    arrays = {
        f"state.{index}.{name}": _plain(np.asarray(value))
        for index, entry in state_dict["state"].items()
        for name, value in entry.items()
    }
    return {**arrays, _GROUPS: np.array(groups)}


def from_flat_arrays(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Return the state dict of which `to_flat_arrays` made these arrays, for `Adam.load_state_dict`.

    Args:
        arrays: what `numpy.load` returned, or any mapping with the same keys.

    Raises:
        StateDictError: they are no such arrays.
    """
    if not isinstance(arrays, Mapping) or _GROUPS not in arrays:
        raise StateDictError(f"there is no {_GROUPS!r} among the arrays: give what to_flat_arrays() returned")
    try:
        groups = json.loads(str(arrays[_GROUPS]))
    except ValueError as error:
        raise StateDictError(f"{_GROUPS!r} is not JSON ({error}): give what to_flat_arrays() returned") from error
    state: dict[int, dict[str, Any]] = {}
    for key in arrays:
        if key != _GROUPS:
            index, name = _parsed(key)
            state.setdefault(index, {})[name] = arrays[key]
    return {"state": state, _GROUPS: groups}


def _parsed(key: object) -> tuple[int, str]:
    """Return the parameter's number and the entry's name that a key says."""
    parts = str(key).split(".")
    if len(parts) != 3 or parts[0] != "state" or not parts[1].isdecimal():
        raise StateDictError(f"{key!r} is no key of a state: it must be as in 'state.0.exp_avg'")
    return int(parts[1]), parts[2]


def _plain(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return an array whose dtype is one of NumPy's own."""
    return array.view(np.uint16) if format_of(array.dtype) == Format.BFLOAT16 else array
