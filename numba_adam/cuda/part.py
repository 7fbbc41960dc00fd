"""The parameters of an optimizer that lie on one GPU and are computed in one precision, their state, and their step.

It stands beside the CPU's `Part` and has its face, with the state on the GPU. What it says of the state is copied
to NumPy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import replace
from typing import Any

import numpy as np

from numba_adam.cpu.copies import Kept, following
from numba_adam.cpu.moments import Moments
from numba_adam.cpu.part import Member, Part, StepResult, check_apart, make_tables
from numba_adam.cuda import seam
from numba_adam.cuda.accumulator import CudaAccumulated
from numba_adam.cuda.arrays import CudaArray
from numba_adam.cuda.memory import Array, download, upload, uploaded, zero_moment
from numba_adam.cuda.outcomes import PendingResult
from numba_adam.cuda.table import CudaTable
from numba_adam.interop.arrays import Extents
from numba_adam.numerics.formats import BFLOAT16, NAMES, dtype_of
from numba_adam.settings.options import Options
from numba_adam.settings.scaling import AS_THEY_ARE, Scaling


class CudaPart(Part):
    """Parameters on one GPU. A step is queued on the caller's stream, and nobody waits for it.

    Waiting is asked for by who reads: the state, a judged step's result, the norm over several parts; and by a learning
    rate that is a function of the step, after steps that may have been left out.
    """

    _table: CudaTable | None  # type: ignore[assignment]

    def __init__(self, members: Sequence[Member], options: Options) -> None:
        """Take the parameters; they have been checked.

        Raises:
            CudaUnavailableError: there is no GPU that can be used.
        """
        seam.require_gpu()
        self._counts, self._is_counted = np.zeros(len(members), dtype=np.int64), True
        self._has_grad = np.zeros(len(members), dtype=bool)
        super().__init__(members, options)

    @property
    def steps(self) -> Array:
        """Updates made so far; waits where it is not known here."""
        if not self._is_counted:
            assert self._table is not None
            self._counts, self._is_counted = self._table.steps, True
        return self._counts

    @steps.setter
    def steps(self, steps: Array) -> None:
        self._counts, self._is_counted = steps, True

    def make_table(self, columns: Sequence[Sequence[Any]], extents: Extents) -> None:
        """Make the table over what `draft` returned; no gradient may share memory with `extents`."""
        params, exp_avgs, exp_avg_sqs, largest, emas, copies = columns
        steps, self._known = self.steps, [run.group.hyperparameters for run in self._runs]
        self._table = CudaTable(
            params,
            exp_avgs,
            exp_avg_sqs,
            largest,
            hyperparameters=self._known,
            groups=self._groups(),
            names=self.labels,
            extents=extents,
            labels=self.column_labels,
            emas=emas,
            ema_decay=self.options.ema_decay or 0.0,
            copies=copies,
            steps=list(steps),
            places=self.places,
            rounding=self.options.rounding,
            seed=self.options.seed,
            caller=self.members[0].given,
            axes=self.axes,
        )

    def step(self, grads: Sequence[Any], scaling: Scaling) -> StepResult:
        """Queue one step, or change nothing if a gradient does not fit."""
        if not self.is_ready():
            make_tables([self])
        count = self.prepare(grads, scaling)
        if scaling.zero_grad:
            check_apart([self], [count])
        return self._launch(measure=scaling.is_measured)

    def make_sums(self) -> CudaAccumulated:
        """Return the sums that gradients are added to, made when they are first needed."""
        if self.accumulated is None:
            real = self.options.computed_in(_format(self.params[0]))
            self.accumulated = CudaAccumulated(self.params, real, self.axes)
        assert isinstance(self.accumulated, CudaAccumulated)
        return self.accumulated

    def accumulate(self, count: int, grads: Sequence[Any]) -> None:  # noqa: ARG002
        """Queue the addition of the gradients that `prepare` found to their sums."""
        assert self._table is not None
        sums = self.make_sums()
        self._table.accumulate(sums.on(self._table.stream))
        sums.note(grads)

    def accumulate_anew(self, result: StepResult | None = None) -> None:
        """Begin to accumulate anew, as `Part.accumulate_anew`; a result that the GPU only knows is not waited for."""
        if self.accumulated is not None and self._table is not None:
            self.make_sums().on(self._table.stream)
        super().accumulate_anew(None if isinstance(result, PendingResult) else result)

    def prepare(self, grads: Sequence[Any], scaling: Scaling = AS_THEY_ARE) -> int:
        """Check the gradients and plan the step; return how many there are."""
        assert self._table is not None
        count = self._table.prepare(grads, scaling, loss_scale=scaling.loss_scale, zero_grad=scaling.zero_grad)
        self._has_grad = np.array([grad is not None for grad in grads])
        return count

    def prepare_again(self, scaling: Scaling) -> None:
        """Plan the step that `prepare` planned with another scaling."""
        assert self._table is not None
        self._table.prepare_again(scaling)

    def extents_of_grads(self, count: int) -> tuple[Array, Array, list[str]]:  # noqa: ARG002
        """Return where each gradient that `prepare` found begins and ends, and what messages call it."""
        assert self._table is not None
        return self._table.extents_of_grads()

    def sum_of_squares(self, count: int) -> float:  # noqa: ARG002
        """Return the sum of squares of the gradients that `prepare` found; waits for it."""
        assert self._table is not None
        return self._table.sum_of_squares()

    def look_again(self, count: int, scale: float) -> tuple[float, float]:  # noqa: ARG002
        """Return the sum of squares of the gradients, each multiplied by `scale`, and the largest; waits for it."""
        assert self._table is not None
        return self._table.look_again(scale)

    def launch(self, count: int) -> None:  # noqa: ARG002
        """Queue the step that `prepare` planned."""
        self._launch(measure=False)

    def follow(self, members: Sequence[Member]) -> None:
        """Take the same parameters in other memory of their GPU; they have been checked. Their state stays."""
        self.steps = self.steps  # the table that counts them goes
        super().follow(members)

    def state_of(self, position: int) -> dict[str, Any]:
        """Return one parameter's state, with PyTorch's keys, as NumPy arrays; empty before its first step. Waits."""
        state = super().state_of(position)
        return {
            key: self._shown(value) if isinstance(value, CudaArray) else value.copy() for key, value in state.items()
        }

    def set_states(self, states: Sequence[dict[str, Any]]) -> None:
        """Replace every parameter's state; the arrays are copied. An empty dict is the state before the first step."""
        super().set_states(states)
        assert self._moments is not None
        self._moments = Moments(*(_uploaded(column, self.params) for column in self._moments))

    def _launch(self, *, measure: bool) -> StepResult:
        assert self._table is not None
        self._moments = self._drafted
        result = self._table.launch(measure=measure)
        if self._table.is_judged:
            self._is_counted = False
        elif self._is_counted:
            self._counts = self._counts + self._has_grad
        assert isinstance(self.kept, CudaKept)
        self.kept.on(self._table.stream)
        return result

    def _shown(self, array: Any) -> Array:
        """Return a copy of an array of ours in this host's memory, once all steps are done."""
        stream = array.stream if self._table is None else self._table.stream
        values = download(replace(array, stream=stream))
        return values.view(dtype_of(BFLOAT16)) if array.format == "bfloat16" else values

    def _make_kept(self) -> Kept:
        return CudaKept(self.params, self.options)

    def _new(self, params: Sequence[Any], formats: Sequence[str], moment: int) -> list[Any]:  # noqa: ARG002
        """Return a moment for each parameter, zero everywhere."""
        return [zero_moment(param, name) for param, name in zip(params, formats, strict=True)]


class CudaKept(Kept):
    """What is kept for parameters on a GPU, there; made and loaded by way of this host's memory."""

    def __init__(self, params: Sequence[Any], options: Options) -> None:
        """Make the arrays, from the parameters as they are."""
        has_any = options.master_weights or options.ema_decay is not None or options.low_precision_copy is not None
        super().__init__([download(param) for param in params] if has_any else params, options)
        self._params, self._stream = list(params), -1
        self._place(self)

    def beside(self, params: Sequence[Any]) -> Kept:
        """Return what is kept for the same parameters in other memory, as `Kept.beside`."""
        other, masters = copy(self), zip(list[Any](self.masters), params, strict=True)
        other._params = list(params)
        other.masters = [
            None if master is None else uploaded(following(download(master), download(param)), param)
            for master, param in masters
        ]
        return other

    def set_states(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Take over what state dicts say, as `Kept.set_states`: the arrays stay the same ones."""
        host = Kept([download(param) for param in list[Any](self._params)], self._options)
        host.set_states(states)
        pairs: Any = ((self.masters, host.masters), (self.emas, host.emas), (self.own_copies, host.own_copies))
        for own, new in pairs:
            for array, values in zip(own, new, strict=True):
                if array is not None:
                    upload(array, values)

    def on(self, stream: int) -> None:
        """Note the stream on which the arrays are written: who borrows them waits for that."""
        if stream == self._stream:
            return
        self._stream, kept = stream, list[Any]((self.masters, self.emas, self.own_copies))
        for arrays in kept:
            arrays[:] = [None if array is None else replace(array, stream=stream) for array in arrays]

    def _place(self, host: Kept) -> None:
        """Take copies of another's arrays, on the GPU."""
        self._stream = -1
        self.masters, self.emas, self.own_copies = (
            _uploaded(arrays, self._params) for arrays in (host.masters, host.emas, host.own_copies)
        )


def cuda_parts(members: Sequence[Member], options: Options) -> list[Part]:
    """Divide parameters on GPUs by GPU and precision: one part for each."""
    found: dict[tuple[int, str], list[Member]] = {}
    for member in members:
        found.setdefault((member.param.device, options.computed_in(_format(member.param))), []).append(member)
    return [CudaPart(group, options) for group in found.values()]


def _uploaded(arrays: Sequence[Any], params: Sequence[Any]) -> list[Any]:
    """Return a copy of each array beside its parameter; None stays None."""
    pairs = zip(arrays, params, strict=True)
    return [None if array is None else uploaded(array, param) for array, param in pairs]


def _format(array: CudaArray) -> int:
    return NAMES.index(array.format)
