"""Arrays that one kernel launch updates together, in place. The only caller of the update kernels.

The optimizer classes, `adam_update` and the parameter server all use `UpdateTable`.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from numba_adam.cpu.columns import HostColumns, address
from numba_adam.cpu.kernels import accumulate, mixed_formats, norm, staged, staged_formats, threads, update
from numba_adam.cpu.kernels.gather import kinds, usable
from numba_adam.cpu.kernels.launch_plan import (
    BARE,
    IS_STOCHASTIC,
    KERNEL,
    OPTIONS,
    OWNER,
    PLAIN,
    SEED,
    ZERO_GRAD,
    LaunchPlan,
    empty_step,
    pack,
)
from numba_adam.cpu.kernels.prepare import prepare, prepare_gathered
from numba_adam.interop import borrow
from numba_adam.interop.arrays import Extents, Watched, check_shape, check_unchanged, watched
from numba_adam.interop.axes import Axes, as_given, in_memory_order
from numba_adam.interop.lookalikes import Lookalikes
from numba_adam.numerics.array import Array
from numba_adam.numerics.eight_bit import EightBit
from numba_adam.numerics.formats import Format
from numba_adam.settings.folding import settings
from numba_adam.settings.hyperparameters import Hyperparameters
from numba_adam.settings.scaling import AS_THEY_ARE, Scaling
from numba_adam.settings.step_arrays import LABELS, NO_EXTRAS, Extras, array_format

_FLOAT64_BYTES = 8
_ITEM_BYTES = np.array([format_.item_bytes for format_ in Format], dtype=np.int64)


class Plan(NamedTuple):
    """A step whose gradients were validated. What the kernels need is in the table's launch plan, until the next."""

    grad_count: int  # how many parameters have a gradient
    borrowed: Sequence[Any] = ()  # gradients or views whose memory some frameworks lend only as long as these live
    copied: Sequence[Array] = ()  # gradients whose copies the step reads: `launch` sets these to zero


class UpdateTable:
    """Parameters and their moments, ready for steps. One thread at a time may use a table.

    The table keeps references to its arrays, and weak references that pin their memory: NumPy does not resize an array
    that has a weak reference, not even with `refcheck=False`.
    """

    def __init__(
        self,
        params: Sequence[Array],
        exp_avgs: Sequence[Array | EightBit],
        exp_avg_sqs: Sequence[Array | EightBit],
        max_exp_avg_sqs: Sequence[Array | EightBit | None] | None = None,
        *,
        hyperparameters: Sequence[Hyperparameters],
        groups: Sequence[int] | None = None,
        names: Sequence[str] | None = None,
        extents: Extents | None = None,
        labels: Sequence[str] = LABELS,
        extras: Extras = NO_EXTRAS,
        axes: Sequence[Axes | None] | None = None,
        owners: Sequence[Watched | None] | None = None,
        given: Sequence[object] = (),
        lent: Sequence[Array] = (),
    ) -> None:
        """Validate the arrays and note their addresses.

        Args:
            params: C-contiguous writable arrays of any shapes, float32, float64, bfloat16 or float16.
            exp_avgs: first moments, one for each parameter, of its shape: float32, float64, bfloat16 or in 8 bits.
            exp_avg_sqs: second moments, likewise.
            max_exp_avg_sqs: largest second moments (AMSGrad), None for parameters without; None: none has one.
            hyperparameters: those of each group.
            groups: the group of each parameter. Default: all are of group 0.
            names: what error messages call the parameters. Default: their indices.
            extents: all memory that no gradient may share. Default: that of these arrays, which must be separate.
            labels: what error messages call each kind of array, before its name.
            extras: optional work fused into the pass, and how it rounds.
            axes: for each parameter the order in memory of the axes of the caller's array, of which the array here is a
                view in C order; its gradients have the caller's order. None: C order. Default: None for all.
            owners: for each parameter the caller's array object, whose attributes must not change. Default: the
                parameters.
            given: the parameters as the caller gave them. Gradients of their kind and layout are borrowed all at once.
            lent: views of their memory. With master weights these are not `params`.

        Raises:
            ArrayError: an array does not fit; the message names it.
        """
        arrays_of_step = params, exp_avgs, exp_avg_sqs, max_exp_avg_sqs, extras.emas, extras.copies
        self._columns = columns = HostColumns(arrays_of_step, names, labels, axes)
        self._count, self.dtype = len(params), columns.dtype
        self._ema_decay = extras.ema_decay
        arrays, called = columns.written()
        self._extents = extents or Extents(arrays, called)
        self._lookalikes = Lookalikes(given, lent, self._extents) if given else None
        self._owners = self._watched(0) if owners is None else list(owners)
        self._copies = self._watched(5)
        pinned = [owner.array for owner in self._owners if owner is not None]
        self._pins = [weakref.ref(array) for array in (*arrays, *pinned)]
        self._lent_formats = np.array([array_format(array) for array in lent], np.int64)
        self._launch_plan = self._make_launch_plan(hyperparameters, groups or [0] * self._count, extras)
        self._packed = pack(self._launch_plan)
        self._plan_of_all = Plan(self._count)  # of a step in which every parameter has a gradient, as nearly always

    def set_hyperparameters(self, group: int, hyperparameters: Hyperparameters) -> None:
        """Let a group's next steps use other hyperparameters; `amsgrad` must stay what it is."""
        self._launch_plan.settings[group] = settings(hyperparameters, self._columns.range, self._ema_decay)

    def update(self, grads: Sequence[Any], steps: Array, scaling: Scaling = AS_THEY_ARE) -> None:
        """Make one step, in place; nothing is changed if a gradient does not fit.

        Args:
            grads: one gradient for each parameter, of its shape, in any format; None leaves that parameter out.
            steps: (parameters,) int64: updates so far; counted up where there is a gradient.
            scaling: the treatment of the gradients; nothing is measured here.

        Raises:
            ArrayError: a gradient does not fit; the message names it.
        """
        self.launch(self.plan(grads, steps, scaling), steps)

    def plan(self, grads: Sequence[Any], steps: Array, scaling: Scaling = AS_THEY_ARE) -> Plan:
        """Validate the gradients, and plan a step with them. Arguments as for `update`."""
        prepared = self._launch_plan
        prepared.options[ZERO_GRAD] = scaling.zero_grad
        if self._count == 1:
            prepared.objects[0] = id(grads[0])
        else:
            prepared.objects[:] = np.fromiter(map(id, grads), np.uint64, self._count)
        if usable():
            count = prepare(self._packed, prepared.constants, steps, scaling.factor, scaling.clip_value)
            if count >= 0:
                return self._plan_of_all if count == self._count else Plan(count)
        return self._plan_one_by_one(grads, steps, scaling)  # one does not fit, or is not a plain NumPy array

    def _plan_one_by_one(self, grads: Sequence[Any], steps: Array, scaling: Scaling) -> Plan:
        """Borrow each gradient by its own protocol, and plan the step."""
        self._check_owners()
        if self._lookalikes is not None and not scaling.zero_grad:
            addresses = self._lookalikes.addresses(grads)
            if addresses is not None:
                self._launch_plan.grads[:] = addresses
                self._launch_plan.grad_formats[:] = self._lent_formats
                return Plan(self._plan_gathered(steps, scaling), grads)
        views = [self._borrowed(index, grad, is_written=scaling.zero_grad) for index, grad in enumerate(grads)]
        read = [self._in_memory_order(index, view) for index, view in enumerate(views)]
        self._launch_plan.grads[:] = [address(array) for array in read]
        self._launch_plan.grad_formats[:] = [0 if array is None else array_format(array) for array in read]
        pairs = zip(views, read, strict=True)
        copied = [view for view, array in pairs if view is not None and address(view) != address(array)]
        return Plan(self._plan_gathered(steps, scaling), read, copied if scaling.zero_grad else ())

    def replan(self, plan: Plan, steps: Array, scaling: Scaling) -> Plan:
        """Return the plan of the same step with another scaling."""
        self._plan_gathered(steps, scaling)
        return plan

    def _plan_gathered(self, steps: Array, scaling: Scaling) -> int:
        """Plan a step with the gradients whose addresses the launch plan has; return how many there are."""
        constants = self._launch_plan.constants
        return int(prepare_gathered(self._packed, constants, steps, scaling.factor, scaling.clip_value))

    def sum_of_squares(self, plan: Plan) -> float:
        """Return the sum of squares of the plan's gradients."""
        prepared, count = self._launch_plan, plan.grad_count
        tasks = threads.shares_for(prepared.offsets.item(count))
        threads.launch(norm.sum_of_squares, tasks, self._packed, prepared.constants, prepared.rows, count)
        return float(prepared.sums[0])

    def look_again(self, plan: Plan, scale: float) -> tuple[float, float]:
        """Return the sum of squares of the gradients, each multiplied by `scale`, and the largest magnitude of one."""
        total, largest = norm.sum_of_scaled_squares(self._packed, self._launch_plan.constants, plan.grad_count, scale)
        return float(total), float(largest)

    def accumulate(self, plan: Plan, sums: Array) -> None:
        """Add the plan's gradients to sums.

        Args:
            plan: from `plan`; its gradients must still be alive.
            sums: (parameters,) uint64: the address of each parameter's sum, of its shape and of the compute dtype.
        """
        prepared, count = self._launch_plan, plan.grad_count
        tasks = threads.shares_for(prepared.offsets.item(count))
        threads.launch(accumulate.accumulate, tasks, self._packed, prepared.constants, sums, count)

    def extents_of_grads(self, plan: Plan) -> tuple[Array, Array, list[str]]:
        """Return the addresses at which the plan's gradients begin and end, and what error messages call them."""
        prepared, rows = self._launch_plan, self._launch_plan.rows[: plan.grad_count]
        begins = prepared.grads[rows]
        sizes = prepared.lengths[rows] * _ITEM_BYTES[prepared.grad_formats[rows]]
        return begins, begins + sizes.astype(np.uint64), [self._columns.grad_name(row) for row in rows]

    def launch(self, plan: Plan, steps: Array) -> None:
        """Make the planned step; its gradients must still be alive."""
        run(self._launch_plan, self._packed, steps, plan.grad_count)
        for grad in plan.copied:
            grad.fill(0)

    def launch_staged(self, plan: Plan, job: Array, tasks: int) -> None:
        """Make the planned step, or a part of it, in memory that outlives the process; see `kernels.staged`."""
        threads.launch(staged.update_staged, tasks, self._packed, self._launch_plan.constants, job, plan.grad_count)

    def launch_formats(self, plan: Plan, job: Array, tasks: int) -> None:
        """Make the planned step, or a part of it, chunk by chunk; see `kernels.staged_formats`."""
        like = self._launch_plan.constants
        is_double = like.itemsize == _FLOAT64_BYTES
        kernel = staged_formats.update_formats_float64 if is_double else staged_formats.update_formats
        threads.launch(kernel, tasks, self._packed, like, job, plan.grad_count)

    def _make_launch_plan(
        self, hyperparameters: Sequence[Hyperparameters], groups: Sequence[int], extras: Extras
    ) -> LaunchPlan:
        """Return what the kernels work through."""
        columns, shapes, count = self._columns, self._columns.shapes, self._count
        given = [as_given(param, order) for param, order in zip(columns.params, columns.axes, strict=True)]
        lengths = np.array([param.size for param in columns.params], dtype=np.int64)
        return LaunchPlan(
            addresses=columns.addresses(),
            formats=columns.format_numbers(),
            plain=np.array([columns.is_plain(k) for k in range(count)], dtype=np.int64),
            numbers=np.array(extras.numbers if extras.numbers is not None else range(count), dtype=np.int64),
            options=_options(extras),
            lengths=lengths,
            groups=np.array(groups, dtype=np.int64),
            settings=np.array([settings(entry, columns.range, extras.ema_decay) for entry in hyperparameters]),
            kinds=kinds(),
            shapes=np.array([*(extent for shape in shapes for extent in shape), 0], dtype=np.int64),
            strides=np.array(
                [*(stride // each.itemsize for each in given for stride in each.strides), 0], dtype=np.int64
            ),
            starts=np.cumsum([0, *map(len, shapes)], dtype=np.int64),
            begins=self._extents.begins,
            ends=self._extents.ends,
            owners=_rows(self._owners),
            copies=_rows(copy for copy in self._copies if copy is not None),
            **empty_step(lengths, self.dtype),
        )

    def _check_owners(self) -> None:
        """Refuse an array of the caller's that became read-only, or whose attributes were changed."""
        for owner in (*self._owners, *self._copies):
            if owner is None:
                continue
            check_unchanged(owner)
            if not owner.array.flags.writeable:
                borrow(owner.array, name=owner.name, writable=True, narrow=True, any_order=True)

    def _watched(self, column: int) -> list[Watched | None]:
        """Return the attributes that the arrays of a column have now; these may be the caller's own."""
        label, names = self._columns.labels[column], self._columns.names
        pairs = zip(self._columns.arrays[column], names, strict=True)
        return [watched(array, f"{label}{name}") if isinstance(array, np.ndarray) else None for array, name in pairs]

    def _borrowed(self, index: int, grad: Any, *, is_written: bool) -> Array | None:
        """Borrow a gradient, and validate it."""
        if grad is None:
            return None
        name = self._columns.grad_name(index)
        view = borrow(grad, name=name, writable=is_written, narrow=True, any_order=True)
        if view.shape != self._columns.shapes[index]:
            param = as_given(self._columns.params[index], self._columns.axes[index])
            check_shape(view, name, param, self._columns.param_name(index))
        self._extents.check_apart(view, name)
        return view

    def _in_memory_order(self, index: int, grad: Array | None) -> Array | None:
        """Return a gradient with the axes of its parameter's memory in C order: a view, or a copy where it must be."""
        if grad is None:
            return None
        turned: Array = in_memory_order(grad, self._columns.axes[index])
        return turned if turned.flags.c_contiguous else np.ascontiguousarray(turned)


def run(plan: LaunchPlan, packed: Array, steps: Array, count: int) -> None:
    """Run the update on as many threads as its size is worth. Arguments as for `kernels.update`."""
    chosen = plan.options.item(KERNEL)
    if chosen == BARE:
        kernel = update.update_bare
    elif chosen == PLAIN:
        kernel = update.update
    elif plan.constants.itemsize == _FLOAT64_BYTES:
        kernel = mixed_formats.update_float64
    else:
        kernel = mixed_formats.update
    threads.launch(kernel, threads.shares_for(plan.offsets.item(count)), packed, plan.constants, steps, count)


def _rows(owners: Iterable[Watched | None]) -> Array:
    """Return a launch plan's rows about array objects whose attributes must not change."""
    rows = [
        (0, 0, 0, 0) if owner is None else (id(owner.array), owner.address, id(owner.dtype), owner.dtype.itemsize)
        for owner in owners
    ]
    return np.array(rows, dtype=np.uint64).reshape(-1, OWNER)


def _options(extras: Extras) -> Array:
    """Return a launch plan's options."""
    options = np.zeros(OPTIONS, dtype=np.int64)
    options[IS_STOCHASTIC], options[SEED] = extras.is_stochastic, extras.seed
    return options
