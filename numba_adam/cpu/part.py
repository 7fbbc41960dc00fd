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
from numba_adam.settings.contract import HostState, Part
from numba_adam.settings.members import Member, Roster
from numba_adam.settings.options import Options
from numba_adam.settings.scaling import Scaling
from numba_adam.settings.step_arrays import Extras, Moments, StepArrays

HOST_STATE = HostState(make_copies, load_copies, renewed_master, state_in_memory_order, load_moments)


class CpuPart(Part[Plan]):
    """NumPy arrays, or views of other frameworks' arrays in this host's memory."""

    accumulator: CpuAccumulator | None
    _table: UpdateTable | None

    def __init__(self, members: Sequence[Member], options: Options) -> None:
        """Take the parameters, already validated."""
        super().__init__(members, options, make_copies([member.param for member in members], options))

    def new_table(self, arrays: StepArrays, extents: Extents) -> UpdateTable:
        """Return the table of these arrays."""
        options, roster = self.options, self.roster
        return UpdateTable(
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
            given=[member.given for member in roster.members],
            lent=roster.params,
        )

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

    def launch(self, plan: Plan) -> None:
        """Make the planned step."""
        assert self._table is not None
        self._moments = self._drafted
        self._table.launch(plan, self.steps)

    def new_accumulator(self) -> CpuAccumulator:
        """Return sums of gradients in the compute dtype, zero everywhere."""
        return CpuAccumulator(self.roster.params, self.dtype, self.roster.axes)

    def accumulate(self, plan: Plan, grads: Sequence[Any]) -> None:
        """Add the plan's gradients to their sums."""
        assert self._table is not None
        assert self.accumulator is not None
        self._table.accumulate(plan, self.accumulator.addresses)
        self.accumulator.note(grads)

    def set_states(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Replace every parameter's state; the arrays are copied."""
        states = [state_in_memory_order(*each) for each in zip(states, self.roster.axes, strict=True)]
        self._moments = load_moments(states, self.roster.params, self.state_formats)
        self.steps = np.array([state.get("step", 0) for state in states], dtype=np.int64)
        load_copies(self.copies, states, self.options)
        self.drop_table()

    def rebind(self, members: Sequence[Member]) -> None:
        """Use the same parameters in other memory."""
        self.roster = Roster(members)
        rebind_copies(self.copies, self.roster.params)
        self.drop_table()
