"""What numba-cuda-mlir has to be told. `seam` imports this where that is the package taken; it imports nothing of ours.

The compiler of its version 0.6.0 knows the types of named tuples and reads their fields, but cannot make one within a
kernel. How that is done is said here, by the means that it has for extensions.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from numba_cuda_mlir import extending, types


def intrinsic(function: Callable[..., Any]) -> Any:
    """Return a function that writes its own code. A compiler that is at work already has to be told of it."""
    made = extending.intrinsic(function)
    extending.refresh_registries()
    return made


def tell_named_tuples(function: Callable[..., Any]) -> None:
    """Tell the compiler how the named tuples are made that a function names."""
    for name in function.__code__.co_names:
        kind = function.__globals__.get(name)
        if isinstance(kind, type) and issubclass(kind, tuple):
            _tell(kind)


@functools.cache
def _tell(kind: type) -> None:
    """Say how a named tuple is made: to this compiler it is the tuple of its fields' values."""

    @extending.lowering_registry.lower(kind, types.VarArg(types.Any))  # type: ignore[untyped-decorator, unused-ignore]
    def make(builder: Any, target: Any, args: Any, kwargs: Any) -> None:
        builder.store_var(target, tuple(builder.load_vars(args)))

    extending.refresh_registries()
