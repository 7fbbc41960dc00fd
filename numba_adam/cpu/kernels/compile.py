"""How every kernel is compiled: strict IEEE arithmetic, without the GIL, kept between processes. Imports Numba."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import config, njit
from numba.core.compiler import Compiler

from numba_adam.cpu.kernels import cache
from numba_adam.numerics.bind import bind

__all__ = ["bind", "inline", "kernel", "parallel_kernel"]

if config.DISABLE_JIT:
    raise ImportError(
        "NUMBA_DISABLE_JIT is set: numba-adam's kernels work on addresses, which Python cannot, so they need Numba's "
        "compiler; unset it, or set NUMBA_DISABLE_JIT=0"
    )

# error_model: Python's check for division by zero would keep the loops from being vectorised.
# No fastmath, ever: it changes bits from CPU to CPU and deletes checks for NaN.
_OPTIONS = {"error_model": "numpy", "nogil": True}


def inline(function: Callable[..., Any]) -> Any:
    """Compile a function that only other kernels call; Python cannot, which saves a third of the compile time."""
    return njit(no_cpython_wrapper=True, no_cfunc_wrapper=True, **_OPTIONS)(function)


def inlined(function: Callable[..., Any]) -> Any:
    """Compile a function into each that calls it: for those that cost less than handing them their arguments."""
    return njit(forceinline=True, no_cpython_wrapper=True, no_cfunc_wrapper=True, **_OPTIONS)(function)


class _Apart(Compiler):  # type: ignore[misc]
    """Numba's own compiler, told that no two arrays of the arguments share memory."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.state.flags.noalias = True


def apart(function: Callable[..., Any]) -> Any:
    """Compile as `inline` does a function whose arrays never share memory.

    Otherwise vector code asks before each loop whether they do, which costs a tenth where loops are short.
    """
    return njit(no_cpython_wrapper=True, no_cfunc_wrapper=True, pipeline_class=_Apart, **_OPTIONS)(function)


def apart_inlined(function: Callable[..., Any]) -> Any:
    """Compile as `inlined` does a function whose arrays never share memory; see `apart`."""
    options = {"forceinline": True, "no_cpython_wrapper": True, "no_cfunc_wrapper": True, "pipeline_class": _Apart}
    return njit(**options, **_OPTIONS)(function)


def merged(function: Callable[..., Any]) -> Any:
    """Put a function's program into each that calls it, before anything is compiled.

    For those that hold no loops over elements but call functions that do: each level of `inline` optimises all that
    lies below once more. They must hold no expressions of whole arrays: in a parallel kernel these become loops of its
    own.
    """
    return njit(inline="always", no_cpython_wrapper=True, no_cfunc_wrapper=True, **_OPTIONS)(function)


def kernel(function: Callable[..., Any]) -> Any:
    """Compile an entry point that runs on the calling thread."""
    return _cached(njit(**_OPTIONS)(function))


def parallel_kernel(function: Callable[..., Any]) -> Any:
    """Compile an entry point whose `prange` runs on Numba's threads; call it through `threads.launch_lock`."""
    return _cached(njit(parallel=True, **_OPTIONS)(function))


def _cached(dispatcher: Any) -> Any:
    if cache.folder() is not None:
        dispatcher._cache = cache.KernelCache(dispatcher.py_func)
    return dispatcher
