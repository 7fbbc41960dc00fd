"""Where the machine code of the CPU's kernels is kept, and what it is valid for. Imports Numba."""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from typing import Any

import llvmlite
import numba
import numpy as np
from numba.core import caching, config

from numba_adam.kernel_cache import location
from numba_adam.kernel_cache.files import FaultTolerant, Locator
from numba_adam.kernel_cache.sources import CPU_KERNELS, Sources

# Environment settings that change the machine code and are in no key of Numba's.
_SETTINGS = ("OPT", "LOOP_VECTORIZE", "SLP_VECTORIZE", "BOUNDSCHECK", "DEBUGINFO_DEFAULT")


@functools.cache
def sources() -> Sources:
    """Return what the machine code depends on besides the CPU, which is in Numba's own index."""
    settings = (f"{name}={getattr(config, name, None)}" for name in _SETTINGS)
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


class KernelCache(FaultTolerant, caching.FunctionCache):  # type: ignore[misc]
    """Numba's cache, in our folder."""

    _impl_class = _Implementation
