"""The parameters of an optimizer that lie on one GPU and compute in one precision, their state, and their step.

It stands beside `numba_adam.part.Part`, and makes its state on the GPU. What it says of the state is copied to NumPy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from numba_adam.arrays import Extents
from numba_adam.cuda.arrays import CudaArray, borrow_cuda
from numba_adam.cuda.memory import Array, download, upload, zeros
from numba_adam.cuda.table import CudaTable, Outcome
from numba_adam.hyperparameters import Hyperparameters
from numba_adam.scaling import AS_THEY_ARE, Scaling

_KEYS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")


class CudaPart:
    """Parameters on one GPU with their state, ready to be updated.

    A group whose `amsgrad` changes, and a parameter that is given other memory, need another part:
    `CudaPart(..., states=old.states())`.
    """

    def __init__(
        self,
        params: Sequence[Any],
        labels: Sequence[str],
        groups: Sequence[int],
        hyperparameters: Sequence[Hyperparameters],
        *,
        state_format: str | None = None,
        states: Sequence[dict[str, Any]] | None = None,
        **options: Any,
    ) -> None:
        """Take the parameters, and make their state on their GPU.

        Args:
            params: arrays on one GPU, as `borrow_cuda` takes them.
            labels: what messages call them: "['w']" or "[3]".
            groups: the group of each.
            hyperparameters: those of each group.
            state_format: "float32", "float64", "float16" or "bfloat16". Default: float64 for float64 parameters, else
                float32.
            states: what `states` of another part returned, or a state dict's entries. Default: none has made a step.
            options: more of `CudaTable`: rounding, seed, places, contract, emas, ema_decay, copies, extents.

        Raises:
            ArrayError: an array does not fit; the message names it.
            CudaUnavailableError: there is no GPU.
        """
        pairs = zip(params, labels, strict=True)
        self.params = [borrow_cuda(param, name=f"params{label}", writable=True) for param, label in pairs]
        self._known = list(hyperparameters)
        needed = [hyperparameters[group].amsgrad for group in groups]
        exp_avgs, exp_avg_sqs = ([self._empty(param, state_format) for param in self.params] for _ in range(2))
        largest = [
            self._empty(param, state_format) if need else None for param, need in zip(self.params, needed, strict=True)
        ]
        self._columns: tuple[Sequence[CudaArray | None], ...] = (exp_avgs, exp_avg_sqs, largest)
        self._table = CudaTable(
            params,
            exp_avgs,
            exp_avg_sqs,
            largest,
            hyperparameters=hyperparameters,
            groups=groups,
            names=labels,
            **options,
        )
        if states is not None:
            self.set_states(states)

    @property
    def device(self) -> int:
        """The number of the GPU."""
        return self._table.device

    def set_hyperparameters(self, hyperparameters: Sequence[Hyperparameters]) -> None:
        """Let the next steps use other hyperparameters, those of each group; only what changed is sent."""
        for group, (new, old) in enumerate(zip(hyperparameters, self._known, strict=True)):
            if new != old:
                self._table.set_hyperparameters(group, new)
        self._known = list(hyperparameters)

    def prepare(self, grads: Sequence[Any], scaling: Scaling = AS_THEY_ARE, **options: Any) -> int:
        """Check the gradients and plan the step, as `CudaTable.prepare`; nothing is changed if one does not fit."""
        return self._table.prepare(grads, scaling, **options)

    def prepare_again(self, scaling: Scaling) -> None:
        """Plan the step that `prepare` planned with another scaling."""
        self._table.prepare_again(scaling)

    def sum_of_squares(self) -> float:
        """Return the sum of squares of the gradients that `prepare` found; waits for it."""
        return self._table.sum_of_squares()

    def launch(self, *, measure: bool = False) -> None:
        """Queue the step that `prepare` planned, as `CudaTable.launch`."""
        self._table.launch(measure=measure)

    def outcome(self) -> Outcome:
        """Return what the last step did; waits only where that is decided on the GPU."""
        return self._table.outcome()

    def states(self) -> list[dict[str, Any]]:
        """Return every parameter's state with PyTorch's keys, as NumPy arrays; empty before its first step. Waits."""
        steps = self._table.steps
        return [self._state_of(k, int(step)) for k, step in enumerate(steps)]

    def set_states(self, states: Sequence[dict[str, Any]]) -> None:
        """Replace every parameter's state; the arrays are copied. An empty dict is the state before the first step."""
        for k, state in enumerate(states):
            for key, column in zip(_KEYS, self._columns, strict=True):
                array = column[k]
                if array is not None:
                    upload(array, _narrowed(state.get(key), array))
        self._table.steps = [state.get("step", 0) for state in states]

    def _state_of(self, position: int, step: int) -> dict[str, Any]:
        if not step:
            return {}
        arrays = {key: column[position] for key, column in zip(_KEYS, self._columns, strict=True)}
        return {"step": step, **{key: download(array) for key, array in arrays.items() if array is not None}}

    def _empty(self, param: CudaArray, state_format: str | None) -> CudaArray:
        """Return a state of zeros for a parameter."""
        number = state_format or ("float64" if param.format == "float64" else "float32")
        return zeros(param.shape, number, param.device, param.stream)


def parts_of(places: Sequence[tuple[int, str]]) -> list[list[int]]:
    """Divide parameters by GPU and precision: one part for each.

    Args:
        places: each parameter's GPU and format, as `borrow_cuda` says them.

    Returns:
        the parameters of every part, by their indices.
    """
    found: dict[tuple[int, bool], list[int]] = {}
    for index, (device, number) in enumerate(places):
        found.setdefault((device, number == "float64"), []).append(index)
    return list(found.values())


def separate(arrays: Sequence[CudaArray | Array], names: Sequence[str]) -> Extents:
    """Refuse arrays that share memory, on whatever GPU or on the host: their addresses are of one space.

    Raises:
        OverlapError: two arrays share memory.
    """
    return Extents(arrays, names)  # type: ignore[arg-type]


def _narrowed(values: Any, array: CudaArray) -> Array:
    """Return a state's values in the form of its array; zeros where there are none."""
    return np.zeros(array.shape, array.dtype) if values is None else np.asarray(values)
