"""Arrays that one kernel launch updates together, in place. The only caller of the update kernels.

The optimizer classes, `adam_update` and the parameter server all use `UpdateTable`.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from numba_adam.cpu.kernels import accumulate, mixed_formats, norm, threads, update
from numba_adam.cpu.kernels.gather import kinds, usable
from numba_adam.cpu.kernels.launch_plan import (
    COLUMNS,
    IS_PLAIN,
    IS_STOCHASTIC,
    OPTIONS,
    OWNER,
    SCALE,
    SEED,
    ZERO_GRAD,
    LaunchPlan,
    empty_step,
    pack,
)
from numba_adam.cpu.kernels.prepare import prepare, prepare_gathered
from numba_adam.errors import DtypeError
from numba_adam.interop import borrow
from numba_adam.interop.arrays import Extents, Watched, check_shape, check_unchanged, watched
from numba_adam.interop.axes import Axes, as_given, in_memory_order
from numba_adam.interop.lookalikes import Lookalikes
from numba_adam.numerics.array import Array
from numba_adam.numerics.eight_bit import EightBit
from numba_adam.numerics.formats import Format
from numba_adam.settings.folding import settings
from numba_adam.settings.hyperparameters import Hyperparameters
from numba_adam.settings.options import TOO_NARROW
from numba_adam.settings.scaling import AS_THEY_ARE, Scaling
from numba_adam.settings.step_arrays import LABELS, NO_EXTRAS, Extras, array_format, written

_FLOAT64_BYTES = 8
_OWN_DTYPES = (np.dtype(np.uint8),)
_ITEM_BYTES = np.array([format_.item_bytes for format_ in Format], dtype=np.int64)


class Plan(NamedTuple):
    """A step whose gradients were validated. What the kernels need stands in the table's job, until the next plan."""

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

        Raises:
            ArrayError: an array does not fit; the message names it.
        """
        self._labels = labels
        self._names = list(names) if names is not None else [f"[{index}]" for index in range(len(params))]
        self._params = list(params)
        nothing: list[None] = [None] * len(params)
        self._columns: list[Sequence[Array | EightBit | None]] = [
            self._params,
            list(exp_avgs),
            list(exp_avg_sqs),
            list(max_exp_avg_sqs or nothing),
            list(extras.emas or nothing),
            list(extras.copies or nothing),
        ]
        self._extras = extras
        self.dtype = self._check()
        self._range = self._range_of_moments()
        self._axes = list(axes or nothing)
        self._shapes = [as_given(param, order).shape for param, order in zip(self._params, self._axes, strict=True)]
        self._extents = extents or Extents(*self._written())
        self._lookalikes = Lookalikes(given, self._params, self._extents) if given else None
        self._owners = self._watched(0) if owners is None else list(owners)
        self._copies = self._watched(5)
        pinned = [owner.array for owner in self._owners if owner is not None]
        self._pins = [weakref.ref(array) for array in (*self._written()[0], *pinned)]
        self._param_formats = np.array([_format(param) for param in self._params], np.int64)
        self._job = self._make_job(hyperparameters, groups or [0] * len(params))
        self._places = pack(self._job)
        self._plan_of_all = Plan(len(params))  # of a step in which every parameter has a gradient, as nearly always

    def set_hyperparameters(self, group: int, hyperparameters: Hyperparameters) -> None:
        """Let a group's next steps use other hyperparameters; `amsgrad` must stay what it is."""
        self._job.settings[group] = settings(hyperparameters, self._range, self._extras.ema_decay)

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
        job = self._job
        job.options[ZERO_GRAD] = scaling.zero_grad
        if len(self._params) == 1:
            job.objects[0] = id(grads[0])
        else:
            job.objects[:] = np.fromiter(map(id, grads), np.uint64, len(self._params))
        if usable():
            count = prepare(self._places, job.constants, steps, scaling.factor, scaling.clip_value)
            if count >= 0:
                return self._plan_of_all if count == len(self._params) else Plan(count)
        return self._plan_one_by_one(grads, steps, scaling)  # one does not fit, or is not a plain NumPy array

    def _plan_one_by_one(self, grads: Sequence[Any], steps: Array, scaling: Scaling) -> Plan:
        """Borrow each gradient by its own protocol, and plan the step."""
        self._check_owners()
        if self._lookalikes is not None and not scaling.zero_grad:
            addresses = self._lookalikes.addresses(grads)
            if addresses is not None:
                self._job.grads[:] = addresses
                self._job.grad_formats[:] = self._param_formats
                return Plan(self._plan_gathered(steps, scaling), grads)
        views = [self._borrowed(index, grad, is_written=scaling.zero_grad) for index, grad in enumerate(grads)]
        read = [self._in_memory_order(index, view) for index, view in enumerate(views)]
        self._job.grads[:] = [_address(array) for array in read]
        self._job.grad_formats[:] = [0 if array is None else _format(array) for array in read]
        pairs = zip(views, read, strict=True)
        copied = [view for view, array in pairs if view is not None and _address(view) != _address(array)]
        return Plan(self._plan_gathered(steps, scaling), read, copied if scaling.zero_grad else ())

    def replan(self, plan: Plan, steps: Array, scaling: Scaling) -> Plan:
        """Return the plan of the same step with another scaling."""
        self._plan_gathered(steps, scaling)
        return plan

    def _plan_gathered(self, steps: Array, scaling: Scaling) -> int:
        """Plan a step with the gradients whose addresses stand in the job; return how many there are."""
        constants = self._job.constants
        return int(prepare_gathered(self._places, constants, steps, scaling.factor, scaling.clip_value))

    def sum_of_squares(self, plan: Plan) -> float:
        """Return the sum of squares of the plan's gradients."""
        tasks = threads.tasks_for(self._job.offsets[plan.grad_count])
        job = self._job
        threads.launch(norm.sum_of_squares, tasks, self._places, job.constants, job.rows, plan.grad_count)
        return float(job.sums[0])

    def look_again(self, plan: Plan, scale: float) -> tuple[float, float]:
        """Return the sum of squares of the gradients, each multiplied by `scale`, and the largest magnitude of one."""
        total, largest = norm.sum_of_scaled_squares(self._places, self._job.constants, plan.grad_count, scale)
        return float(total), float(largest)

    def accumulate(self, plan: Plan, sums: Array) -> None:
        """Add the plan's gradients to sums.

        Args:
            plan: from `plan`; its gradients must still be alive.
            sums: (parameters,) uint64: the address of each parameter's sum, of its shape and of the compute dtype.
        """
        tasks = threads.tasks_for(self._job.offsets[plan.grad_count])
        threads.launch(accumulate.accumulate, tasks, self._places, self._job.constants, sums, plan.grad_count)

    def extents_of_grads(self, plan: Plan) -> tuple[Array, Array, list[str]]:
        """Return the addresses at which the plan's gradients begin and end, and what error messages call them."""
        job, rows = self._job, self._job.rows[: plan.grad_count]
        begins = job.grads[rows]
        sizes = job.lengths[rows] * _ITEM_BYTES[job.grad_formats[rows]]
        return begins, begins + sizes.astype(np.uint64), [f"{self._labels[6]}{self._names[row]}" for row in rows]

    def launch(self, plan: Plan, steps: Array) -> None:
        """Make the planned step; its gradients must still be alive."""
        run(self._job, self._places, steps, plan.grad_count)
        for grad in plan.copied:
            grad.fill(0)

    def _check(self) -> str:
        """Validate every array against its parameter, and the parameters together; return the compute dtype."""
        for each, name in zip(*self._written(), strict=True):
            if each.dtype not in _OWN_DTYPES:  # the library made those itself
                borrow(each, name=name, writable=True, narrow=True)
        for column, label in zip(self._columns[1:], self._labels[1:6], strict=True):
            for array, param, name in zip(column, self._params, self._names, strict=True):
                if array is not None:
                    check_shape(
                        array.codes if isinstance(array, EightBit) else array,
                        f"{label}{name}",
                        param,
                        f"{self._labels[0]}{name}",
                    )
        dtypes = [
            compute_dtype([_format(column[k]) for column in self._columns[:4] if column[k] is not None], self._names[k])
            for k in range(len(self._params))
        ]
        if len(set(dtypes)) != 1:
            raise DtypeError(f"params are computed in {' and '.join(sorted(set(dtypes)))}: they must all be in one")
        return dtypes[0]

    def _range_of_moments(self) -> str:
        """Return the dtype whose range every moment has: its floors keep all moments out of the subnormal numbers."""
        moments = (array for column in self._columns[1:4] for array in column if array is not None)
        return "float64" if all(_format(moment) == Format.FLOAT64 for moment in moments) else "float32"

    def _written(self) -> tuple[list[Array], list[str]]:
        """Return every array that an update writes, and what to call it."""
        return written(self._columns, self._names, self._labels)

    def _make_job(self, hyperparameters: Sequence[Hyperparameters], groups: Sequence[int]) -> LaunchPlan:
        """Return what the kernels work on."""
        shapes, count = self._shapes, len(self._params)
        given = [as_given(param, order) for param, order in zip(self._params, self._axes, strict=True)]
        formats = np.zeros((count, COLUMNS), dtype=np.int64)
        formats[:, : len(self._columns)] = np.transpose([[_format(array) for array in c] for c in self._columns])
        extras, lengths = self._extras, np.array([param.size for param in self._params], dtype=np.int64)
        return LaunchPlan(
            addresses=self._addresses(),
            formats=formats,
            plain=np.array([self._is_plain(k) for k in range(count)], dtype=np.int64),
            numbers=np.array(extras.numbers if extras.numbers is not None else range(count), dtype=np.int64),
            options=_options(extras),
            lengths=lengths,
            groups=np.array(groups, dtype=np.int64),
            settings=np.array([settings(entry, self._range, extras.ema_decay) for entry in hyperparameters]),
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

    def _addresses(self) -> Array:
        """Return the job's table: the address of each array, and of the scales of moments in 8 bits."""
        table = np.zeros((len(self._params), COLUMNS), dtype=np.uint64)
        for column, arrays in enumerate(self._columns):
            for k, array in enumerate(arrays):
                if isinstance(array, EightBit):
                    table[k, column], table[k, column + SCALE] = _address(array.codes), _address(array.scales)
                else:
                    table[k, column] = _address(array)
        return table

    def _is_plain(self, index: int) -> bool:
        """Return whether all arrays of a parameter have the compute dtype, and it has no fused extra work."""
        *moments, ema, copy = (column[index] for column in self._columns)
        return ema is None and copy is None and all(array is None or array.dtype == self.dtype for array in moments)

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
        pairs = zip(self._columns[column], self._names, strict=True)
        label = self._labels[column]
        return [watched(array, f"{label}{name}") if isinstance(array, np.ndarray) else None for array, name in pairs]

    def _borrowed(self, index: int, grad: Any, *, is_written: bool) -> Array | None:
        """Borrow a gradient, and validate it."""
        if grad is None:
            return None
        name = f"{self._labels[6]}{self._names[index]}"
        view = borrow(grad, name=name, writable=is_written, narrow=True, any_order=True)
        if view.shape != self._shapes[index]:
            param = as_given(self._params[index], self._axes[index])
            check_shape(view, name, param, f"{self._labels[0]}{self._names[index]}")
        self._extents.check_apart(view, name)
        return view

    def _in_memory_order(self, index: int, grad: Array | None) -> Array | None:
        """Return a gradient with the axes of its parameter's memory in C order: a view, or a copy where it must be."""
        if grad is None:
            return None
        turned: Array = in_memory_order(grad, self._axes[index])
        return turned if turned.flags.c_contiguous else np.ascontiguousarray(turned)


def compute_dtype(formats: Sequence[Format], name: str) -> str:
    """Return the compute dtype of a parameter with arrays of these formats.

    Args:
        formats: of the parameter, then of its moments.
        name: what messages call the parameter.

    Raises:
        DtypeError: the formats cannot be mixed.
    """
    if Format.FLOAT16 in formats[1:]:
        raise DtypeError(f"the state of params{name} is float16, expected float32, float64 or bfloat16: {TOO_NARROW}")
    if Format.FLOAT64 not in formats:
        return "float32"
    narrow = [format_.label for format_ in formats if format_ not in (Format.FLOAT32, Format.FLOAT64)]
    if narrow:
        raise DtypeError(
            f"params{name} is {formats[0].label} with a state of {formats[1].label}: float64 goes with float64 and "
            f"float32, not with {narrow[0]}; choose another state_dtype"
        )
    return "float64"


def _format(array: Array | EightBit | None) -> Format:
    """Return an array's format; any for a missing one, whose format nothing reads."""
    return Format.FLOAT32 if array is None else array_format(array)


def run(plan: LaunchPlan, packed: Array, steps: Array, count: int) -> None:
    """Run the update on as many threads as its size is worth. Arguments as for `kernels.update`."""
    if plan.options[IS_PLAIN]:
        kernel = update.update
    elif plan.constants.itemsize == _FLOAT64_BYTES:
        kernel = mixed_formats.update_float64
    else:
        kernel = mixed_formats.update
    threads.launch(kernel, threads.tasks_for(plan.offsets.item(count)), packed, plan.constants, steps, count)


def _rows(owners: Iterable[Watched | None]) -> Array:
    """Return a job's rows about array objects whose attributes must not change."""
    rows = [
        (0, 0, 0, 0) if owner is None else (id(owner.array), owner.address, id(owner.dtype), owner.dtype.itemsize)
        for owner in owners
    ]
    return np.array(rows, dtype=np.uint64).reshape(-1, OWNER)


def _options(extras: Extras) -> Array:
    """Return a job's options."""
    options = np.zeros(OPTIONS, dtype=np.int64)
    options[IS_STOCHASTIC], options[SEED] = extras.is_stochastic, extras.seed
    return options


def _address(array: Array | None) -> int:
    """Return the address of an array's elements: 0 without an array, and never 0 for an empty one."""
    return 0 if array is None else int(array.ctypes.data) or 1
