"""Names, shapes and dtype of a model's arrays, and the validation of arrays against them.

May import NumPy, `numba_adam.interop` and the generated messages.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from numba_adam.client.info import ModelInfo
from numba_adam.errors import DtypeError, NamesError, ShapeError
from numba_adam.interop import borrow
from numba_adam.ps.v1.model_pb2 import TensorSpec

Array = npt.NDArray[Any]
Parameters = dict[str, Array]


@dataclass(frozen=True, slots=True)
class Gradients:
    """The validated gradients of one push, in the model's order."""

    present: Mapping[str, Array]
    """The gradient of each array that has one, by name."""

    absent: tuple[str, ...]
    """The names of the arrays without a gradient."""


@dataclass(frozen=True, slots=True)
class ModelArrays:
    """The arrays of one model: their order, shapes and element type."""

    dtype: np.dtype[Any]
    """Element type of every array."""

    shapes: Mapping[str, tuple[int, ...]]
    """Shape of each array, by name, in order."""

    specs: Mapping[str, TensorSpec]
    """The protocol's description of each array, by name. Cached, because every push sends them."""

    @property
    def total_bytes(self) -> int:
        """Size of all arrays together: the payload of a pull."""
        return sum(map(math.prod, self.shapes.values())) * self.dtype.itemsize

    def allocate(self) -> tuple[Array, Parameters]:
        """Allocate one flat vector; return it, and the model's arrays as views of it."""
        flat = np.empty(self.total_bytes // self.dtype.itemsize, self.dtype)
        views, start = {}, 0
        for name, shape in self.shapes.items():
            stop = start + math.prod(shape)
            views[name] = flat[start:stop].reshape(shape)
            start = stop
        return flat, views

    def check_gradients(self, gradients: Mapping[str, object]) -> Gradients:
        """Borrow the gradients and validate them.

        Raises:
            NamesError: a name of the model is missing, or the model does not have a given name.
            ShapeError: a shape differs from the model's.
            DtypeError: a dtype differs from the model's.
            ArrayError: an array cannot be borrowed without a copy.
        """
        self.check_names("grads", gradients, missing="give None for an array without a gradient")
        present = {
            name: self._checked(borrow(gradients[name], name=f"grads[{name!r}]"), f"grads[{name!r}]", name)
            for name in self.shapes
            if gradients[name] is not None
        }
        return Gradients(present, tuple(name for name in self.shapes if gradients[name] is None))

    def check_out(self, out: Mapping[str, object], argument: str = "out") -> Parameters:
        """Borrow the arrays that a pull writes to and validate them. Raises the same errors as `check_gradients`."""
        self.check_names(argument, out, missing="give an array for each")
        places = {name: f"{argument}[{name!r}]" for name in self.shapes}
        return {
            name: self._checked(borrow(out[name], name=place, writable=True), place, name)
            for name, place in places.items()
        }

    def check_names(self, argument: str, given: Mapping[str, object], *, missing: str) -> None:
        """Raise NamesError if the names given are not those of the model."""
        if lacking := [name for name in self.shapes if name not in given]:
            raise NamesError(f"{argument} lacks {_listed(lacking)}; {missing}")
        if strange := [name for name in given if name not in self.shapes]:
            known = _listed(list(self.shapes))
            raise NamesError(f"{argument} has {_listed(strange)}, which the model does not; it has {known}")

    def _checked(self, view: Array, argument: str, name: str) -> Array:
        if view.dtype != self.dtype:
            raise DtypeError(
                f"{argument}: expected the model's dtype {self.dtype}, got {view.dtype}; convert the array"
            )
        if view.shape != self.shapes[name]:
            raise ShapeError(
                f"{argument}: expected the model's shape {self.shapes[name]}, got {view.shape}; reshape it"
            )
        return view


def model_arrays_of(info: ModelInfo) -> ModelArrays:
    """Return the description of a model's arrays."""
    specs = {name: TensorSpec(name=name, shape=shape) for name, shape in info.shapes.items()}
    return ModelArrays(info.dtype, info.shapes, specs)


def check_initial(params: Mapping[str, object]) -> Parameters:
    """Borrow a new model's initial values.

    Raises:
        NamesError: a name has characters that cannot be printed.
        DtypeError: the arrays are not all of one dtype.
        ArrayError: an array cannot be borrowed without a copy.
    """
    if strange := [name for name in params if not name.isprintable()]:
        raise NamesError(f"params has {_listed(strange)}; use only printable characters in names")
    views = {name: borrow(array, name=f"params[{name!r}]") for name, array in params.items()}
    first, *others = views
    for name in others:
        if views[name].dtype != views[first].dtype:
            raise DtypeError(
                f"params: expected one dtype for all arrays, got {views[name].dtype} for params[{name!r}] and "
                f"{views[first].dtype} for params[{first!r}]; convert one of them"
            )
    return views


def _listed(names: list[str], limit: int = 10) -> str:
    """Return the names as text for an error message: at most `limit` of them."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(map(repr, names[:limit])) + more
