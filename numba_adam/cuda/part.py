"""The GPU backend: the parameters that lie on one GPU and are computed in one dtype, their state, and their step.

Fulfils `settings/contract.py`. A step is queued on the caller's stream, and nothing waits for it. These wait: reading
the state, or a measured step's result; a norm over several parts; and a learning rate schedule, after steps that may
have been left out.
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
from numba_adam.settings.hyperparameters import Hyperparameters
from numba_adam.settings.members import Member, Roster
from numba_adam.settings.options import Options
from numba_adam.settings.results import StepResult
from numba_adam.settings.scaling import Scaling
from numba_adam.settings.step_arrays import Extras, Moments, StepArrays, array_format


class CudaPart(SelfMeasuringPart[Plan]):
    """CudaArrays on one GPU, with their state beside them."""

    accumulator: CudaAccumulator | None
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
        self._table: CudaTable | None = None

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

    def build_table(self, arrays: StepArrays, extents: Extents) -> None:
        """Make the table of these arrays."""
        roster = self.roster
        self._table = CudaTable(
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

    def set_hyperparameters(self, index: int, hyperparameters: Hyperparameters) -> None:
        """Let the next steps of a run of the roster use other hyperparameters."""
        assert self._table is not None
        self._table.set_hyperparameters(index, hyperparameters)

    def new_moments(self) -> Moments:
        """Return the state before the first step."""
        pairs = list(zip(self.roster.params, self.state_formats, strict=True))
        first, second = ([zero_moment(param, format_) for param, format_ in pairs] for _ in range(2))
        return Moments(first, second, [None] * len(pairs))

    def new_largest(self, position: int) -> Any:
        """Return a new max_exp_avg_sq of one parameter."""
        return zero_moment(self.roster.params[position], self.state_formats[position])

    def plan(self, grads: Sequence[Any], scaling: Scaling) -> Plan:
        """Validate the gradients, and plan a step with them."""
        assert self._table is not None
        return self._table.plan(grads, scaling)

    def replan(self, plan: Plan, scaling: Scaling) -> Plan:
        """Return the plan of the same step with another scaling."""
        assert self._table is not None
        return self._table.replan(plan, scaling)

    def extents_of_grads(self, plan: Plan) -> tuple[Array, Array, list[str]]:
        """Return the addresses at which the plan's gradients begin and end, and what error messages call them."""
        assert self._table is not None
        return self._table.extents_of_grads(plan)

    def sum_of_squares(self, plan: Plan) -> float:
        """Return the sum of squares of the plan's gradients; waits for it."""
        assert self._table is not None
        return self._table.sum_of_squares(plan)

    def look_again(self, plan: Plan, scale: float) -> tuple[float, float]:
        """Return the sum of squares of the gradients, each multiplied by `scale`, and the largest; waits for it."""
        assert self._table is not None
        return self._table.look_again(plan, scale)

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
            self.accumulator = CudaAccumulator(params, dtype, self.roster.axes)

    def accumulate(self, plan: Plan, grads: Sequence[Any]) -> None:
        """Queue the addition of the plan's gradients to their sums."""
        assert self._table is not None
        assert self.accumulator is not None
        self._table.accumulate(plan, self.accumulator.on(self._table.stream))
        self.accumulator.note(grads)

    def reset_accumulator(self, result: StepResult | None) -> None:
        """Start the sums again from zero; a result that only the GPU knows is not waited for."""
        if self.accumulator is None:
            return
        if self._table is not None:
            self.accumulator.on(self._table.stream)
        is_known = result is not None and not isinstance(result, PendingResult)
        self.accumulator.reset(are_zero=is_known and result is not None and result.applied)

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
        return values.view(Format.BFLOAT16.dtype) if array.format == "bfloat16" else values

    def set_states(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Replace every parameter's state; the arrays are copied."""
        params = self.roster.params
        states = [self._host.in_memory_order(*each) for each in zip(states, self.roster.axes, strict=True)]
        loaded = self._host.load_moments(states, params, self.state_formats)
        self.steps = np.array([state.get("step", 0) for state in states], dtype=np.int64)
        load_copies(self.copies, states, self.options, self._host)
        self._moments = Moments(*(uploaded_beside(column, params) for column in loaded))
        self._drop_table()

    def rebind(self, members: Sequence[Member]) -> None:
        """Use the same parameters in other memory of their GPU."""
        self.steps = self.steps  # read before the table that counts them is dropped
        self.roster = Roster(members)
        rebind_copies(self.copies, self.roster.params, self._host)
        self._copies_stream = -1
        self._drop_table()

    def _drop_table(self) -> None:
        """Let the next step make a table of its own."""
        self._table, self._known = None, []
