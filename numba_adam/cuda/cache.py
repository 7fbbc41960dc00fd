"""The GPU kernels' machine code, kept between processes. Imports Numba; `seam` hands it the CUDA package's classes.

The package's own cache names files after the function that is compiled, its file and its line, and puts a hash of what
the function's closure holds into their index. Our kernels are closures: one function for all layouts, and what they
hold is pickled differently in every process. So here the name is the kernel's identity: what it does, and all that its
builder was given. The GPU's compute capability and the toolkit's version are in the index, as in the package's cache.
"""

from __future__ import annotations

import functools
import hashlib
import logging
from importlib import metadata
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import llvmlite
import numba
import numpy as np
from numba.core import config

from numba_adam.kernel_cache import location
from numba_adam.kernel_cache.files import Forgiving, Place

_log = logging.getLogger("numba_adam")
_SOURCES = ("numerics/*.py",)
_CUDA_SOURCES = ("cuda/seam.py", "cuda/cache.py", "cuda/kernels/*.py")
_LIBRARIES = ("nvidia-nvvm", "nvidia-nvjitlink", "nvidia-cuda-nvrtc", "nvidia-cuda-nvcc", "pynvjitlink")
_COMPILERS = (
    "numba-cuda",
    "cuda-bindings",
    "cuda-core",
    *(f"{library}{suffix}" for library in _LIBRARIES for suffix in ("", "-cu12", "-cu13")),
)


@functools.cache
def sources() -> location.Sources:
    """Return what the machine code depends on beside the GPU and its toolkit, see above."""
    versions = (numba.__version__, llvmlite.__version__, np.__version__, *map(_version, _COMPILERS))
    return location.Sources(_SOURCES + _CUDA_SOURCES, *versions)


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "none"


@functools.cache
def folder() -> Path | None:
    """Return the folder for these sources, made if need be; None where there is none that can be trusted."""
    return location.folder(sources(), config.CACHE_DIR)


def keep(dispatcher: Any, package: ModuleType, *identity: object) -> None:
    """Have a kernel loaded from the folder, and kept there when it had to be compiled.

    Args:
        dispatcher: what the CUDA package made of it.
        package: the module that has the package's dispatchers and their caches.
        identity: all that tells it from other kernels; the first is its name.
    """
    made = _cache_class(package)
    if made is None or folder() is None:
        return
    # Options that change the machine code can come from the environment: debugging, link-time optimisation.
    options = (sorted(dispatcher.targetoptions.items()), package.config.FORCE_CUDA_CC)
    digest = hashlib.sha256(repr((identity, options)).encode()).hexdigest()
    dispatcher._cache = made(dispatcher.py_func, f"{identity[0]}-{digest[:32]}")


class _Sealed:
    """How a kernel becomes what is written: mixed into the package's implementation, and called by its cache."""

    def __init__(self, name: str) -> None:
        self._locator, self._filename_base = Place(folder(), sources()), name

    def reduce(self, kernel: Any) -> dict[str, Any]:
        """Return what is written."""
        states = super().reduce(kernel)  # type: ignore[misc]
        return {"states": states, "seal": self._seal(kernel, kernel.codegen)}

    def rebuild(self, target_context: Any, written: dict[str, Any]) -> Any:
        """Return the kernel, on the GPU.

        Raises:
            ValueError: it is damaged, or another process wrote its own in its place.
        """
        kernel = super().rebuild(target_context, written["states"])  # type: ignore[misc]
        if written["seal"] != self._seal(kernel, target_context.codegen()):
            raise ValueError(f"{self._filename_base} holds another kernel, or a damaged one")
        kernel.bind()  # what the driver refuses is to be refused here, where it costs a compilation
        return kernel

    def _seal(self, kernel: Any, codegen: Any) -> str:
        """Return a digest of the machine code, of what it is called with, and of what it is made for."""
        made_for = (self._filename_base, codegen.magic_tuple(), kernel.entry_name, str(kernel.signature))
        digest = hashlib.sha256(repr(made_for).encode())
        for cubin in kernel.library._cubin_cache.values():
            digest.update(getattr(cubin, "code", cubin))
        return digest.hexdigest()


@functools.cache
def _cache_class(package: ModuleType) -> Any:
    """Return the package's cache, mixed with ours; None where it has none that could be."""
    try:
        implementation_class, cache_class = package.CUDACacheImpl, package.CUDACache
    except AttributeError as error:
        _log.warning("GPU kernels are compiled in every process: this CUDA package has no cache that fits (%s)", error)
        return None

    class Implementation(_Sealed, implementation_class):  # type: ignore[misc, valid-type]
        """The package's implementation, with a seal."""

    class KernelCache(Forgiving, cache_class):  # type: ignore[misc, valid-type]
        """The package's cache, in our folder."""

        def __init__(self, py_func: Any, name: str) -> None:
            self._impl_class = lambda _: Implementation(name)
            # The package's key: of the bytecode, without the closure, whose pickle differs in every process.
            super().__init__(SimpleNamespace(__code__=py_func.__code__, __closure__=None))

    return KernelCache
