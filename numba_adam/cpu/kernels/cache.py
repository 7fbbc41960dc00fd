"""Where the machine code of the CPU's kernels is kept, and what it is valid for. Imports Numba."""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from typing import Any

import llvmlite
import numba
import numpy as np
from numba import types
from numba.core import caching, config

from numba_adam.cpu.kernels.vector_width import estimates_roots, prefetches_to_first_cache, wide_bits
from numba_adam.kernel_cache import location
from numba_adam.kernel_cache.files import FaultTolerant, Locator
from numba_adam.kernel_cache.notice import Notice
from numba_adam.kernel_cache.sources import CPU_KERNELS, Sources

# Environment settings that change the machine code and are in no key of Numba's.
_SETTINGS = ("OPT", "LOOP_VECTORIZE", "SLP_VECTORIZE", "BOUNDSCHECK", "DEBUGINFO_DEFAULT")

# Kernels that take long, by a part of their module's name: what messages call them, and seconds.
_KINDS = {".rows.": ("table", 4), ".mixed_formats": ("mixed-format", 12)}


@functools.cache
def sources() -> Sources:
    """Return what the machine code depends on besides the CPU, which is in Numba's own index."""
    settings = [f"{name}={getattr(config, name, None)}" for name in _SETTINGS]
    settings.append(f"vectors={wide_bits()}, estimated roots={estimates_roots()}")
    settings.append(f"prefetch to the first cache={prefetches_to_first_cache()}")
    return Sources(CPU_KERNELS, numba.__version__, llvmlite.__version__, np.__version__, *settings)


@functools.cache
def folder() -> Path | None:
    """Return the cache folder for these sources, created if necessary; None if no folder can be trusted."""
    return location.folder(sources(), config.CACHE_DIR)


class _Implementation(caching.CompileResultCacheImpl):  # type: ignore[misc]
    """Numba's implementation, in our folder: it ignores NUMBA_CACHE_LOCATOR_CLASSES, which would choose another one."""

    def __init__(self, py_func: Any) -> None:
        self._locator = Locator(folder(), sources())
        version = f"py{sys.version_info[0]}{sys.version_info[1]}{getattr(sys, 'abiflags', '')}"
        self._filename_base = f"{py_func.__module__.rpartition('.')[2]}.{py_func.__qualname__}.{version}"


_notice = Notice()


class _Announced:
    """A cache that says when a kernel is compiled because it is not there: a mixin."""

    _kernel: str  # the name of the kernel's module

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """Return a cached kernel; None if there is none, and it is compiled next."""
        loaded = super().load_overload(sig, target_context)  # type: ignore[misc]
        if loaded is None:
            what, seconds = _described(self._kernel, sig)
            _notice.begin(what, seconds, folder())
        return loaded

    def save_overload(self, sig: Any, data: Any) -> None:
        """Cache the kernel that was compiled."""
        _notice.end(_described(self._kernel, sig)[0])
        super().save_overload(sig, data)  # type: ignore[misc]


class KernelCache(_Announced, FaultTolerant, caching.FunctionCache):  # type: ignore[misc]
    """Numba's cache, in our folder."""

    _impl_class = _Implementation

    def __init__(self, py_func: Any) -> None:
        super().__init__(py_func)
        self._kernel = py_func.__module__


class NoCache(_Announced, caching.NullCache):  # type: ignore[misc]
    """The cache where no folder can keep anything."""

    def __init__(self, py_func: Any) -> None:
        self._kernel = py_func.__module__


def _described(module: str, signature: Any) -> tuple[str, int]:
    """Return what messages call a kernel, and about how many seconds all of its kind take on a core."""
    dtypes = (str(argument.dtype) for argument in signature if isinstance(argument, types.Array))
    dtype = next((name for name in dtypes if name in ("float32", "float64")), "")
    for part, (suffix, seconds) in _KINDS.items():
        if part in module:
            return f"{dtype} {suffix}".strip(), seconds
    return (dtype, 3) if dtype else ("first", 1)  # without one: the launch on several threads
