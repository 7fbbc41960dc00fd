"""Where each array of a model lies in the flat vector, and the checks of arrays against that.

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
    """One push's gradients, checked, in the model's order."""

    present: Mapping[str, Array]
    """The arrays that have one."""

    absent: tuple[str, ...]
    """The names of those that have none."""


@dataclass(frozen=True, slots=True)
class Layout:
    """The arrays of one model: their order, shapes and element type."""

    dtype: np.dtype[Any]
    """Element type of every array."""

    shapes: Mapping[str, tuple[int, ...]]
    """Shape of each array, by name, in order."""

    specs: Mapping[str, TensorSpec]
    """The protocol's description of each array, by name: made once, because a push names every array."""

    @property
    def total_bytes(self) -> int:
        """Size of the flat vector."""
        return sum(map(math.prod, self.shapes.values())) * self.dtype.itemsize

    def allocate(self) -> tuple[Array, Parameters]:
        """Return a fresh flat vector and the model's arrays as views into it."""
        flat = np.empty(self.total_bytes // self.dtype.itemsize, self.dtype)
        views, start = {}, 0
        for name, shape in self.shapes.items():
            stop = start + math.prod(shape)
            views[name] = flat[start:stop].reshape(shape)
            start = stop
        return flat, views

    def check_gradients(self, gradients: Mapping[str, object]) -> Gradients:
        """Borrow the gradients and see that they fit.

        Raises:
            NamesError: a name of the model is missing, or a strange one is given.
            ShapeError: a shape differs from the model's.
            DtypeError: a dtype differs from the model's.
            ArrayError: an array cannot be borrowed as it is.
        """
        self._check_names("grads", gradients, missing="give None for an array without a gradient")
        present = {
            name: self._checked(borrow(gradients[name], name=f"grads[{name!r}]"), f"grads[{name!r}]", name)
            for name in self.shapes
            if gradients[name] is not None
        }
        return Gradients(present, tuple(name for name in self.shapes if gradients[name] is None))

    def check_out(self, out: Mapping[str, object]) -> Parameters:
        """Borrow arrays that a pull shall write to, and see that they fit; raises as `check_gradients` does."""
        self._check_names("out", out, missing="give an array for each")
        return {
            name: self._checked(borrow(out[name], name=f"out[{name!r}]", writable=True), f"out[{name!r}]", name)
            for name in self.shapes
        }

    def _check_names(self, argument: str, given: Mapping[str, object], *, missing: str) -> None:
        if not isinstance(given, Mapping):
            raise NamesError(f"{argument} is a {type(given).__name__}, needed is a dict of name -> array")
        if lacking := [name for name in self.shapes if name not in given]:
            raise NamesError(f"{argument} lacks {_listed(lacking)}; {missing}")
        if strange := [name for name in given if name not in self.shapes]:
            known = _listed(list(self.shapes))
            raise NamesError(f"{argument} has {_listed(strange)}, which the model does not; it has {known}")

    def _checked(self, view: Array, argument: str, name: str) -> Array:
        if view.dtype != self.dtype:
            raise DtypeError(f"{argument} has dtype {view.dtype}, needed is the model's: {self.dtype}; convert it")
        if view.shape != self.shapes[name]:
            raise ShapeError(f"{argument} has shape {view.shape}, needed is the model's: {self.shapes[name]}")
        return view


def layout_of(info: ModelInfo) -> Layout:
    """Return the layout of a model."""
    specs = {name: TensorSpec(name=name, shape=shape) for name, shape in info.shapes.items()}
    return Layout(info.dtype, info.shapes, specs)


def check_initial(params: Mapping[str, object]) -> Parameters:
    """Borrow a new model's initial values.

    Raises:
        NamesError: not a dict of names, or empty.
        DtypeError: the arrays are not all of one dtype.
        ArrayError: an array cannot be borrowed as it is.
    """
    if not isinstance(params, Mapping) or not params or not all(isinstance(name, str) for name in params):
        raise NamesError(f"params={type(params).__name__}: it must be a dict of name -> array with at least one entry")
    if strange := [name for name in params if not name.isprintable()]:
        raise NamesError(f"params has {_listed(strange)}; a name must be of printable characters")
    views = {name: borrow(array, name=f"params[{name!r}]") for name, array in params.items()}
    first, *others = views
    for name in others:
        if views[name].dtype != views[first].dtype:
            raise DtypeError(
                f"params[{name!r}] has dtype {views[name].dtype} and params[{first!r}] has {views[first].dtype}, "
                "needed is one dtype for all; convert one of them"
            )
    return views


def _listed(names: list[str], limit: int = 10) -> str:
    """Return names for a message, the first few of many."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(map(repr, names[:limit])) + more
