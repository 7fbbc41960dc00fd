"""The parameters that one backend updates together, and their hyperparameters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from numba_adam.interop.arrays import Watched
from numba_adam.interop.axes import Axes, as_given
from numba_adam.numerics.array import Array
from numba_adam.settings.hyperparameters import Hyperparameters
from numba_adam.settings.param_groups import ParamGroup


class Member(NamedTuple):
    """One parameter of an optimizer."""

    place: int  # its place among all parameters of the optimizer
    label: str  # its name in error messages: "['w']" or "[3]"
    param: Any  # a view of its memory, its axes in C order: a NumPy array, or a CudaArray
    group: ParamGroup
    given: Any  # the caller's object
    axes: Axes | None = None  # the order in memory of the axes of `given`; None: C order
    owner: Watched | None = None  # `given`, where that is a NumPy array, and its attributes when it was borrowed

    @property
    def shown(self) -> Any:
        """The same view with the axes of `given`."""
        return as_given(self.param, self.axes)


class _Run(NamedTuple):
    """Neighbouring members of one group."""

    group: ParamGroup
    begin: int
    end: int


class Roster:
    """The members of one part, in order."""

    def __init__(self, members: Sequence[Member]) -> None:
        """Take the members."""
        self.members = list(members)
        self.places = [member.place for member in self.members]
        self.params = [member.param for member in self.members]
        self.labels = [member.label for member in self.members]
        self.axes = [member.axes for member in self.members]
        starts = [k for k, member in enumerate(members) if k == 0 or member.group is not members[k - 1].group]
        ends = [*starts[1:], len(members)]
        self._groups = [members[begin].group for begin in starts]  # of each run
        self._runs = [_Run(members[begin].group, begin, end) for begin, end in zip(starts, ends, strict=True)]

    @property
    def hyperparameters(self) -> list[Hyperparameters]:
        """The current hyperparameters of each run of neighbours in one group."""
        return [group.hyperparameters for group in self._groups]

    @property
    def groups(self) -> list[int]:
        """The number of each member's run: its index in `hyperparameters`."""
        return [index for index, run in enumerate(self._runs) for _ in range(run.begin, run.end)]

    def last_step(self, group: ParamGroup, steps: Array) -> int:
        """Return the largest number of updates that a member of a group has had; 0 without such members.

        Args:
            group: the group.
            steps: (members,) int64: the number of updates of each.
        """
        return max((int(steps[run.begin : run.end].max()) for run in self._runs if run.group is group), default=0)
