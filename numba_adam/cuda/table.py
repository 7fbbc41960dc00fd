"""Arrays on one GPU that are updated together, where they lie, on the caller's stream. The one caller of the kernels.

A step is queued and nobody waits: addresses and settings go to the GPU only when they have changed, step numbers live
there, and there it is decided whether a step with a gradient that is not finite is left out. So a step whose gradients
lie where they lay before can be captured in a CUDA graph, and every replay counts as a step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np

from numba_adam.arrays import Extents, check_like
from numba_adam.cuda import seam
from numba_adam.cuda.arrays import CudaArray, borrow_cuda
from numba_adam.cuda.kernels import fold, norm, update
from numba_adam.cuda.kernels.formats import STOCHASTIC
from numba_adam.cuda.kernels.update import CHUNK, Layout, Place
from numba_adam.cuda.memory import Array, Buffer, buffer_of, on, stream_of
from numba_adam.cuda.outcomes import Records
from numba_adam.errors import DtypeError, ShapeError, UnsupportedArrayError
from numba_adam.folding import settings
from numba_adam.hyperparameters import Hyperparameters
from numba_adam.part import APPLIED, StepResult
from numba_adam.scaling import AS_THEY_ARE, Scaling
from numba_adam.table import LABELS

_BLOCKS_AT_MOST = 2**20
_GRAD = Place._fields.index("grad")


class _Batch(NamedTuple):
    """Arrays of one layout, for one launch."""

    layout: Layout
    rows: list[int]
    chunks: Buffer


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
        emas: Sequence[Any] | None = None,
        ema_decay: float = 0.0,
        copies: Sequence[Any] | None = None,
        steps: Sequence[int] | None = None,
        places: Sequence[int] | None = None,
        rounding: str = "nearest",
        seed: int = 0,
        contract: bool = False,
        caller: Any = None,
    ) -> None:
        """Check the arrays, and tell the GPU where they lie.

        Args:
            params: C-contiguous writable arrays on one GPU: anything that `borrow_cuda` takes. Computed in float64
                where they or their moments are float64, which then all must be; in float32 else.
            exp_avgs: first moments, one for each parameter, of its shape.
            exp_avg_sqs: second moments, likewise.
            max_exp_avg_sqs: largest second moments (AMSGrad), None for parameters without; None: none has one.
            hyperparameters: those of each group.
            groups: the group of each parameter. Default: all are of group 0.
            names: what error messages call the parameters. Default: their indices.
            extents: all memory that no gradient may share. Default: that of these arrays, which must be separate.
            labels: what error messages call each kind of array, before its name.
            emas: moving averages of the parameters, None for parameters without.
            ema_decay: their decay rate.
            copies: narrower images of the new parameters, written in the same pass, None for parameters without.
            steps: updates made so far. Default: none.
            places: which of the optimizer's parameters each one is, for the random numbers. Default: in order.
            rounding: how bfloat16 parameters are rounded: "nearest" or "stochastic".
            seed: of the random numbers.
            caller: the array of the caller's that says which stream is current. Default: the first parameter.
            contract: let the compiler fuse multiplications with additions; the bits are then not the CPU's.

        Raises:
            ArrayError: an array does not fit; the message names it.
            CudaUnavailableError: there is no GPU.
        """
        seam.require_gpu()
        count = len(params)
        self._labels, self._names = labels, list(names) if names else [f"[{index}]" for index in range(count)]
        none = [None] * count
        given = (params, none, exp_avgs, exp_avg_sqs, max_exp_avg_sqs or none, emas or none, copies or none)
        self._columns = [
            [self._borrow(array, label, k) for k, array in enumerate(column)]
            for column, label in zip(given, self._column_labels(), strict=True)
        ]
        self._caller = params[0] if caller is None else caller
        self._rounding, self._contract, self._zero_grad = rounding, contract, False
        self._check()
        self.device, self.stream = self._params[0].device, self._stream_now()
        self._seed, self._ema_decay = seed, ema_decay
        self._extents = extents or Extents(*self._written())
        self._settings_now = np.array([settings(entry, self._range, ema_decay) for entry in hyperparameters])
        self._make_buffers(list(groups or [0] * count), list(steps or [0] * count), list(places or range(count)))
        self._borrowed: list[CudaArray | None] = [None] * count
        self._given: list[Any] = [None] * count
        self._batches: dict[tuple[bool, tuple[str, ...]], list[_Batch]] = {}
        self._blocks: Buffer | None = None
        self._device_scalars = (0, 0)
        self._treatment_now: tuple[float, ...] = ()
        self.is_judged = False

    @property
    def _params(self) -> list[CudaArray]:
        return self._columns[0]  # type: ignore[return-value]

    def set_hyperparameters(self, group: int, hyperparameters: Hyperparameters) -> None:
        """Let a group's next steps use other hyperparameters; `amsgrad` must stay what it is."""
        row = settings(hyperparameters, self._range, self._ema_decay)
        if tuple(self._settings_now[group]) != tuple(row):
            self._settings_now[group] = row
            self._settings.upload(self._settings_now, self.stream)

    def step(self, grads: Sequence[Any], scaling: Scaling = AS_THEY_ARE, **options: Any) -> StepResult:
        """Queue one step; nothing is changed if a gradient does not fit. Arguments as for `prepare`."""
        self.prepare(grads, scaling, **options)
        return self.launch(measure=scaling.is_measured)

    def prepare(
        self,
        grads: Sequence[Any],
        scaling: Scaling = AS_THEY_ARE,
        *,
        loss_scale: Any = None,
        found_inf: Any = None,
        zero_grad: bool = False,
    ) -> int:
        """Check the gradients and plan the step; return how many arrays have one.

        Args:
            grads: one gradient for each parameter, of its shape, on its GPU; None leaves that parameter out.
            scaling: what is done to the gradients first.
            loss_scale: a float32 scalar on the GPU that divides every gradient as well.
            found_inf: a float32 scalar on the GPU; when it is not 0 the step is left out, as GradScaler asks.
            zero_grad: set the gradients to zero in the same pass, unless the step is left out.

        Raises:
            ArrayError: a gradient does not fit; the message names it.
        """
        views = [self._view_of(index, grad, writable=zero_grad) for index, grad in enumerate(grads)]
        scalars = [self._scalar(loss_scale, "loss_scale"), self._scalar(found_inf, "found_inf")]
        self.stream = self._stream_now()
        addresses = np.array([0 if view is None else view.address or 1 for view in views], dtype=np.int64)
        if not np.array_equal(addresses, self._table[_GRAD]):
            self._table[_GRAD] = addresses
            self._places.upload(self._table, self.stream)
        self._borrowed, self._given = views, list(grads)
        self._device_scalars, self._zero_grad = (scalars[0], scalars[1]), zero_grad
        self.prepare_again(scaling)
        return int(np.count_nonzero(addresses))

    def prepare_again(self, scaling: Scaling) -> None:
        """Plan the step that `prepare` planned with another scaling."""
        treatment = (scaling.factor, scaling.clip_value, scaling.max_norm)
        if treatment != self._treatment_now:
            self._treatment_now = treatment
            self._treatment.upload(np.array(treatment), self.stream)

    def sum_of_squares(self) -> float:
        """Return the sum of squares of the gradients that `prepare` found; waits for it."""
        with on(self.device):
            self._sum()
        return float(self._total.download(self.stream)[0])

    def launch(self, *, measure: bool = False) -> StepResult:
        """Queue the step that `prepare` planned.

        Args:
            measure: read the gradients first, on the GPU: clip their norm, and leave the step out if it is not finite.

        Returns:
            what it did; reading that waits only where it is decided on the GPU.
        """
        pending = self._records.next(self.stream, has_norm=measure)
        with on(self.device):
            if measure:
                self._sum()
            self._fold(measure=measure)
            for batch in self._batches_of_now():
                self._launch(batch)
        self.is_judged = measure or self._device_scalars[1] != 0
        return pending if self.is_judged else APPLIED

    def outcome(self) -> StepResult:
        """Return what the last step did, or the last replay of it; waits only where that is decided on the GPU."""
        return self._records.last() if self.is_judged else APPLIED

    def extents_of_grads(self) -> tuple[Array, Array, list[str]]:
        """Return where each gradient that `prepare` found begins and ends, and what messages call it."""
        found = [(view, name) for view, name in zip(self._borrowed, self._names, strict=True) if view is not None]
        begins = np.array([view.address for view, _ in found], dtype=np.uint64)
        sizes = np.array([view.nbytes for view, _ in found], dtype=np.uint64)
        return begins, begins + sizes, [f"{self._labels[6]}{name}" for _, name in found]

    @property
    def steps(self) -> Array:
        """Updates made so far, (parameters,) int64; reading waits for the GPU."""
        return self._steps.download(self.stream)

    @steps.setter
    def steps(self, steps: Sequence[int]) -> None:
        self._steps.upload(np.array(steps, dtype=np.int64), self.stream)

    def _column_labels(self) -> list[str]:
        """Return the labels in the order of Place."""
        params, exp_avg, exp_avg_sq, largest, ema, copy, grads = self._labels
        return [params, grads, exp_avg, exp_avg_sq, largest, ema, copy]

    def _stream_now(self) -> int:
        """Return the stream that the caller works on."""
        return borrow_cuda(self._caller, name="params").stream

    def _borrow(self, array: Any, label: str, index: int) -> CudaArray | None:
        return None if array is None else borrow_cuda(array, name=f"{label}{self._names[index]}", writable=True)

    def _written(self) -> tuple[list[Any], list[str]]:
        """Return every array that an update writes, beside the gradients, and what to call it."""
        pairs = [
            (array, f"{label}{name}")
            for label, column in zip(self._column_labels(), self._columns, strict=True)
            for array, name in zip(column, self._names, strict=True)
            if array is not None
        ]
        return [array for array, _ in pairs], [name for _, name in pairs]

    def _check(self) -> None:
        """Check every array against its parameter, and all of them against each other."""
        self._rows = [
            {name: array.format for name, array in zip(Place._fields, row, strict=True) if array is not None}
            for row in zip(*self._columns, strict=True)
        ]
        reals = sorted({Layout(**row).real for row in self._rows})
        if len(reals) != 1:
            found = ", ".join(sorted({param.format for param in self._params}))
            raise DtypeError(
                f"{self._labels[0]} have the dtypes {found}: a table computes in float32 or in float64; make two"
            )
        self.dtype = reals[0]
        moments = {
            row[name] for row in self._rows for name in ("exp_avg", "exp_avg_sq", "max_exp_avg_sq") if name in row
        }
        self._range = "float64" if moments == {"float64"} else "float32"  # what their floors are made for
        home = self._params[0]
        for array, label in zip(*self._written(), strict=True):
            if array.device != home.device:
                raise UnsupportedArrayError(
                    f"{label} is on GPU {array.device}, needed is GPU {home.device}, where {self._labels[0]}"
                    f"{self._names[0]} is; make a table for each GPU"
                )
        for column, label in zip(self._columns[1:], self._column_labels()[1:], strict=True):
            for array, param, name in zip(column, self._params, self._names, strict=True):
                if array is not None and array.shape != param.shape:
                    check_like(array, f"{label}{name}", param, f"{self._labels[0]}{name}")  # type: ignore[arg-type]

    def _make_buffers(self, groups: list[int], steps: list[int], places: list[int]) -> None:
        """Take the memory that the kernels need beside the arrays."""
        count, device, stream = len(groups), self.device, self.stream
        self._table = np.array(
            [[0 if array is None else array.address for array in column] for column in self._columns], dtype=np.int64
        )
        self._lengths_now = [param.size for param in self._params]

        def integers(values: Any) -> Buffer:
            return buffer_of(np.array(values, dtype=np.int64), device, stream)

        self._places, self._lengths = integers(self._table), integers(self._lengths_now)
        self._groups, self._steps, self._numbers = integers(groups), integers(steps), integers(places)
        self._settings = buffer_of(self._settings_now, device, stream)
        self._constants = Buffer((count, update.CONSTANTS), self.dtype, device)
        self._keys = Buffer(count, "uint32", device)
        self._treatment = Buffer(fold.TREATMENT, "float64", device)
        self._records, self._total = Records(device), Buffer(1, "float64", device)

    def _view_of(self, index: int, grad: Any, *, writable: bool) -> CudaArray | None:
        """Borrow a gradient, and check it. One that was seen before and lies where it lay is not asked again."""
        if grad is None:
            return None
        known = self._borrowed[index]
        if not writable and grad is self._given[index] and known is not None and _place_of(grad) == known.address:
            return known
        name, param = f"{self._labels[6]}{self._names[index]}", self._params[index]
        view = borrow_cuda(grad, name=name, writable=writable)
        if view.shape != param.shape:
            raise ShapeError(
                f"{name} has shape {view.shape}: it must have the shape of {self._labels[0]}{self._names[index]}, "
                f"{param.shape}"
            )
        if view.format == "float64" and self.dtype != "float64":
            raise DtypeError(
                f"{name} has dtype float64: it must be float32, bfloat16 or float16, since float32 is computed in; "
                "convert it with .astype(numpy.float32)"
            )
        if view.device != self.device:
            raise UnsupportedArrayError(f"{name} is on GPU {view.device}, needed is GPU {self.device}; copy it there")
        self._extents.check_apart(view, name)  # type: ignore[arg-type]
        return view

    def _scalar(self, array: Any, name: str) -> int:
        """Return the address of a scalar on the GPU, 0 for None."""
        if array is None:
            return 0
        view = borrow_cuda(array, name=name)
        if view.size != 1 or view.format != "float32":
            raise ShapeError(f"{name} has shape {view.shape} and dtype {view.format}: it must be one float32")
        return view.address

    def _batches_of_now(self) -> list[_Batch]:
        """Return what is to be launched for gradients of these formats."""
        formats = tuple("" if view is None else view.format for view in self._borrowed)
        key = (self._zero_grad, formats)
        if key not in self._batches:
            by_layout: dict[Layout, list[int]] = {}
            for row, number in enumerate(formats):
                if number and self._lengths_now[row]:
                    by_layout.setdefault(self._layout_of(row, number), []).append(row)
            self._batches[key] = [_Batch(layout, rows, self._pieces(rows, CHUNK)) for layout, rows in by_layout.items()]
        return self._batches[key]

    def _layout_of(self, row: int, grad: str) -> Layout:
        """Return what a row's kernel is compiled for."""
        columns = {**self._rows[row], "grad": grad}
        if columns["param"] == "bfloat16" and self._rounding == "stochastic":
            columns["param"] = STOCHASTIC
        return Layout(**columns, zero_grad=self._zero_grad, contract=self._contract)

    def _pieces(self, rows: Sequence[int], size: int) -> Buffer:
        """Return arrays cut into pieces: (pieces, 2) int64, an array and where the piece begins in it."""
        pieces = [(row, begin) for row in rows for begin in range(0, self._lengths_now[row], size)]
        return buffer_of(np.array(pieces, dtype=np.int64).reshape(-1, 2), self.device, self.stream)

    def _on_stream(self, kernel: Any, blocks: int, threads: int, *arguments: Any) -> None:
        stream = stream_of(self.stream, self.device)
        seam.configured(kernel, max(1, min(blocks, _BLOCKS_AT_MOST)), threads, stream)(*arguments)

    def _sum(self) -> None:
        """Queue the sum of squares of all gradients."""
        if self._blocks is None:
            self._blocks = self._pieces(range(len(self._lengths_now)), norm.BLOCK)
            self._sums = Buffer((self._blocks.shape[0], norm.SUM_LANES), "float64", self.device)
        count, threads = self._blocks.shape[0], seam.THREADS
        grads = self._places.address + 8 * _GRAD * len(self._params)
        for number, first, after in self._blocks_by_format():
            blocks, sums = self._blocks.address + 16 * first, self._sums.address + 8 * norm.SUM_LANES * first
            arguments = (grads, self._lengths.address, blocks, after - first, sums)
            grid = math.ceil((after - first) * norm.SUM_LANES / threads)
            self._on_stream(norm.lanes_kernel(number), grid, threads, *arguments)
        self._on_stream(norm.blocks_kernel, math.ceil(count / threads), threads, self._sums.address, count)
        self._on_stream(norm.total_kernel, 1, 1, self._sums.address, count, self._total.address)

    def _blocks_by_format(self) -> list[tuple[str, int, int]]:
        """Return neighbouring blocks whose gradients have one format: it, the first block, the one after the last."""
        ends = np.cumsum([0, *(math.ceil(length / norm.BLOCK) for length in self._lengths_now)])
        formats = ["float32" if view is None else view.format for view in self._borrowed]
        runs = [(number, list(rows)) for number, rows in groupby(range(len(formats)), key=formats.__getitem__)]
        places = [(number, int(ends[rows[0]]), int(ends[rows[-1] + 1])) for number, rows in runs]
        return [(number, first, after) for number, first, after in places if after > first]

    def _fold(self, *, measure: bool) -> None:
        """Queue the folding of the step's constants."""
        count = len(self._params)
        loss_scale, found_inf = self._device_scalars
        step = fold.Step(
            settings=self._settings.address,
            groups=self._groups.address,
            steps=self._steps.address,
            grads=self._places.address + 8 * _GRAD * count,
            constants=self._constants.address,
            keys=self._keys.address,
            treatment=self._treatment.address,
            total=self._total.address if measure else 0,
            loss_scale=loss_scale,
            found_inf=found_inf,
            record=self._records.address,
            places=self._numbers.address,
        )
        threads = min(128, count)
        self._on_stream(fold.kernel(self.dtype), math.ceil(count / threads), threads, tuple(step), count, self._seed)

    def _launch(self, batch: _Batch) -> None:
        """Queue the update of a batch."""
        kernels = update.kernels(batch.layout)
        constants, keys, skip = self._constants.address, self._keys.address, self._records.address
        if len(batch.rows) == 1:
            row = batch.rows[0]
            size = self._lengths_now[row]
            row_bytes = update.CONSTANTS * np.dtype(self.dtype).itemsize
            arguments: tuple[Any, ...] = (
                tuple(int(address) for address in self._table[:, row]),
                size,
                constants + row_bytes * row,
                keys + 4 * row,
                skip,
            )
            blocks = math.ceil(size / CHUNK)
            self._on_stream(kernels.flat, blocks, seam.THREADS, *arguments)
            return
        pieces = batch.chunks.shape[0]
        places = (self._places.address, self._lengths.address, len(self._params), batch.chunks.address, pieces)
        self._on_stream(kernels.table, pieces, seam.THREADS, *places, constants, keys, skip)


def _place_of(array: Any) -> int | None:
    """Return where an array lies now, where that can be asked cheaply; None else."""
    if hasattr(array, "data_ptr"):
        return int(array.data_ptr())
    pointer = getattr(getattr(array, "data", None), "ptr", None)
    return None if pointer is None else int(pointer)
