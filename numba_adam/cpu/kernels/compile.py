"""How every kernel is compiled: strict IEEE arithmetic, without the GIL, cached between processes. Imports Numba."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import config, njit
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import Compiler, Flags

from numba_adam.cpu.kernels import cache
from numba_adam.cpu.kernels.collector import paused
from numba_adam.cpu.kernels.pipeline import kernel_pipeline

if config.DISABLE_JIT:
    raise ImportError(
        "NUMBA_DISABLE_JIT is set: numba-adam's kernels work on addresses, which Python cannot, so they need Numba's "
        "compiler; unset it, or set NUMBA_DISABLE_JIT=0"
    )

# error_model: Python's check for division by zero would prevent vectorization.
# No fastmath, ever: it changes bits from CPU to CPU and deletes checks for NaN.
_OPTIONS = {"error_model": "numpy", "nogil": True, "no_cfunc_wrapper": True}
# Only other kernels call these functions: they need no entry point for Python.
_INNER = {"no_cpython_wrapper": True, **_OPTIONS}
# Arrays made of addresses own no memory: without Numba's counts of references there is less to compile.
_UNCOUNTED = {"_nrt": False}


class _Flags(Flags):  # type: ignore[misc]
    """Numba's options of a compilation, compared faster: Numba compares them for each operation of each function."""

    _hash = hash(tuple(sorted(Flags.options)))

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Flags) and self._values == other._values:  # those that are set
            return True
        return bool(super().__eq__(other))


class _Kernel(Compiler):  # type: ignore[misc]
    """Numba's compiler for what Python calls."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.state.flags = _Flags(self.state.flags)

    def compile_extra(self, func: Any) -> Any:
        """Compile a function."""
        with paused():
            return super().compile_extra(func)

    def define_pipelines(self) -> list[Any]:
        """Return the passes to run."""
        return [kernel_pipeline()]


class _InnerLibrary(JITCodeLibrary):  # type: ignore[misc]
    """The code of a function that only kernels call: neither optimized nor made into machine code by itself.

    The kernel that calls it is optimized as a whole. Numba would do all this for each function first, and once more
    for each of its callers.
    """

    def _optimize_functions(self, ll_module: Any) -> None:
        ll_module.data_layout = self._codegen._data_layout

    def _optimize_final_module(self) -> None:
        pass

    def _finalize_final_module(self) -> None:
        self._finalize_dynamic_globals()
        self._finalized = True

    def get_pointer_to_function(self, name: str) -> int:
        """Return 0: there is no machine code."""
        self._ensure_finalized()
        return 0


class _WithoutEnvironments:
    """Numba's code generator for a library without machine code, which has no place for a function's environment."""

    def __init__(self, codegen: Any) -> None:
        self._codegen = codegen

    def __getattr__(self, name: str) -> Any:
        return getattr(self._codegen, name)

    def set_env(self, name: str, environment: Any) -> None:
        """Do nothing: compiled arithmetic reads no environment."""


class _Inner(_Kernel):
    """Numba's compiler for functions that only kernels call."""

    noalias = False

    def __init__(self, typingctx: Any, targetctx: Any, library: Any, *rest: Any) -> None:
        if library is None:
            library = _InnerLibrary(_WithoutEnvironments(targetctx.codegen()), "inner")
            library.enable_object_caching()
        super().__init__(typingctx, targetctx, library, *rest)
        self.state.flags.noalias = self.noalias


class _InnerNoAlias(_Inner):
    """The same, with the promise that no two array arguments share memory."""

    noalias = True


class _CalledNoAlias(_InnerNoAlias):
    """The same, for functions that are never inlined."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.state.flags.forceinline = False


def inline(function: Callable[..., Any]) -> Any:
    """Compile a function that kernels call; LLVM decides whether to inline it."""
    return njit(pipeline_class=_Inner, **_UNCOUNTED, **_INNER)(function)


def inlined(function: Callable[..., Any]) -> Any:
    """Compile a function that LLVM always inlines: one that costs less than passing its arguments."""
    return njit(forceinline=True, pipeline_class=_Inner, **_UNCOUNTED, **_INNER)(function)


def array_inline(function: Callable[..., Any]) -> Any:
    """Compile like `inline` a function that returns an array, or makes one."""
    return njit(pipeline_class=_Inner, _nrt=True, **_INNER)(function)


def array_inlined(function: Callable[..., Any]) -> Any:
    """Compile like `inlined` a function that returns an array, or makes one."""
    return njit(forceinline=True, pipeline_class=_Inner, _nrt=True, **_INNER)(function)


def noalias(function: Callable[..., Any]) -> Any:
    """Compile like `inline` a function whose array arguments never share memory.

    Without this promise vector code tests for overlap before each loop, which costs a tenth where loops are short.
    """
    return njit(pipeline_class=_InnerNoAlias, **_UNCOUNTED, **_INNER)(function)


def noalias_inlined(function: Callable[..., Any]) -> Any:
    """Compile like `inlined` a function whose array arguments never share memory; see `noalias`."""
    return njit(forceinline=True, pipeline_class=_InnerNoAlias, **_UNCOUNTED, **_INNER)(function)


def noalias_called(function: Callable[..., Any]) -> Any:
    """Compile like `noalias` a function that calls `stay_called`, so that LLVM never inlines it.

    Numba also inlines what `inlined` functions call, so early that LLVM loses the promise: each loop tests again
    whether its arrays overlap. In a call the promise is kept.
    """
    return njit(pipeline_class=_CalledNoAlias, **_UNCOUNTED, **_INNER)(function)


def merged(function: Callable[..., Any]) -> Any:
    """Inline a function's Numba IR into its callers, before anything is compiled.

    For functions without loops over elements that call functions with such loops: each level of `inline` optimizes
    everything below it once more. They must contain no whole-array expressions, which a parallel kernel turns into
    parallel loops.
    """
    return njit(inline="always", **_INNER)(function)


def kernel(function: Callable[..., Any]) -> Any:
    """Compile an entry point that runs on the calling thread."""
    return _cached(njit(pipeline_class=_Kernel, **_UNCOUNTED, **_OPTIONS)(function))


def parallel_kernel(function: Callable[..., Any]) -> Any:
    """Compile an entry point whose `prange` runs on Numba's threads; call it through `threads.launch`."""
    return _cached(njit(parallel=True, **_OPTIONS)(function))


def _cached(dispatcher: Any) -> Any:
    made = cache.NoCache if cache.folder() is None else cache.KernelCache
    dispatcher._cache = made(dispatcher.py_func)
    return dispatcher
