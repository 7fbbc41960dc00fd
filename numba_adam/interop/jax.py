"""Borrows JAX arrays on the CPU, which are always read-only. Does not import JAX. May import NumPy."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import numpy.typing as npt

from numba_adam.errors import UnsupportedArrayError
from numba_adam.interop.lender import FLOAT32, FLOAT64, Lender, wrong_dtype
from numba_adam.numerics.formats import format_of

_KIND = "JAX array"
_CONVERT = "x.astype(jnp.float32)"


def _owns(array: object) -> bool:
    jax = sys.modules.get("jax")
    kind = getattr(jax, "Array", None)
    return kind is not None and isinstance(array, kind)


def _lend(array: Any, name: str, narrow: bool) -> npt.NDArray[Any]:
    """Return a view of an array; refuse one that is not completely in this host's memory."""
    if isinstance(array, sys.modules["jax"].core.Tracer):
        raise UnsupportedArrayError(
            f"{name} is a JAX tracer, which has no values; borrow outside of jit, grad and vmap"
        )
    if array.dtype not in (FLOAT32, FLOAT64) and not (narrow and format_of(array.dtype) is not None):
        raise wrong_dtype(name, array.dtype, _KIND, _CONVERT, narrow=narrow)
    if array.is_deleted():
        raise UnsupportedArrayError(f"{name} ({_KIND}) was deleted or donated; keep a copy: x.copy()")
    devices = sorted(map(str, array.devices()))
    if len(devices) != 1 or next(iter(array.devices())).platform != "cpu":
        raise UnsupportedArrayError(
            f"{name} ({_KIND}) is on {', '.join(devices)}, expected a whole array in this host's memory; "
            "move it: jax.device_put(x, jax.devices('cpu')[0])"
        )
    return np.asarray(array)


def _make(array: npt.NDArray[Any]) -> Any:
    return sys.modules["jax"].numpy.asarray(array)


LENDER = Lender(kind=_KIND, owns=_owns, lend=_lend, convert=_CONVERT, compact="np.array(x, order='C')", make=_make)
