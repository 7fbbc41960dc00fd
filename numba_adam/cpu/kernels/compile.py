"""How every kernel is compiled: strict IEEE arithmetic, without the GIL, cached between processes. Imports Numba."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import config, njit
from numba.core.compiler import Compiler

from numba_adam.cpu.kernels import cache

if config.DISABLE_JIT:
    raise ImportError(
        "NUMBA_DISABLE_JIT is set: numba-adam's kernels work on addresses, which Python cannot, so they need Numba's "
        "compiler; unset it, or set NUMBA_DISABLE_JIT=0"
    )

# error_model: Python's check for division by zero would prevent vectorization.
# No fastmath, ever: it changes bits from CPU to CPU and deletes checks for NaN.
_OPTIONS = {"error_model": "numpy", "nogil": True}
# Only other kernels call these functions; without an entry point for Python they compile a third faster.
_INNER = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True, **_OPTIONS}


def inline(function: Callable[..., Any]) -> Any:
    """Compile a function that kernels call; LLVM decides whether to inline it."""
    return njit(**_INNER)(function)


def inlined(function: Callable[..., Any]) -> Any:
    """Compile a function that LLVM always inlines: one that costs less than passing its arguments."""
    return njit(forceinline=True, **_INNER)(function)


class _NoAlias(Compiler):  # type: ignore[misc]
    """Numba's compiler, with the promise that no two array arguments share memory."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.state.flags.noalias = True


def noalias(function: Callable[..., Any]) -> Any:
    """Compile like `inline` a function whose array arguments never share memory.

    Without this promise vector code tests for overlap before each loop, which costs a tenth where loops are short.
    """
    return njit(pipeline_class=_NoAlias, **_INNER)(function)


def noalias_inlined(function: Callable[..., Any]) -> Any:
    """Compile like `inlined` a function whose array arguments never share memory; see `noalias`."""
    return njit(forceinline=True, pipeline_class=_NoAlias, **_INNER)(function)


def merged(function: Callable[..., Any]) -> Any:
    """Inline a function's Numba IR into its callers, before anything is compiled.

    For functions without loops over elements that call functions with such loops: each level of `inline` optimizes
    everything below it once more. They must contain no whole-array expressions, which a parallel kernel turns into
    parallel loops.
    """
    return njit(inline="always", **_INNER)(function)


def kernel(function: Callable[..., Any]) -> Any:
    """Compile an entry point that runs on the calling thread."""
    return _cached(njit(**_OPTIONS)(function))


def parallel_kernel(function: Callable[..., Any]) -> Any:
    """Compile an entry point whose `prange` runs on Numba's threads; call it through `threads.launch`."""
    return _cached(njit(parallel=True, **_OPTIONS)(function))


def _cached(dispatcher: Any) -> Any:
    if cache.folder() is not None:
        dispatcher._cache = cache.KernelCache(dispatcher.py_func)
    return dispatcher
