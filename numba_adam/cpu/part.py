"""The parameters that an optimizer computes in one dtype, their state, and their step. Knows no framework but NumPy.

An optimizer has one part, unless some parameters are computed in float32 and others in float64: one kernel launch
serves one dtype.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from numba_adam.cpu.accumulator import Accumulated
from numba_adam.cpu.conversion import format_number
from numba_adam.cpu.copies import Kept
from numba_adam.cpu.kernels.norm import measure
from numba_adam.cpu.moments import Moments, copied, turned, zeros
from numba_adam.cpu.table import LABELS, MASTER_LABELS, Extras, UpdateTable, written
from numba_adam.errors import StateDictError
from numba_adam.interop.arrays import Extents, Watched, in_memory
from numba_adam.interop.axes import Axes, as_given
from numba_adam.numerics.array import Array
from numba_adam.numerics.eight_bit import EightBit
from numba_adam.numerics.norm import PLAIN_SQUARES, is_too_large, scale_of_squares
from numba_adam.settings.hyperparameters import Hyperparameters
from numba_adam.settings.options import Options
from numba_adam.settings.param_groups import ParamGroup
from numba_adam.settings.scaling import AS_THEY_ARE, Scaling


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a step did."""

    applied: bool
    """True when the parameters were updated; False when a gradient was found not to be finite, or so large that its
    square is not: from 2**64 on for second moments of float32's range (2**512 of float64's)."""

    grad_norm: float | None = None
    """Global norm of the gradients, unscaled and before clipping, when the step measured it."""


APPLIED = StepResult(applied=True)


def was_applied(result: StepResult) -> bool:
    """Say whether a step may have written: one that only a GPU knows of is not waited for, and may have."""
    return result is APPLIED or type(result) is not StepResult or result.applied


class Member(NamedTuple):
    """One parameter."""

    place: int  # its place among all parameters of the optimizer
    label: str  # what messages call it: "['w']" or "[3]"
    param: Any  # a view of its memory, its axes in C order: a NumPy array, or a CudaArray
    group: ParamGroup
    given: Any  # what the caller gave
    axes: Axes | None = None  # the order in memory of the axes of what was given; None: C order
    owner: Watched | None = None  # what was given, where that is a NumPy array, and what it said of itself

    @property
    def shown(self) -> Any:
        """The same view with the axes of what was given."""
        return as_given(self.param, self.axes)


class Part:
    """The parameters that are computed in one dtype."""

    def __init__(self, members: Sequence[Member], options: Options) -> None:
        """Take the parameters; they have been checked. Their moments are made when they are first needed."""
        self.members = list(members)
        self.options = options
        self.places = [member.place for member in self.members]
        self.params = [member.param for member in self.members]
        self.labels = [member.label for member in self.members]
        self.axes = [member.axes for member in self.members]
        self.column_labels = MASTER_LABELS if options.master_weights else LABELS
        self.steps = np.zeros(len(self.members), dtype=np.int64)
        self.kept = self._make_kept()
        self._runs = _runs_of_groups(self.members)
        self.accumulated: Accumulated | None = None
        self._moments: Moments | None = None
        self._drafted: Moments | None = None  # what the table stands on; becomes the state with the first launch
        self._table: UpdateTable | None = None
        self._known: list[Hyperparameters] = []  # what the table was told last

    def last_step(self, group: ParamGroup) -> int:
        """Return how often the parameters of a group have been updated; those who missed steps do not count."""
        return max((int(self.steps[run.begin : run.end].max()) for run in self._runs if run.group is group), default=0)

    def is_ready(self) -> bool:
        """Say whether the table serves the current hyperparameters, after telling it what has changed."""
        current = [run.group.hyperparameters for run in self._runs]
        if current == self._known:
            return True
        if self._table is None or [h.amsgrad for h in current] != [h.amsgrad for h in self._known]:
            return False
        for index, hyperparameters in enumerate(current):
            self._table.set_hyperparameters(index, hyperparameters)
        self._known = current
        return True

    def draft(self) -> list[Sequence[Any]]:
        """Make what state is missing; return every array that a step writes: params and moments, in columns."""
        have = self._moments or self._zeros()
        needed = [member.group.hyperparameters.amsgrad for member in self.members]
        largest = [
            self._new([param], [format_], 3)[0] if need and array is None else array
            for need, array, param, format_ in zip(
                needed, have.max_exp_avg_sqs, self.params, self._formats(), strict=True
            )
        ]
        self._drafted = have._replace(max_exp_avg_sqs=largest)
        used = [array if need else None for need, array in zip(needed, largest, strict=True)]
        return [self.kept.computed, have.exp_avgs, have.exp_avg_sqs, used, self.kept.emas, self.kept.copies]

    def make_table(self, columns: Sequence[Sequence[Any]], extents: Extents) -> None:
        """Make the table over what `draft` returned; no gradient may share memory with `extents`."""
        self._known = [run.group.hyperparameters for run in self._runs]
        *moments, emas, copies_ = columns
        extras = Extras(
            emas,
            copies_,
            self.options.ema_decay or 0.0,
            self.options.rounding == "stochastic",
            self.options.seed,
            self.places,
        )
        self._table = UpdateTable(
            *moments,
            hyperparameters=self._known,
            groups=self._groups(),
            names=self.labels,
            extents=extents,
            labels=self.column_labels,
            extras=extras,
            axes=self.axes,
            owners=[member.owner for member in self.members],
        )

    def step(self, grads: Sequence[Any], scaling: Scaling) -> StepResult:
        """Make one step, or change nothing if a gradient does not fit or is found not to be finite."""
        if not self.is_ready():
            make_tables([self])
        count = self.prepare(grads, scaling)
        if scaling.zero_grad:
            check_apart([self], [count])
        if scaling.is_measured:
            return _launch_measured([self], [count], scaling)
        self.launch(count)
        return APPLIED

    def make_sums(self) -> Accumulated:
        """Return the sums that gradients are added to, made when they are first needed."""
        if self.accumulated is None:
            real = self.options.computed_in(format_number(self.params[0]))
            self.accumulated = Accumulated(self.params, real, self.axes)
        return self.accumulated

    def accumulate(self, count: int, grads: Sequence[Any]) -> None:
        """Add the gradients that `prepare` found to their sums."""
        assert self._table is not None
        sums = self.make_sums()
        self._table.accumulate(count, sums.addresses)
        sums.note(grads)

    def accumulate_anew(self, result: StepResult | None = None) -> None:
        """Begin to accumulate anew; `result` is that of a step with the sums, which sets them to zero if applied."""
        if self.accumulated is not None:
            self.accumulated.begin_anew(are_zero=result is not None and result.applied)

    def prepare(self, grads: Sequence[Any], scaling: Scaling) -> int:
        """Check the gradients and plan the step; return what `launch` takes."""
        assert self._table is not None
        return self._table.prepare(grads, self.steps, scaling)

    def prepare_again(self, scaling: Scaling) -> None:
        """Plan the step that `prepare` planned with another scaling."""
        assert self._table is not None
        self._table.prepare_again(self.steps, scaling)

    def extents_of_grads(self, count: int) -> tuple[Array, Array, list[str]]:
        """Return where each gradient that `prepare` found begins and ends, and what messages call it."""
        assert self._table is not None
        return self._table.extents_of_grads(count)

    def sum_of_squares(self, count: int) -> float:
        """Return the sum of squares of the gradients that `prepare` found."""
        assert self._table is not None
        return self._table.sum_of_squares(count)

    def look_again(self, count: int, scale: float) -> tuple[float, float]:
        """Return the sum of squares of the gradients, each multiplied by `scale`, and the largest magnitude of one."""
        assert self._table is not None
        return self._table.look_again(count, scale)

    @property
    def largest_gradient(self) -> float:
        """The limit from which on a gradient's square overflows the second moment."""
        assert self._table is not None
        return self._table.largest_gradient

    @property
    def dtype(self) -> str:
        """What is computed in: "float32" or "float64"."""
        assert self._table is not None
        return self._table.dtype

    def launch(self, count: int) -> None:
        """Make the step that `prepare` planned."""
        assert self._table is not None
        self._moments = self._drafted
        self._table.launch(count, self.steps)

    def follow(self, members: Sequence[Member]) -> None:
        """Take the same parameters in other memory, in the same order of axes; they have been checked.

        Their state stays.
        """
        self.members, self.params = list(members), [member.param for member in members]
        self.kept = self.kept.beside(self.params)
        self._table, self._known = None, []

    def state_of(self, position: int) -> dict[str, Any]:
        """Return one parameter's state, with PyTorch's keys, the arrays themselves; empty before its first step."""
        if self._moments is None or not self.steps[position]:
            return {}
        arrays = {
            "exp_avg": self._moments.exp_avgs[position],
            "exp_avg_sq": self._moments.exp_avg_sqs[position],
            "max_exp_avg_sq": self._moments.max_exp_avg_sqs[position],
            **self.kept.state_of(position),
        }
        state: dict[str, Any] = {"step": _shown(self.steps, position)}
        axes = self.axes[position]
        for name, array in arrays.items():
            if isinstance(array, EightBit):
                state[name], state[f"{name}_scale"] = as_given(array.codes, axes), array.scales
            elif array is not None:
                state[name] = as_given(array, axes)
        if axes is not None and isinstance(self._moments.exp_avg_sqs[position], EightBit):
            state["axes"] = np.array(axes, dtype=np.int64)  # in which the codes' blocks follow each other
        return state

    def check_whole(self, states: Sequence[dict[str, Any]]) -> None:
        """Refuse states from before another load: all is as it was then, but for the averages, which are kept in place.

        Raises:
            StateDictError: there is such a state.
        """
        averages = zip(states, self.kept.emas, self.labels, strict=True)
        for position, (state, ema, label) in enumerate(averages):
            if ema is None or not ema.size or "ema" not in state or state["ema"].ctypes.data != ema.ctypes.data:
                continue
            own = self._moments.exp_avgs[position] if self._moments else None
            if own is None or _address(own) != _address(state["exp_avg"]):
                raise StateDictError(
                    f"the state of params{label} was taken before another was loaded, and its 'ema' has changed since: "
                    "keep a state dict with copy.deepcopy(opt.state_dict())"
                )

    def set_states(self, states: Sequence[dict[str, Any]]) -> None:
        """Replace every parameter's state; the arrays are copied. An empty dict is the state before the first step."""
        states = [turned(*each) for each in zip(states, self.axes, strict=True)]
        triples = [copied(*each) for each in zip(states, self.params, self._formats(), strict=True)]
        self._moments = Moments(*(list(column) for column in zip(*triples, strict=True)))
        self.steps = np.array([state.get("step", 0) for state in states], dtype=np.int64)
        self.kept.set_states(states)
        self._table, self._known = None, []

    def _formats(self) -> list[str]:
        """Return the format of each parameter's moments."""
        return [self.options.state_format(format_number(param)) for param in self.params]

    def _zeros(self) -> Moments:
        """Return the state before the first step."""
        formats = self._formats()
        first, second = (self._new(self.params, formats, moment) for moment in (1, 2))
        return Moments(first, second, [None] * len(self.params))

    def _new(self, params: Sequence[Any], formats: Sequence[str], moment: int) -> list[Any]:
        """Return a moment for each of some parameters, zero everywhere; arguments as for `moments.zeros`."""
        return zeros(params, formats, moment)

    def _make_kept(self) -> Kept:
        """Return what is kept beside the moments, as it is to begin with."""
        return Kept(self.params, self.options)

    def _groups(self) -> list[int]:
        """Return the number of each parameter's run of neighbours in one group."""
        return [index for index, run in enumerate(self._runs) for _ in range(run.begin, run.end)]


def _shown(steps: Array, position: int) -> Array:
    """Return one of the numbers as it will be at any time, for reading."""
    step: Array = steps[position : position + 1].reshape(())
    step.flags.writeable = False
    return step


def _address(moment: Array | EightBit) -> int:
    return int((moment.codes if isinstance(moment, EightBit) else moment).ctypes.data)


class MixedParts:
    """The parts of an optimizer with more than one dtype: all of them make a step, or none."""

    def __init__(self, parts: Sequence[Part]) -> None:
        """Take the parts."""
        self._parts = parts

    def step(self, grads: Sequence[Any], scaling: Scaling) -> StepResult:
        """Make one step, or change nothing, as `Part.step`; `grads` are those of all parameters."""
        if not all(part.is_ready() for part in self._parts):
            make_tables(self._parts)
        counts = [part.prepare([grads[place] for place in part.places], scaling) for part in self._parts]
        if scaling.zero_grad:
            check_apart(self._parts, counts)
        if scaling.is_measured:
            return _launch_measured(self._parts, counts, scaling)
        for part, count in zip(self._parts, counts, strict=True):
            part.launch(count)
        return APPLIED


def accumulate(parts: Sequence[Part], grads: Sequence[Any]) -> None:
    """Add gradients, those of all parameters, to their sums, or change nothing if one does not fit."""
    if not all(part.is_ready() for part in parts):
        make_tables(parts)
    shares = [[grads[place] for place in part.places] for part in parts]
    counts = [part.prepare(share, AS_THEY_ARE) for part, share in zip(parts, shares, strict=True)]
    for part in parts:
        part.make_sums()  # before anything is added: there may be no memory for them
    for part, count, share in zip(parts, counts, shares, strict=True):
        part.accumulate(count, share)


def check_apart(parts: Sequence[Part], counts: Sequence[int]) -> None:
    """Refuse gradients that share memory: where one is set to zero, the other one's parameter would find zeros."""
    begins, ends, names = zip(
        *(part.extents_of_grads(count) for part, count in zip(parts, counts, strict=True)), strict=True
    )
    in_memory(np.concatenate(begins), np.concatenate(ends), [name for several in names for name in several])


def _launch_measured(parts: Sequence[Part], counts: Sequence[int], scaling: Scaling) -> StepResult:
    """Make the step that the parts have prepared, its global norm clipped, unless a gradient is not to be taken."""
    pairs = list(zip(parts, counts, strict=True))
    sums = [part.sum_of_squares(count) for part, count in pairs]
    scale = scale_of_squares(sum(sums)) if any(part.dtype == "float64" for part in parts) else PLAIN_SQUARES
    if scale != PLAIN_SQUARES:
        sums = [_scaled_sum(part, count, each, scale) for (part, count), each in zip(pairs, sums, strict=True)]
    norm, factor = measure(np.array(sums), scaling.factor, scaling.max_norm, scale)
    if not all(map(math.isfinite, sums)) or _overflows(pairs, scaling, factor, min(norm, scaling.max_norm)):
        return StepResult(applied=False, grad_norm=norm)
    for part, count in pairs:
        if factor != scaling.factor:
            part.prepare_again(scaling._replace(factor=factor))
        part.launch(count)
    return StepResult(applied=True, grad_norm=norm)


def _scaled_sum(part: Part, count: int, plain: float, scale: float) -> float:
    """Return the sum of squares of a part's gradients, multiplied by `scale`; no float32 needs to be squared again."""
    return part.look_again(count, scale)[0] if part.dtype == "float64" else plain * scale * scale


def _overflows(pairs: Sequence[tuple[Part, int]], scaling: Scaling, factor: float, reach: float) -> bool:
    """Say whether the square of a gradient that is multiplied by `factor` overflows its second moment.

    Where `reach`, which no gradient goes beyond, is far from that, nothing needs to be read again.
    """
    return any(
        2.0 * reach >= part.largest_gradient
        and is_too_large(part.look_again(count, PLAIN_SQUARES)[1], factor, scaling.clip_value, part.largest_gradient)
        for part, count in pairs
    )


def make_tables(parts: Sequence[Part]) -> None:
    """Make what the parts' steps stand on; no gradient may share memory with any array that any of them writes."""
    drafts = [part.draft() for part in parts]
    pairs = [written(columns, part.labels, part.column_labels) for part, columns in zip(parts, drafts, strict=True)]
    extents = Extents(
        [array for arrays, _ in pairs for array in arrays], [name for _, names in pairs for name in names]
    )
    for part, columns in zip(parts, drafts, strict=True):
        part.make_table(columns, extents)


class _Run(NamedTuple):
    """Neighbouring members of one group."""

    group: ParamGroup
    begin: int
    end: int


def _runs_of_groups(members: Sequence[Member]) -> list[_Run]:
    starts = [k for k, member in enumerate(members) if k == 0 or member.group is not members[k - 1].group]
    return [
        _Run(members[begin].group, begin, end) for begin, end in zip(starts, [*starts[1:], len(members)], strict=True)
    ]
