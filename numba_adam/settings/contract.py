"""The contract of a backend: what it does for the parameters that it updates together, and in which order.

`cpu/part.py` and `cuda/part.py` are the two implementations. The order of the calls stands in `optim/stepping.py`:

    is_ready, draft, make_table     make ready: state on first use, the hyperparameters of this step
    plan                            validate the gradients, and fold the constants of the step
    extents_of_grads                check that gradients which are set to zero share no memory
    sum_of_squares, look_again      measure, where the norm or a finite check is asked for
    launch                          update, in place

A plan is a backend's own value. It holds until the part plans again. A part has its arrays in a table, also the
backend's own, which is made again when the arrays change.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Generic, NamedTuple, Protocol, TypeVar

import numpy as np

from numba_adam.errors import StateDictError
from numba_adam.interop.arrays import Extents
from numba_adam.interop.axes import Axes, as_given
from numba_adam.numerics.array import Array
from numba_adam.numerics.eight_bit import EightBit
from numba_adam.numerics.norm import LARGEST_GRADIENT
from numba_adam.settings.hyperparameters import Hyperparameters
from numba_adam.settings.members import Member, Roster
from numba_adam.settings.options import Options
from numba_adam.settings.param_groups import ParamGroup
from numba_adam.settings.results import StepResult, has_surely_written
from numba_adam.settings.scaling import Scaling
from numba_adam.settings.step_arrays import LABELS, MASTER_LABELS, Copies, Moments, StepArrays, array_format

Plan = TypeVar("Plan")
_Planned = TypeVar("_Planned", contravariant=True)


class Accumulator(Protocol):
    """Sums of gradients over several micro-batches, one for each parameter of a part, in the compute dtype."""

    def note(self, grads: Sequence[Any]) -> None:
        """Note which parameters had a gradient."""

    def grads(self) -> list[Any]:
        """Return the sum of each parameter's gradients; None without a gradient."""

    def reset(self, *, are_zero: bool) -> None:
        """Forget which parameters had a gradient. Set the sums to zero, unless a step has done so."""


class Table(Protocol[_Planned]):
    """The arrays of a part, ready for steps."""

    def set_hyperparameters(self, group: int, hyperparameters: Hyperparameters) -> None:
        """Let a group's next steps use other hyperparameters; `amsgrad` must stay what it is."""

    def extents_of_grads(self, plan: _Planned) -> tuple[Array, Array, list[str]]:
        """Return the addresses at which the plan's gradients begin and end, and what error messages call them."""

    def sum_of_squares(self, plan: _Planned) -> float:
        """Return the sum of squares of the plan's gradients. Waits for a GPU."""

    def look_again(self, plan: _Planned, scale: float) -> tuple[float, float]:
        """Return the sum of squares of the gradients, each multiplied by `scale`, and the largest magnitude of one."""


class HostState(NamedTuple):
    """Functions that make and convert state in this host's memory.

    The CPU backend has them. `optim` hands them to the GPU's, which uploads the results.
    """

    make_copies: Callable[[Sequence[Array], Options], Copies]
    load_copies: Callable[[Copies, Sequence[Mapping[str, Any]], Options], None]
    renewed_master: Callable[[Array, Array], Array]
    in_memory_order: Callable[[Mapping[str, Any], Axes | None], dict[str, Any]]
    load_moments: Callable[[Sequence[Mapping[str, Any]], Sequence[Any], Sequence[str]], Moments]


class Part(ABC, Generic[Plan]):
    """Parameters that one backend computes in one dtype, in one memory, with their state."""

    measures_in_launch: ClassVar[bool] = False
    """Whether it is a SelfMeasuringPart. Python asks an abstract class for its instances ten times as long."""

    steps: Array
    """(members,) int64: the number of updates of each parameter. Reading it may wait for a GPU."""

    accumulator: Accumulator | None
    """Sums of gradients; None before the first call of `make_accumulator`."""

    def __init__(self, members: Sequence[Member], options: Options, copies: Copies) -> None:
        """Take the parameters, already validated. Their moments are made when a step first needs them.

        Args:
            members: the parameters.
            options: of the optimizer.
            copies: the copies and averages of the parameters.
        """
        self.roster, self.options, self.copies = Roster(members), options, copies
        self.column_labels = MASTER_LABELS if options.master_weights else LABELS
        self.steps = np.zeros(len(members), dtype=np.int64)
        self.accumulator = None
        self._moments: Moments | None = None  # the state; None before the first launch
        self._drafted: Moments | None = None  # the table's moments; the first launch makes them the state
        self._table: Table[Plan] | None = None
        self._known: list[Hyperparameters] = []  # of the table; empty without a table
        self.dtype = options.computed_in(array_format(members[0].param))
        """The compute dtype: "float32" or "float64"."""

        is_wide = all(format_ == "float64" for format_ in self.state_formats)
        self.largest_gradient = LARGEST_GRADIENT["float64" if is_wide else "float32"]
        """The limit from which on a gradient's square overflows the second moment."""

    # Make ready.

    def is_ready(self) -> bool:
        """Return whether there is a table for the current hyperparameters; hand it those that have changed."""
        current = self.roster.hyperparameters
        if current == self._known:
            return True
        if not self._known or [h.amsgrad for h in current] != [h.amsgrad for h in self._known]:
            return False
        for index, hyperparameters in enumerate(current):
            self.set_hyperparameters(index, hyperparameters)
        self._known = current
        return True

    def draft(self) -> StepArrays:
        """Make the moments that are missing; return every array that a step writes."""
        have = self._moments or self.new_moments()
        needed = [member.group.hyperparameters.amsgrad for member in self.roster.members]
        largest = [
            self.new_largest(position) if need and array is None else array
            for position, (need, array) in enumerate(zip(needed, have.max_exp_avg_sqs, strict=True))
        ]
        self._drafted = have._replace(max_exp_avg_sqs=largest)
        used = [array if need else None for need, array in zip(needed, largest, strict=True)]
        copies = self.copies
        return StepArrays(copies.updated, have.exp_avgs, have.exp_avg_sqs, used, copies.emas, copies.rounded)

    def make_table(self, arrays: StepArrays, extents: Extents) -> None:
        """Make the table over the arrays that `draft` returned; no gradient may share memory with `extents`."""
        self._table = self.new_table(arrays, extents)
        self._known = self.roster.hyperparameters

    def set_hyperparameters(self, index: int, hyperparameters: Hyperparameters) -> None:
        """Let the next steps of a run of the roster use other hyperparameters."""
        assert self._table is not None
        self._table.set_hyperparameters(index, hyperparameters)

    def drop_table(self) -> None:
        """Let the next step make a table of its own, because the arrays have changed."""
        self._table, self._known = None, []

    @abstractmethod
    def new_table(self, arrays: StepArrays, extents: Extents) -> Table[Plan]:
        """Return the backend's table; as `make_table`."""

    @abstractmethod
    def new_moments(self) -> Moments:
        """Return the state before the first step: zeros, without max_exp_avg_sq."""

    @abstractmethod
    def new_largest(self, position: int) -> Any:
        """Return a new max_exp_avg_sq of one parameter, zero everywhere."""

    # Plan, check, measure, launch.

    @abstractmethod
    def plan(self, grads: Sequence[Any], scaling: Scaling) -> Plan:
        """Validate the gradients, and plan a step with them.

        Args:
            grads: one for each parameter; None leaves that parameter out.
            scaling: the treatment of the gradients.

        Raises:
            ArrayError: a gradient does not fit; the message names it. Nothing was changed.
        """

    @abstractmethod
    def replan(self, plan: Plan, scaling: Scaling) -> Plan:
        """Return the plan of the same step with another scaling."""

    def extents_of_grads(self, plan: Plan) -> tuple[Array, Array, list[str]]:
        """Return the addresses at which the plan's gradients begin and end, and what error messages call them."""
        assert self._table is not None
        return self._table.extents_of_grads(plan)

    def sum_of_squares(self, plan: Plan) -> float:
        """Return the sum of squares of the plan's gradients. Waits for a GPU."""
        assert self._table is not None
        return self._table.sum_of_squares(plan)

    def look_again(self, plan: Plan, scale: float) -> tuple[float, float]:
        """Return the sum of squares of the gradients, each multiplied by `scale`, and the largest magnitude of one.

        Called after `sum_of_squares`. Waits for a GPU.
        """
        assert self._table is not None
        return self._table.look_again(plan, scale)

    @abstractmethod
    def launch(self, plan: Plan) -> None:
        """Make the planned step. Nothing waits for a GPU."""

    # Accumulate.

    def make_accumulator(self) -> None:
        """Allocate the sums of gradients, unless there are some."""
        if self.accumulator is None:
            self.accumulator = self.new_accumulator()

    @abstractmethod
    def new_accumulator(self) -> Accumulator:
        """Return sums of gradients in the compute dtype, zero everywhere."""

    @abstractmethod
    def accumulate(self, plan: Plan, grads: Sequence[Any]) -> None:
        """Add the plan's gradients, `grads`, to their sums."""

    def reset_accumulator(self, result: StepResult | None) -> None:
        """Start the sums again from zero.

        Args:
            result: of a step with the sums, which sets them to zero where it is applied; None without such a step.
        """
        if self.accumulator is not None:
            self.accumulator.reset(are_zero=result is not None and has_surely_written(result))

    # State in and out.

    @abstractmethod
    def set_states(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Replace every parameter's state; the arrays are copied. An empty one is the state before the first step."""

    @abstractmethod
    def rebind(self, members: Sequence[Member]) -> None:
        """Use the same parameters in other memory, in the same order of axes, already validated. The state stays."""

    def state_of(self, position: int) -> dict[str, Any]:
        """Return one parameter's state as NumPy arrays, with PyTorch's keys; empty before its first step.

        The arrays are the part's own, or copies where those are on a GPU, which is waited for.
        """
        if self._moments is None or not self.steps[position]:
            return {}
        arrays = {
            "exp_avg": self._moments.exp_avgs[position],
            "exp_avg_sq": self._moments.exp_avg_sqs[position],
            "max_exp_avg_sq": self._moments.max_exp_avg_sqs[position],
            "master_param": self.copies.masters[position],
            "ema": self.copies.emas[position],
        }
        state: dict[str, Any] = {"step": _read_only(self.steps, position)}
        axes = self.roster.axes[position]
        for name, array in arrays.items():
            if isinstance(array, EightBit):
                state[name], state[f"{name}_scale"] = as_given(array.codes, axes), array.scales
            elif array is not None:
                state[name] = as_given(array, axes)
        if axes is not None and isinstance(arrays["exp_avg_sq"], EightBit):
            state["axes"] = np.array(axes, dtype=np.int64)  # the order of axes in which blocks follow each other
        return state

    def check_whole(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Refuse states from before another load: their averages, which stay in place, have changed since.

        Raises:
            StateDictError: there is such a state.
        """
        averages = zip(states, self.copies.emas, self.roster.labels, strict=True)
        for position, (state, ema, label) in enumerate(averages):
            if ema is None or not ema.size or "ema" not in state or state["ema"].ctypes.data != ema.ctypes.data:
                continue
            own = self._moments.exp_avgs[position] if self._moments else None
            if own is None or _address(own) != _address(state["exp_avg"]):
                raise StateDictError(
                    f"the state of params{label} was taken before another was loaded, and its 'ema' has changed since: "
                    "keep a state dict with copy.deepcopy(opt.state_dict())"
                )

    def last_step(self, group: ParamGroup) -> int:
        """Return the largest number of updates that a parameter of a group has had; 0 where none is here."""
        return self.roster.last_step(group, self.steps)

    @property
    def state_formats(self) -> list[str]:
        """The name of the format of each parameter's moments."""
        return [self.options.state_format(array_format(param)) for param in self.roster.params]


class SelfMeasuringPart(Part[Plan]):
    """A part that can measure its gradients within the launch, so that a step of this part alone waits for nothing."""

    measures_in_launch = True

    @abstractmethod
    def launch_measured(self, plan: Plan) -> StepResult:
        """Make the planned step, its norm clipped, unless a gradient is not finite. Reading the result may wait."""


def _read_only(steps: Array, position: int) -> Array:
    """Return a view of one of the numbers, which shows later steps and cannot be written."""
    step: Array = steps[position : position + 1].reshape(())
    step.flags.writeable = False
    return step


def _address(moment: Any) -> int:
    return int((moment.codes if isinstance(moment, EightBit) else moment).ctypes.data)
