"""The CPU backend: the parameters that it computes in one dtype, their state, and their step.

Fulfils `settings/contract.py`. Knows no framework but NumPy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from numba_adam.cpu.accumulator import CpuAccumulator
from numba_adam.cpu.copies import load_copies, make_copies, rebind_copies, renewed_master
from numba_adam.cpu.moments import load_moments, state_in_memory_order, zeros
from numba_adam.cpu.table import Plan, UpdateTable
from numba_adam.interop.arrays import Extents
from numba_adam.numerics.array import Array
from numba_adam.settings.contract import HostState, Part
from numba_adam.settings.hyperparameters import Hyperparameters
from numba_adam.settings.members import Member, Roster
from numba_adam.settings.options import Options
from numba_adam.settings.results import StepResult
from numba_adam.settings.scaling import Scaling
from numba_adam.settings.step_arrays import Extras, Moments, StepArrays, array_format

HOST_STATE = HostState(make_copies, load_copies, renewed_master, state_in_memory_order, load_moments)


class CpuPart(Part[Plan]):
    """NumPy arrays, or views of other frameworks' arrays in this host's memory."""

    accumulator: CpuAccumulator | None

    def __init__(self, members: Sequence[Member], options: Options) -> None:
        """Take the parameters, already validated."""
        super().__init__(members, options, make_copies([member.param for member in members], options))
        self._table: UpdateTable | None = None

    def build_table(self, arrays: StepArrays, extents: Extents) -> None:
        """Make the table of these arrays."""
        options, roster = self.options, self.roster
        self._table = UpdateTable(
            arrays.params,
            arrays.exp_avgs,
            arrays.exp_avg_sqs,
            arrays.max_exp_avg_sqs,
            hyperparameters=roster.hyperparameters,
            groups=roster.groups,
            names=roster.labels,
            extents=extents,
            labels=self.column_labels,
            extras=Extras.of(options, arrays, roster.places),
            axes=roster.axes,
            owners=[member.owner for member in roster.members],
        )

    def set_hyperparameters(self, index: int, hyperparameters: Hyperparameters) -> None:
        """Let the next steps of a run of the roster use other hyperparameters."""
        assert self._table is not None
        self._table.set_hyperparameters(index, hyperparameters)

    def new_moments(self) -> Moments:
        """Return the state before the first step."""
        params, formats = self.roster.params, self.state_formats
        return Moments(zeros(params, formats, 1), zeros(params, formats, 2), [None] * len(params))

    def new_largest(self, position: int) -> Any:
        """Return a new max_exp_avg_sq of one parameter."""
        return zeros([self.roster.params[position]], [self.state_formats[position]], 3)[0]

    def plan(self, grads: Sequence[Any], scaling: Scaling) -> Plan:
        """Validate the gradients, and plan a step with them."""
        assert self._table is not None
        return self._table.plan(grads, self.steps, scaling)

    def replan(self, plan: Plan, scaling: Scaling) -> Plan:
        """Return the plan of the same step with another scaling."""
        assert self._table is not None
        return self._table.replan(plan, self.steps, scaling)

    def extents_of_grads(self, plan: Plan) -> tuple[Array, Array, list[str]]:
        """Return the addresses at which the plan's gradients begin and end, and what error messages call them."""
        assert self._table is not None
        return self._table.extents_of_grads(plan)

    def sum_of_squares(self, plan: Plan) -> float:
        """Return the sum of squares of the plan's gradients."""
        assert self._table is not None
        return self._table.sum_of_squares(plan)

    def look_again(self, plan: Plan, scale: float) -> tuple[float, float]:
        """Return the sum of squares of the gradients, each multiplied by `scale`, and the largest magnitude of one."""
        assert self._table is not None
        return self._table.look_again(plan, scale)

    def launch(self, plan: Plan) -> None:
        """Make the planned step."""
        assert self._table is not None
        self._moments = self._drafted
        self._table.launch(plan, self.steps)

    @property
    def dtype(self) -> str:
        """The compute dtype: "float32" or "float64"."""
        assert self._table is not None
        return self._table.dtype

    @property
    def largest_gradient(self) -> float:
        """The limit from which on a gradient's square overflows the second moment."""
        assert self._table is not None
        return self._table.largest_gradient

    def make_accumulator(self) -> None:
        """Allocate the sums of gradients, unless there are some."""
        if self.accumulator is None:
            params = self.roster.params
            dtype = self.options.computed_in(array_format(params[0]))
            self.accumulator = CpuAccumulator(params, dtype, self.roster.axes)

    def accumulate(self, plan: Plan, grads: Sequence[Any]) -> None:
        """Add the plan's gradients to their sums."""
        assert self._table is not None
        assert self.accumulator is not None
        self._table.accumulate(plan, self.accumulator.addresses)
        self.accumulator.note(grads)

    def reset_accumulator(self, result: StepResult | None) -> None:
        """Start the sums again from zero; a step that was applied has set them to zero."""
        if self.accumulator is not None:
            self.accumulator.reset(are_zero=result is not None and result.applied)

    def set_states(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Replace every parameter's state; the arrays are copied."""
        states = [state_in_memory_order(*each) for each in zip(states, self.roster.axes, strict=True)]
        self._moments = load_moments(states, self.roster.params, self.state_formats)
        self.steps = np.array([state.get("step", 0) for state in states], dtype=np.int64)
        load_copies(self.copies, states, self.options)
        self._drop_table()

    def rebind(self, members: Sequence[Member]) -> None:
        """Use the same parameters in other memory."""
        self.roster = Roster(members)
        rebind_copies(self.copies, self.roster.params)
        self._drop_table()

    def _drop_table(self) -> None:
        """Let the next step make a table of its own."""
        self._table, self._known = None, []
