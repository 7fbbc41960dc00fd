"""The kernels' machine code, kept between processes: which sources and versions it is of. Imports Numba."""

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
from numba_adam.kernel_cache.files import Forgiving, Place

_SOURCES = ("numerics/*.py", "cpu/kernels/*.py", "rows/kernels/*.py")


# Settings from the environment that change the machine code, and that no key of Numba's has.
_SETTINGS = ("OPT", "LOOP_VECTORIZE", "SLP_VECTORIZE", "BOUNDSCHECK", "DEBUGINFO_DEFAULT")


@functools.cache
def sources() -> location.Sources:
    """Return what the machine code depends on beside the CPU, which Numba's index adds itself."""
    settings = (f"{name}={getattr(config, name, None)}" for name in _SETTINGS)
    return location.Sources(_SOURCES, numba.__version__, llvmlite.__version__, np.__version__, *settings)


@functools.cache
def folder() -> Path | None:
    """Return the folder for these sources, made if need be; None where there is none that can be trusted."""
    return location.folder(sources(), config.CACHE_DIR)


class _Implementation(caching.CompileResultCacheImpl):  # type: ignore[misc]
    """Numba's, in our folder: NUMBA_CACHE_LOCATOR_CLASSES, which would choose another one, is not asked."""

    def __init__(self, py_func: Any) -> None:
        self._locator = Place(folder(), sources())
        version = f"py{sys.version_info[0]}{sys.version_info[1]}{getattr(sys, 'abiflags', '')}"
        self._filename_base = f"{py_func.__module__.rpartition('.')[2]}.{py_func.__qualname__}.{version}"


class KernelCache(Forgiving, caching.FunctionCache):  # type: ignore[misc]
    """Numba's cache in our folder."""

    _impl_class = _Implementation
