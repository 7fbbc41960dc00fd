"""Arrays on one GPU that are updated together, where they lie, on the caller's stream. The one caller of the kernels.

A step is queued and nobody waits: addresses and settings go to the GPU only when they have changed, step numbers live
there, and there it is decided whether a step with a gradient that is not finite is left out. So a step whose gradients
lie where they lay before can be captured in a CUDA graph, and every replay counts as a step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from numba_adam.cuda import seam
from numba_adam.cuda.accumulator import Additions
from numba_adam.cuda.arrays import CudaArray, borrow_cuda, quick_layout
from numba_adam.cuda.batches import Batch, Work, batches, launch, queue
from numba_adam.cuda.columns import CudaColumns
from numba_adam.cuda.kernels import fold, update
from numba_adam.cuda.kernels.formats import STOCHASTIC
from numba_adam.cuda.kernels.layout import CONSTANTS, KEYS, Addresses, Layout
from numba_adam.cuda.kernels.norm import LARGEST, SUM
from numba_adam.cuda.memory import Array, Buffer, buffer_of, on
from numba_adam.cuda.outcomes import Records
from numba_adam.cuda.squares import Squares
from numba_adam.errors import DtypeError, LayoutError, ShapeError, UnsupportedArrayError
from numba_adam.interop.arrays import Extents
from numba_adam.interop.axes import Axes, in_memory_order
from numba_adam.numerics.formats import Format
from numba_adam.numerics.norm import LARGEST_GRADIENT, PLAIN_SQUARES
from numba_adam.numerics.random_numbers import stream_key
from numba_adam.settings.folding import settings
from numba_adam.settings.hyperparameters import Hyperparameters
from numba_adam.settings.results import APPLIED, StepResult
from numba_adam.settings.scaling import AS_THEY_ARE, Scaling
from numba_adam.settings.step_arrays import LABELS, NO_EXTRAS, Extras

_GRAD = Addresses._fields.index("grad")
_ROUNDED_AT_RANDOM = (
    "param",
    "exp_avg",
    "exp_avg_sq",
    "max_exp_avg_sq",
)  # where they are bfloat16, and it is asked for


class Plan(NamedTuple):
    """A step whose gradients were validated. Addresses and numbers are on the GPU already, until the next plan."""

    given: Sequence[Any]  # the gradients
    layouts: Sequence[object]  # how each lay, from `quick_layout`, for the next plan to compare
    borrowed: Sequence[CudaArray | None]  # the gradients' memory
    loss_scale: int = 0  # the address of one float32 that divides every gradient as well; 0: none
    zero_grad: bool = False  # whether the step sets the gradients to zero

    @property
    def formats(self) -> tuple[str, ...]:
        """The format of each gradient; "" without one."""
        return tuple("" if view is None else view.format.label for view in self.borrowed)


class CudaTable:
    """Parameters and their moments on one GPU, ready to be updated. One thread at a time may use a table.

    The table keeps references to its arrays. What cannot be seen from outside is that their owner gives them other
    memory: make another table then.
    """

    def __init__(
        self,
        params: Sequence[Any],
        exp_avgs: Sequence[Any],
        exp_avg_sqs: Sequence[Any],
        max_exp_avg_sqs: Sequence[Any] | None = None,
        *,
        hyperparameters: Sequence[Hyperparameters],
        groups: Sequence[int] | None = None,
        names: Sequence[str] | None = None,
        extents: Extents | None = None,
        labels: Sequence[str] = LABELS,
        extras: Extras = NO_EXTRAS,
        steps: Sequence[int] | None = None,
        contract: bool = False,
        caller: Any = None,
        axes: Sequence[Axes | None] | None = None,
    ) -> None:
        """Check the arrays, and tell the GPU where they lie.

        Args:
            params: C-contiguous writable arrays on one GPU: anything that `borrow_cuda` takes. Computed in float64
                where they or their moments are float64, which then all must be; in float32 else.
            exp_avgs: first moments, one for each parameter, of its shape; or an EightBit of CudaArrays.
            exp_avg_sqs: second moments, likewise.
            max_exp_avg_sqs: largest second moments (AMSGrad), None for parameters without; None: none has one.
            hyperparameters: those of each group.
            groups: the group of each parameter. Default: all are of group 0.
            names: what error messages call the parameters. Default: their indices.
            extents: all memory that no gradient may share. Default: that of these arrays, which must be separate.
            labels: what error messages call each kind of array, before its name.
            extras: optional work fused into the pass, and how it rounds.
            steps: updates made so far. Default: none.
            caller: the array of the caller's that says which stream is current. Default: the first parameter.
            axes: for each parameter the order in memory of the axes that its gradient has, where these arrays are the
                caller's with the axes in that order; None: C order. Default: None for all.
            contract: let the compiler fuse multiplications with additions; the bits are then not the CPU's.
                For `make gpu`, which measures what strict rounding costs.

        Raises:
            ArrayError: an array does not fit; the message names it.
            CudaUnavailableError: there is no GPU.
        """
        seam.require_gpu()
        count = len(params)
        given = params, exp_avgs, exp_avg_sqs, max_exp_avg_sqs, extras.emas, extras.copies
        self._columns = CudaColumns(given, names, labels, axes)
        self._caller = params[0] if caller is None else caller
        self._extras, self._contract = extras, contract
        self.dtype, self.device, self.stream = self._columns.dtype, self._columns.device, self._stream_now()
        self._extents = extents or Extents(*self._columns.written())
        rows = [settings(entry, self._columns.range, extras.ema_decay) for entry in hyperparameters]
        self._settings_now = np.array(rows)
        indices = range(count) if extras.numbers is None else extras.numbers
        self._make_buffers(list(groups or [0] * count), list(steps or [0] * count), list(indices))
        none = [None] * count
        self._last_plan = Plan(none, none, none)
        self._batches: dict[tuple[bool, tuple[str, ...]], list[Batch]] = {}
        self._squares: Squares | None = None
        self._additions: Additions | None = None
        self._treatment_now: tuple[float, ...] = ()

    def set_hyperparameters(self, group: int, hyperparameters: Hyperparameters) -> None:
        """Let a group's next steps use other hyperparameters; `amsgrad` must stay what it is."""
        row = settings(hyperparameters, self._columns.range, self._extras.ema_decay)
        if tuple(self._settings_now[group]) != tuple(row):
            self._settings_now[group] = row
            self._settings.upload(self._settings_now, self.stream)

    def step(self, grads: Sequence[Any], scaling: Scaling = AS_THEY_ARE) -> StepResult:
        """Queue one step; nothing is changed if a gradient does not fit. Arguments as for `plan`."""
        return self.launch(self.plan(grads, scaling), measure=scaling.is_measured)

    def plan(self, grads: Sequence[Any], scaling: Scaling = AS_THEY_ARE) -> Plan:
        """Validate the gradients, and plan a step with them.

        Args:
            grads: one gradient for each parameter, of its shape, on its GPU; None leaves that parameter out.
            scaling: the treatment of the gradients; its loss scale is a float32 scalar on the GPU.

        Raises:
            ArrayError: a gradient does not fit; the message names it.
        """
        layouts, writable = [quick_layout(grad) for grad in grads], scaling.zero_grad
        views = [self._view_of(index, grad, layouts[index], writable=writable) for index, grad in enumerate(grads)]
        loss_scale = self._scalar(scaling.loss_scale, "loss_scale")
        self.stream = self._stream_now()
        addresses = np.array([0 if view is None else view.address or 1 for view in views], dtype=np.int64)
        if not np.array_equal(addresses, self._table[_GRAD]):
            self._table[_GRAD] = addresses
            self._addresses.upload(self._table, self.stream)
        self._last_plan = Plan(list(grads), layouts, views, loss_scale, scaling.zero_grad)
        return self.replan(self._last_plan, scaling)

    def replan(self, plan: Plan, scaling: Scaling) -> Plan:
        """Return the plan of the same step with another scaling."""
        treatment = (scaling.factor, scaling.clip_value, scaling.max_norm, self.largest_gradient)
        if treatment != self._treatment_now:
            self._treatment_now = treatment
            self._treatment.upload(np.array(treatment), self.stream)
        return plan

    def sum_of_squares(self, plan: Plan) -> float:
        """Return the sum of squares of the plan's gradients; waits for it."""
        with on(self.device):
            totals = self._sum(plan, again=False)
        return float(totals.download(self.stream)[SUM])

    def look_again(self, plan: Plan, scale: float) -> tuple[float, float]:
        """Return what the last `sum_of_squares` had, each gradient multiplied by `scale`, and the largest magnitude."""
        assert self._squares is not None
        if scale != PLAIN_SQUARES:
            with on(self.device):
                self._squares.sum_scaled(scale, self._grads(), self._lengths.address, _read_as(plan), self.stream)
        totals = self._squares.totals.download(self.stream)
        return float(totals[SUM]), float(totals[LARGEST])

    @property
    def largest_gradient(self) -> float:
        """The limit from which on a gradient's square overflows the second moment."""
        return LARGEST_GRADIENT[self._columns.range]

    def accumulate(self, plan: Plan, sums: Sequence[CudaArray]) -> None:
        """Queue the addition of the plan's gradients to sums; no step is made with them.

        Args:
            plan: from `plan`.
            sums: one for each parameter, of its shape and of the compute dtype.
        """
        with on(self.device):
            if self._additions is None:
                self._additions = Additions(self._work(), self.dtype, self.stream)
            self._additions.add(sums, self._table[_GRAD], plan.formats, self.stream)

    def launch(self, plan: Plan, *, measure: bool = False) -> StepResult:
        """Queue the planned step. It may be queued again, by a CUDA graph for instance, as long as no other is planned.

        Args:
            plan: from `plan`.
            measure: read the gradients first, on the GPU: clip their norm, and leave the step out if one is not finite.

        Returns:
            what it did; reading that waits only where it is decided on the GPU.
        """
        pending = self._records.next(self.stream, has_norm=measure)
        with on(self.device):
            self._fold(plan, self._sum(plan, again=True).address if measure else 0)
            for batch in self._batches_of(plan):
                launch(update.kernels(batch.layout), batch, self._work(), self.stream)
        return pending if measure else APPLIED

    def extents_of_grads(self, plan: Plan) -> tuple[Array, Array, list[str]]:
        """Return the addresses at which the plan's gradients begin and end, and what error messages call them."""
        names = self._columns.names
        found = [(view, name) for view, name in zip(plan.borrowed, names, strict=True) if view is not None]
        begins = np.array([view.address for view, _ in found], dtype=np.uint64)
        sizes = np.array([view.nbytes for view, _ in found], dtype=np.uint64)
        return begins, begins + sizes, [f"{self._columns.labels[6]}{name}" for _, name in found]

    @property
    def steps(self) -> Array:
        """Updates made so far, (parameters,) int64; reading waits for the GPU."""
        return self._steps.download(self.stream)

    @steps.setter
    def steps(self, steps: Sequence[int]) -> None:
        self._steps.upload(np.array(steps, dtype=np.int64), self.stream)

    def _stream_now(self) -> int:
        """Return the stream that the caller works on."""
        return borrow_cuda(self._caller, name="params", any_order=True).stream

    def _make_buffers(self, groups: list[int], steps: list[int], indices: list[int]) -> None:
        """Take the memory that the kernels need beside the arrays."""
        count, device, stream = len(groups), self.device, self.stream
        self._table, self._sizes = self._columns.addresses(), self._columns.lengths

        def integers(values: Any) -> Buffer:
            return buffer_of(np.array(values, dtype=np.int64), device, stream)

        self._addresses, self._lengths = integers(self._table), integers(self._sizes)
        self._groups, self._steps, self._numbers = integers(groups), integers(steps), integers(indices)
        self._settings = buffer_of(self._settings_now, device, stream)
        self._constants = Buffer((count, CONSTANTS), self.dtype, device)
        self._keys = Buffer((count, KEYS), "uint32", device)
        self._dithers = self._make_dithers(indices) if self._columns.is_eight_bit else None
        self._treatment = Buffer(fold.TREATMENT, "float64", device)
        self._records = Records(device)

    def _make_dithers(self, indices: list[int]) -> Buffer:
        """Return the dithers of moments in 8 bits before the first step: they turn from there."""
        numbers: Any = np.array(indices, dtype=np.uint64)
        keys = [stream_key(self._extras.seed, 0, numbers, column) for column in fold.DITHERED]
        return buffer_of(np.stack(keys, axis=1), self.device, self.stream)

    def _view_of(self, index: int, grad: Any, layout: object, *, writable: bool) -> CudaArray | None:
        """Borrow a gradient, and validate it. The last step's gradient in the same memory is already validated."""
        if grad is None:
            return None
        last = self._last_plan
        if not writable and grad is last.given[index] and layout is not None and layout == last.layouts[index]:
            return last.borrowed[index]
        columns, shape = self._columns, self._columns.shapes[index]
        name, param = columns.grad_name(index), columns.param_name(index)
        view = borrow_cuda(grad, name=name, writable=writable, any_order=True)
        if view.shape != shape:
            raise ShapeError(f"{name} has shape {view.shape}: it must have the shape of {param}, {shape}")
        if not in_memory_order(view, columns.axes[index]).flags.c_contiguous:
            raise LayoutError(
                f"{name} has strides {view.strides}: on a GPU it must have its axes in memory in the order of "
                f"{param}; copy it into an array made like that: empty_like(param)"
            )
        if view.format == Format.FLOAT64 and self.dtype != "float64":
            raise DtypeError(
                f"{name} has dtype float64: it must be float32, bfloat16 or float16, since float32 is computed in; "
                "convert it with .astype(numpy.float32)"
            )
        if view.device != self.device:
            raise UnsupportedArrayError(f"{name} is on GPU {view.device}, expected GPU {self.device}; copy it there")
        self._extents.check_apart(view, name)  # type: ignore[arg-type]
        return view

    def _scalar(self, array: Any, name: str) -> int:
        """Return the address of a scalar on the GPU, 0 for None."""
        if array is None:
            return 0
        view = borrow_cuda(array, name=name)
        if view.size != 1 or view.format != Format.FLOAT32:
            raise ShapeError(f"{name} has shape {view.shape} and dtype {view.format.label}: it must be one float32")
        return view.address

    def _batches_of(self, plan: Plan) -> list[Batch]:
        """Return the launches of a plan."""
        formats = plan.formats
        key = (plan.zero_grad, formats)
        if key not in self._batches:
            layouts = [
                self._layout_of(row, number, plan.zero_grad) if number else None for row, number in enumerate(formats)
            ]
            self._batches[key] = batches(layouts, self._sizes, self.device, self.stream)
        return self._batches[key]

    def _layout_of(self, row: int, grad: str, zero_grad: bool) -> Layout:
        """Return what a row's kernel is compiled for."""
        columns = {**self._columns.rows[row], "grad": grad}
        if self._extras.is_stochastic:
            columns |= {name: STOCHASTIC for name in _ROUNDED_AT_RANDOM if columns.get(name) == "bfloat16"}
        return Layout(**columns, zero_grad=zero_grad, contract=self._contract)

    def _work(self) -> Work:
        """Return what an update works on."""
        skip = self._records.address
        return Work(self._table, self._addresses, self._sizes, self._lengths, self._constants, self._keys, skip)

    def _grads(self) -> int:
        """Return where the gradients' addresses lie on the GPU."""
        return self._addresses.address + 8 * _GRAD * len(self._sizes)

    def _sum(self, plan: Plan, *, again: bool) -> Buffer:
        """Queue the sum of squares of all gradients; return where norm.TOTALS are going to lie. See `Squares.sum`."""
        if self._squares is None:
            self._squares = Squares(self._sizes, self.device, self.stream, has_doubles=self.dtype == "float64")
        self._squares.sum(self._grads(), self._lengths.address, _read_as(plan), self.stream, again=again)
        return self._squares.totals

    def _fold(self, plan: Plan, totals: int) -> None:
        """Queue the folding of the step's constants; `totals` is where the sum of squares lies, 0 without one."""
        count = len(self._sizes)
        step = fold.Step(
            settings=self._settings.address,
            groups=self._groups.address,
            steps=self._steps.address,
            grads=self._grads(),
            constants=self._constants.address,
            keys=self._keys.address,
            treatment=self._treatment.address,
            totals=totals,
            loss_scale=plan.loss_scale,
            record=self._records.address,
            indices=self._numbers.address,
            is_stochastic=int(self._extras.is_stochastic),
            dithers=0 if self._dithers is None else self._dithers.address,
        )
        threads = min(128, count)
        arguments = (tuple(step), count, self._extras.seed)
        queue(fold.kernel(self.dtype), math.ceil(count / threads), threads, self.device, self.stream, *arguments)


def _read_as(plan: Plan) -> list[str]:
    """Return the formats that gradients are read as; any for those that are not there."""
    return [number or "float32" for number in plan.formats]
