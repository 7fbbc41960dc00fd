"""The kernels' machine code, kept between processes: which sources and versions it is of. Imports Numba."""

from __future__ import annotations

import functools
from pathlib import Path

import llvmlite
import numba
import numpy as np
from numba.core import caching, config

from numba_adam import code_folder
from numba_adam.code_files import Forgiving, Place

_SOURCES = ("element.py", "folding.py", "codecs.py", "formats.py", "eight_bit.py", "binding.py", "kernels/*.py")


@functools.cache
def fingerprint() -> str:
    """Return a digest of all that the machine code depends on beside the CPU, which Numba's index adds itself."""
    return code_folder.fingerprint(_SOURCES, numba.__version__, llvmlite.__version__, np.__version__)


@functools.cache
def folder() -> Path | None:
    """Return the folder for this fingerprint, made if need be; None where no safe place can be written to."""
    return code_folder.folder(fingerprint(), config.CACHE_DIR)


class _Locator(Place, caching._CacheLocator):  # type: ignore[misc]
    """Points Numba's cache at our folder."""

    def __init__(self, py_func: object, py_file: str) -> None:
        super().__init__(folder(), fingerprint())
        self._py_file = py_file

    @classmethod
    def from_function(cls, py_func: object, py_file: str) -> _Locator:
        return cls(py_func, py_file)

    def get_disambiguator(self) -> str:
        return Path(self._py_file).stem


class _Implementation(caching.CompileResultCacheImpl):  # type: ignore[misc]
    _locator_classes = (_Locator,)


class KernelCache(Forgiving, caching.FunctionCache):  # type: ignore[misc]
    """Numba's cache in our folder."""

    _impl_class = _Implementation
