"""An optimizer's parameters, borrowed: their memory, their labels in error messages, their compute dtypes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from numba_adam.interop.arrays import watched
from numba_adam.interop.axes import axes_of, in_memory_order
from numba_adam.optim.backends import borrow_param
from numba_adam.settings.members import Member
from numba_adam.settings.options import Options
from numba_adam.settings.param_groups import ParamGroups
from numba_adam.settings.step_arrays import array_format


def borrow_members(groups: ParamGroups, labels: Sequence[str], options: Options) -> list[Member]:
    """Borrow the memory of every parameter, and validate it.

    Args:
        groups: the param groups.
        labels: the name of each parameter after "params" in error messages: "['w']", "[3]", or "".
        options: the optimizer's.

    Raises:
        ArrayError: a parameter cannot be updated in place with these options.
    """
    pairs = [(group, param) for group in groups for param in group["params"]]
    members = []
    for index, ((group, param), label) in enumerate(zip(pairs, labels, strict=True)):
        name = f"params{label}"
        view = borrow_param(param, name)
        options.check(label, array_format(view))
        axes = axes_of(view)
        owner = watched(param, name) if isinstance(param, np.ndarray) else None
        members.append(Member(index, label, in_memory_order(view, axes), group, param, axes, owner))
    return members


def set_compute_dtypes(groups: ParamGroups, members: Sequence[Member], options: Options) -> str:
    """Set the compute dtypes of every group's parameters; return the narrowest of all."""
    dtypes = [options.computed_in(array_format(member.param)) for member in members]
    for group in groups:
        pairs = zip(dtypes, members, strict=True)
        group.compute_in(dtype for dtype, member in pairs if member.group is group)
    return min(dtypes)  # "float32" comes before "float64"
