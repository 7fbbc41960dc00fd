"""The GPU backend: the parameters on one GPU with one compute dtype, their state, and their step.

Fulfils `settings/contract.py`. A step is queued on the caller's stream without waiting. These calls wait: reading the
state or a measured step's result, a norm over several parts, and a schedule after steps that may have been skipped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from numba_adam.cuda import seam
from numba_adam.cuda.accumulator import CudaAccumulator
from numba_adam.cuda.arrays import CudaArray
from numba_adam.cuda.copies import load_copies, make_copies, note_stream, rebind_copies, uploaded_beside
from numba_adam.cuda.memory import Array, download, zero_moment
from numba_adam.cuda.outcomes import PendingResult
from numba_adam.cuda.table import CudaTable, Plan
from numba_adam.interop.arrays import Extents
from numba_adam.numerics.formats import Format
from numba_adam.settings.contract import HostState, SelfMeasuringPart
from numba_adam.settings.members import Member, Roster
from numba_adam.settings.options import Options
from numba_adam.settings.results import StepResult
from numba_adam.settings.scaling import Scaling
from numba_adam.settings.step_arrays import Extras, Moments, StepArrays


class CudaPart(SelfMeasuringPart[Plan]):
    """CudaArrays on one GPU, with their state on the same GPU."""

    accumulator: CudaAccumulator | None
    _table: CudaTable | None
    _counts: Array
    _are_known: bool  # whether `_counts` has all steps; else the table on the GPU does

    def __init__(self, members: Sequence[Member], options: Options, host: HostState) -> None:
        """Take the parameters, already validated.

        Args:
            members: the parameters.
            options: of the optimizer.
            host: makes and converts state in this host's memory.

        Raises:
            CudaUnavailableError: there is no GPU that can be used.
        """
        seam.require_gpu()
        super().__init__(members, options, make_copies([member.param for member in members], options, host))
        self._host, self._copies_stream = host, -1

    @property
    def steps(self) -> Array:
        """(members,) int64: the number of updates of each parameter; waits where only the GPU knows it."""
        if not self._are_known:
            assert self._table is not None
            self._counts, self._are_known = self._table.steps, True
        return self._counts

    @steps.setter
    def steps(self, steps: Array) -> None:
        self._counts, self._are_known = steps, True

    def new_table(self, arrays: StepArrays, extents: Extents) -> CudaTable:
        """Return the table of these arrays."""
        roster = self.roster
        return CudaTable(
            arrays.params,
            arrays.exp_avgs,
            arrays.exp_avg_sqs,
            arrays.max_exp_avg_sqs,
            hyperparameters=roster.hyperparameters,
            groups=roster.groups,
            names=roster.labels,
            extents=extents,
            labels=self.column_labels,
            extras=Extras.of(self.options, arrays, roster.places),
            steps=list(self.steps),
            caller=roster.members[0].given,
            axes=roster.axes,
        )

    def new_moments(self) -> Moments:
        """Return the state before the first step."""
        pairs = list(zip(self.roster.params, self.state_formats, strict=True))
        first, second = ([zero_moment(param, Format.named(format_)) for param, format_ in pairs] for _ in range(2))
        return Moments(first, second, [None] * len(pairs))

    def new_largest(self, position: int) -> Any:
        """Return a new max_exp_avg_sq of one parameter."""
        return zero_moment(self.roster.params[position], Format.named(self.state_formats[position]))

    def plan(self, grads: Sequence[Any], scaling: Scaling) -> Plan:
        """Validate the gradients, and plan a step with them."""
        assert self._table is not None
        return self._table.plan(grads, scaling)

    def replan(self, plan: Plan, scaling: Scaling) -> Plan:
        """Return the plan of the same step with another scaling."""
        assert self._table is not None
        return self._table.replan(plan, scaling)

    def launch(self, plan: Plan) -> None:
        """Queue the planned step."""
        self._launch(plan, measure=False)

    def launch_measured(self, plan: Plan) -> StepResult:
        """Queue the planned step, which measures its gradients on the GPU and decides there."""
        return self._launch(plan, measure=True)

    def _launch(self, plan: Plan, *, measure: bool) -> StepResult:
        """Queue the planned step, and note what is known of it."""
        assert self._table is not None
        self._moments = self._drafted
        result = self._table.launch(plan, measure=measure)
        if isinstance(result, PendingResult):
            self._are_known = False
        elif self._are_known:
            self._counts = self._counts + np.array([grad is not None for grad in plan.given])
        if self._copies_stream != self._table.stream:
            self._copies_stream = self._table.stream
            note_stream(self.copies, self._copies_stream)
        return result

    def new_accumulator(self) -> CudaAccumulator:
        """Return sums of gradients in the compute dtype, zero everywhere."""
        return CudaAccumulator(self.roster.params, self.dtype, self.roster.axes)

    def accumulate(self, plan: Plan, grads: Sequence[Any]) -> None:
        """Queue the addition of the plan's gradients to their sums."""
        assert self._table is not None
        assert self.accumulator is not None
        self._table.accumulate(plan, self.accumulator.on(self._table.stream))
        self.accumulator.note(grads)

    def reset_accumulator(self, result: StepResult | None) -> None:
        """Start the sums again from zero; a result that only the GPU knows is not waited for."""
        if self.accumulator is not None and self._table is not None:
            self.accumulator.on(self._table.stream)
        super().reset_accumulator(result)

    def state_of(self, position: int) -> dict[str, Any]:
        """Return one parameter's state as NumPy arrays, all of them copies; waits."""
        state = super().state_of(position)
        return {
            key: self._shown(value) if isinstance(value, CudaArray) else value.copy() for key, value in state.items()
        }

    def _shown(self, array: CudaArray) -> Array:
        """Return a copy of an array of ours in this host's memory, once all steps are done."""
        stream = array.stream if self._table is None else self._table.stream
        values = download(replace(array, stream=stream))
        return values.view(Format.BFLOAT16.dtype) if array.format == Format.BFLOAT16 else values

    def set_states(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Replace every parameter's state; the arrays are copied."""
        params = self.roster.params
        states = [self._host.in_memory_order(*each) for each in zip(states, self.roster.axes, strict=True)]
        loaded = self._host.load_moments(states, params, self.state_formats)
        self.steps = np.array([state.get("step", 0) for state in states], dtype=np.int64)
        load_copies(self.copies, states, self.options, self._host)
        self._moments = Moments(*(uploaded_beside(column, params) for column in loaded))
        self.drop_table()

    def rebind(self, members: Sequence[Member]) -> None:
        """Use the same parameters in other memory of their GPU."""
        self.steps = self.steps  # read before the table that counts them is dropped
        self.roster = Roster(members)
        rebind_copies(self.copies, self.roster.params, self._host)
        self._copies_stream = -1
        self.drop_table()
