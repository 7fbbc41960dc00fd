"""Names, shapes and dtype of a model's arrays, and the validation of arrays against them.

May import NumPy, `numba_adam.interop` and the generated messages.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

import numpy as np
import numpy.typing as npt

from numba_adam.client.formats import common_narrow, is_narrow, widened
from numba_adam.client.info import ModelInfo
from numba_adam.client.narrow import Rounded
from numba_adam.errors import DtypeError, NamesError, ShapeError
from numba_adam.interop import borrow
from numba_adam.numerics.formats import Format
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

    dtype: str
    """The format in which they travel: the model's dtype, "bfloat16" or "float16". 16-bit ones are bits, uint16."""

    rounds_to: Format | None = None
    """The 16-bit format to which the arrays are rounded while they are sent; None: they travel as they are."""

    def payload(self) -> Sequence[Array | Rounded]:
        """Return the arrays as they travel."""
        present = list(self.present.values())
        return present if self.rounds_to is None else [Rounded(array, self.rounds_to) for array in present]


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
    def element_count(self) -> int:
        """Number of elements of all arrays together."""
        return sum(map(math.prod, self.shapes.values()))

    def allocate(self, dtype: np.dtype[Any] | None = None) -> tuple[Array, Parameters]:
        """Allocate one flat vector; return it, and the model's arrays as views of it. `dtype`: None, the model's."""
        flat = np.empty(self.element_count, self.dtype if dtype is None else dtype)
        views, start = {}, 0
        for name, shape in self.shapes.items():
            stop = start + math.prod(shape)
            views[name] = flat[start:stop].reshape(shape)
            start = stop
        return flat, views

    def check_gradients(self, gradients: Mapping[str, object], wire: Format | None = None) -> Gradients:
        """Borrow the gradients and validate them. Those of the model's dtype travel in the format `wire`.

        If all of them are bfloat16, or all float16, they stay so. Otherwise 16-bit ones are widened here. An array with
        another order of axes than C order is copied.

        Raises:
            NamesError: a name of the model is missing, or the model does not have a given name.
            ShapeError: a shape differs from the model's.
            DtypeError: a dtype is neither the model's nor a 16-bit format.
            ArrayError: an array cannot be borrowed.
        """
        self.check_names("grads", gradients, missing="give None for an array without a gradient")
        present = {
            name: gradient if self._is_plain(gradient, shape) else self._checked_gradient(gradient, name)
            for name, shape in self.shapes.items()
            if (gradient := gradients[name]) is not None
        }
        narrow = self._unify(present)
        absent = tuple(name for name in self.shapes if gradients[name] is None)
        rounds_to = wire if narrow is None else None
        travels_as = rounds_to or narrow
        return Gradients(present, absent, self.dtype.name if travels_as is None else travels_as.label, rounds_to)

    def check_out(self, out: Mapping[str, object], argument: str = "out") -> Parameters:
        """Borrow the arrays that a pull writes to and validate them; they may be of any format.

        Raises:
            NamesError, ShapeError, ArrayError: as `check_gradients` does.
        """
        self.check_names(argument, out, missing="give an array for each")
        places = {name: f"{argument}[{name!r}]" for name in self.shapes}
        return {
            name: self._shaped(_borrow(out[name], place, writable=True), place, name) for name, place in places.items()
        }

    def check_like(self, like: Mapping[str, object]) -> None:
        """Check names and shapes of arrays that pulled parameters shall be like. They need no memory.

        Raises:
            NamesError: the names differ from the model's.
            ShapeError: a shape differs, or an object has none.
        """
        self.check_names("like", like, missing="give an array for each")
        for name, shape in self.shapes.items():
            given = getattr(like[name], "shape", None)
            if given is None or tuple(given) != shape:
                what = f"a {type(like[name]).__name__}" if given is None else str(tuple(given))
                raise ShapeError(f"like[{name!r}]: expected the model's shape {shape}, got {what}")

    def direct(self, views: Parameters) -> Parameters | None:
        """Return these arrays if a payload can be written to them as it is; otherwise None."""
        is_direct = self.is_plain(views) or common_narrow(list(views.values())) is not None
        return views if is_direct and all(view.flags.c_contiguous for view in views.values()) else None

    def is_plain(self, views: Parameters) -> bool:
        """Return whether all arrays have the model's dtype."""
        return all(view.dtype == self.dtype for view in views.values())

    def check_names(self, argument: str, given: Mapping[str, object], *, missing: str) -> None:
        """Raise NamesError if the names given are not those of the model."""
        if lacking := [name for name in self.shapes if name not in given]:
            raise NamesError(f"{argument} lacks {_listed(lacking)}; {missing}")
        if strange := [name for name in given if name not in self.shapes]:
            known = _listed(list(self.shapes))
            raise NamesError(f"{argument} has {_listed(strange)}, which the model does not; it has {known}")

    def _is_plain(self, gradient: object, shape: tuple[int, ...]) -> TypeGuard[Array]:
        """Return whether a gradient is a NumPy array that can be sent as it is: the usual case."""
        return (
            type(gradient) is np.ndarray
            and gradient.dtype == self.dtype
            and gradient.shape == shape
            and gradient.flags.carray
        )

    def _checked_gradient(self, gradient: object, name: str) -> Array:
        argument = f"grads[{name!r}]"
        view = self._shaped(_borrow(gradient, argument), argument, name)
        if view.dtype != self.dtype and not is_narrow(view):
            raise DtypeError(
                f"{argument}: expected the model's dtype {self.dtype}, bfloat16 or float16, got {view.dtype}; "
                "convert the array"
            )
        return _in_c_order(view)

    def _shaped(self, view: Array, argument: str, name: str) -> Array:
        if view.shape != self.shapes[name]:
            raise ShapeError(
                f"{argument}: expected the model's shape {self.shapes[name]}, got {view.shape}; reshape it"
            )
        return view

    def _unify(self, present: Parameters) -> Format | None:
        """Return the 16-bit format of all gradients; if they have several formats, widen them to the model's dtype."""
        if all(view.dtype == self.dtype for view in present.values()):
            return None
        narrow = common_narrow(list(present.values()))
        for name, view in present.items():
            if narrow is not None:
                present[name] = view.view(np.uint16)
            elif is_narrow(view):
                present[name] = widened(view, self.dtype)
        return narrow


def model_arrays_of(info: ModelInfo) -> ModelArrays:
    """Return the description of a model's arrays."""
    specs = {name: TensorSpec(name=name, shape=shape) for name, shape in info.shapes.items()}
    return ModelArrays(info.dtype, info.shapes, specs)


def check_initial(params: Mapping[str, object]) -> Parameters:
    """Borrow a new model's initial values; widen those in 16-bit formats.

    Raises:
        NamesError: a name has characters that cannot be printed.
        DtypeError: the arrays are not all of one dtype.
        ArrayError: an array cannot be borrowed.
    """
    if strange := [name for name in params if not name.isprintable()]:
        raise NamesError(f"params has {_listed(strange)}; use only printable characters in names")
    views = {name: _in_c_order(_borrow(array, f"params[{name!r}]")) for name, array in params.items()}
    wide = {name: view.dtype for name, view in views.items() if not is_narrow(view)}
    first = next(iter(wide), "")
    for name, dtype in wide.items():
        if dtype != wide[first]:
            raise DtypeError(
                f"params: expected one dtype for all arrays, got {dtype} for params[{name!r}] and {wide[first]} for "
                f"params[{first!r}]; convert one of them"
            )
    dtype = wide.get(first, np.dtype(np.float32))
    return {name: widened(view, dtype) if is_narrow(view) else view for name, view in views.items()}


def _borrow(array: object, argument: str, *, writable: bool = False) -> Array:
    return borrow(array, name=argument, writable=writable, narrow=True, any_order=True)


def _in_c_order(view: Array) -> Array:
    """Return a view in C order, or a copy; numpy.ascontiguousarray would give a scalar a dimension."""
    return view if view.flags.c_contiguous else np.ascontiguousarray(view)


def _listed(names: list[str], limit: int = 10) -> str:
    """Return the names as text for an error message: at most `limit` of them."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(map(repr, names[:limit])) + more
