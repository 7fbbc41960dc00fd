"""An optimizer's parameters: borrowed, divided among the backends, and re-borrowed when their storage was replaced."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from numba_adam.errors import HyperparameterError, LayoutError
from numba_adam.interop.arrays import Extents, check_like
from numba_adam.interop.axes import as_given
from numba_adam.interop.writes import CountedWrites
from numba_adam.optim import state_dicts
from numba_adam.optim.backends import check_same_device, parts_of
from numba_adam.optim.gradients import in_order
from numba_adam.optim.members import borrow_members, set_compute_dtypes
from numba_adam.optim.stepping import make_ready
from numba_adam.optim.watching import Watch
from numba_adam.settings.contract import Part
from numba_adam.settings.fixed import FixedDict, FixedList
from numba_adam.settings.members import Member
from numba_adam.settings.options import Options
from numba_adam.settings.param_groups import ParamGroups, follow_schedules
from numba_adam.settings.results import StepResult, may_have_written

_FIXED_ARRAYS = "these arrays belong to the optimizer and cannot be replaced: write into them"


class Parameters:
    """The parameters of one optimizer, in the order in which they were given. Callers hold the optimizer's lock."""

    def __init__(self, groups: ParamGroups, options: Options, *, is_single: bool) -> None:
        """Borrow the parameters, and divide them among the backends.

        Args:
            groups: the param groups.
            options: the optimizer's.
            is_single: True: the optimizer was given one bare array.

        Raises:
            ArrayError: a parameter cannot be updated in place, or two share memory.
        """
        self.is_single = is_single
        self.names: list[str] = [name for group in groups for name in group.get("param_names", ())]
        self._groups, self._options = groups, options
        count = sum(len(group["params"]) for group in groups)
        self._labels = [""] if is_single else [f"[{key!r}]" for key in self.names or range(count)]
        self.members = borrow_members(groups, self._labels, options)
        self._watch = Watch(member.given for member in self.members)
        self._writes = CountedWrites(member.given for member in self.members)
        Extents([each.param for each in self.members], [f"params{each.label}" for each in self.members])
        self.narrowest = set_compute_dtypes(groups, self.members, options)
        """The narrowest compute dtype of all parameters."""

        self.parts: list[Part[Any]] = parts_of(self.members, options)
        """The parameters of each backend and compute dtype."""

    def in_order(self, grads: object) -> list[object]:
        """Return one gradient, or None, for each parameter.

        Raises:
            NamesError: the form differs from the parameters', or the number or names of gradients do.
        """
        return in_order(grads, len(self.members), self.names, self.is_single)

    def in_form(self, arrays: list[Any]) -> Any:
        """Return arrays, one for each parameter, in the form in which the parameters were given."""
        if self.is_single:
            return arrays[0]
        if self.names:
            return FixedDict(dict(zip(self.names, arrays, strict=True)), _FIXED_ARRAYS)
        return FixedList(arrays, _FIXED_ARRAYS)

    def make_ready(self, accumulations: int) -> list[Part[Any]]:
        """Return the parts. They have the parameters' memory, hyperparameters and state for the next step.

        Args:
            accumulations: number of accumulated micro-batches.

        Raises:
            ArrayError: as for `rebind`, or two of the arrays that a step writes share memory.
        """
        if self._watch.kinds:
            self.rebind(accumulations)
        for group in self._groups:
            if group.schedule is not None:
                self._follow_schedules()
                break
        make_ready(self.parts)
        return self.parts

    def _follow_schedules(self) -> None:
        """Set the next step's learning rate in every group that has a schedule."""
        scheduled = [group for group in self._groups if group.schedule is not None]
        follow_schedules(scheduled, [1 + max(part.last_step(group) for part in self.parts) for group in scheduled])

    def count_writes(self, result: StepResult, grads: Sequence[Any]) -> None:
        """Tell frameworks that count writes to their tensors about the writes of a step."""
        if self._writes.kinds and may_have_written(result):
            self._writes.count(grads)

    def states(self) -> list[dict[str, Any]]:
        """Return every parameter's state, in order."""
        by_position = {
            place: part.state_of(position) for part in self.parts for position, place in enumerate(part.roster.places)
        }
        return [by_position[place] for place in range(len(by_position))]

    def load(self, states: Sequence[dict[str, Any]]) -> None:
        """Replace every parameter's state.

        Raises:
            StateDictError: another load replaced this state meanwhile. Nothing was changed.
        """
        for part in self.parts:
            part.check_whole([states[place] for place in part.roster.places])
        for part in self.parts:
            part.set_states([states[place] for place in part.roster.places])

    def copies(self, column: str, option: str) -> Any:
        """Return the arrays of a column of `Copies`, in the form in which the parameters were given.

        Raises:
            HyperparameterError: the optimizer does not have these arrays.
        """
        by_position = {
            member.place: None if array is None else as_given(array, member.axes)
            for part in self.parts
            for member, array in zip(part.roster.members, getattr(part.copies, column), strict=True)
        }
        if any(array is None for array in by_position.values()):
            raise HyperparameterError(f"this optimizer does not have these arrays: make it with {option}")
        return self.in_form([by_position[place] for place in range(len(by_position))])

    def rebind(self, accumulations: int) -> None:
        """Re-borrow the parameters whose storage was replaced, as `tensor.data = ...` does.

        Otherwise a step would update memory that is no longer in use.

        Args:
            accumulations: number of accumulated micro-batches.

        Raises:
            ArrayError: a parameter's shape, dtype or memory kind has changed; or its order of axes, and gradients were
                accumulated. Nothing was changed.
        """
        if not self._watch.sees_a_change():
            return
        members = borrow_members(self._groups, self._labels, self._options)
        for new, old in zip(members, self.members, strict=True):
            check_same_device(new.param, f"params{new.label}", old.param)
            check_like(new.shown, f"params{new.label}", old.shown, "the memory it had before")
        turned = [new.label for new, old in zip(members, self.members, strict=True) if new.axes != old.axes]
        if turned and accumulations:
            raise LayoutError(
                f"params{turned[0]} has another order of axes than the accumulated gradients: change it back, "
                "or call drop_accumulated() before the next step"
            )
        if turned:
            self.parts = self._parts_with_this_state(members)
        self.members, self._watch = members, Watch(member.given for member in members)
        for part in self.parts:
            part.rebind([members[place] for place in part.roster.places])

    def _parts_with_this_state(self, members: list[Member]) -> list[Part[Any]]:
        """Return new parts after an order of axes changed. As in PyTorch, the state of an element keeps its index."""
        saved = state_dicts.dump(self._groups, self.states())
        states = state_dicts.parse(saved, self._groups, [member.shown for member in members]).states
        parts = parts_of(members, self._options)
        for part in parts:
            part.set_states([states[place] for place in part.roster.places])
        return parts
