"""Extends numba-cuda-mlir. `seam` imports this where that package is in use; this imports nothing of ours.

The compiler of version 0.6.0 types named tuples and reads their fields, but cannot make one in a kernel. This adds the
missing lowering, through the package's extension interface.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from numba_cuda_mlir import extending, types


def intrinsic(function: Callable[..., Any]) -> Any:
    """Return an intrinsic: a function that generates its own code. The running compiler is refreshed to know it."""
    made = extending.intrinsic(function)
    extending.refresh_registries()
    return made


def register_named_tuples(function: Callable[..., Any]) -> None:
    """Register with the compiler every named tuple that a function makes."""
    for name in function.__code__.co_names:
        kind = function.__globals__.get(name)
        if isinstance(kind, type) and issubclass(kind, tuple):
            _register(kind)


@functools.cache
def _register(kind: type) -> None:
    """Register how a named tuple is made: for this compiler it is the tuple of its fields' values."""

    @extending.lowering_registry.lower(kind, types.VarArg(types.Any))  # type: ignore[untyped-decorator, unused-ignore]
    def make(builder: Any, target: Any, args: Any, kwargs: Any) -> None:
        builder.store_var(target, tuple(builder.load_vars(args)))

    extending.refresh_registries()
