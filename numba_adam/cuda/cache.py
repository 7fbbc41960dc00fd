"""The on-disk cache of the GPU kernels' machine code. Imports Numba; `seam` passes in the CUDA package's classes.

The package's own cache names a file after the function, its source file and its line, and hashes the function's closure
into the file's index. Our kernels are closures of compiled functions, and these pickle differently in every process. So
here a file is named by the kernel's identity: its name, and every argument of its builder. The GPU's compute capability
and the toolkit's version are in the index, as in the package's own cache.
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
from numba_adam.kernel_cache.files import FaultTolerant, Locator
from numba_adam.kernel_cache.sources import GPU_KERNELS, Sources

_log = logging.getLogger("numba_adam")
_LIBRARIES = ("nvidia-nvvm", "nvidia-nvjitlink", "nvidia-cuda-nvrtc", "nvidia-cuda-nvcc", "pynvjitlink")
_COMPILERS = (
    "numba-cuda",
    "cuda-bindings",
    "cuda-core",
    *(f"{library}{suffix}" for library in _LIBRARIES for suffix in ("", "-cu12", "-cu13")),
)


@functools.cache
def sources() -> Sources:
    """Return what the machine code depends on, except the GPU and its toolkit."""
    versions = (numba.__version__, llvmlite.__version__, np.__version__, *map(_version, _COMPILERS))
    return Sources(GPU_KERNELS, *versions)


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "none"


@functools.cache
def folder() -> Path | None:
    """Return the folder for these sources, made if needed; None where no folder can be trusted."""
    return location.folder(sources(), config.CACHE_DIR)


def keep(dispatcher: Any, package: ModuleType, *identity: object) -> None:
    """Load a kernel from the folder at its first launch, or compile it and save it there.

    Args:
        dispatcher: the kernel, as the CUDA package made it.
        package: the module of the package's dispatchers and their caches.
        identity: the kernel's name, then everything it is compiled for.
    """
    made = _cache_class(package)
    if made is None or folder() is None:
        return
    # The environment can set options that change the machine code: debugging, link-time optimization.
    options = (sorted(dispatcher.targetoptions.items()), package.config.FORCE_CUDA_CC)
    digest = hashlib.sha256(repr((identity, options)).encode()).hexdigest()
    dispatcher._cache = made(dispatcher.py_func, f"{identity[0]}-{digest[:32]}")


class _Sealed:
    """Writes a kernel with a seal and checks that when it loads: mixed into the package's implementation."""

    def __init__(self, name: str) -> None:
        self._locator, self._filename_base = Locator(folder(), sources()), name

    def reduce(self, kernel: Any) -> dict[str, Any]:
        """Return what the file will contain."""
        states = super().reduce(kernel)  # type: ignore[misc]
        return {"states": states, "seal": self._seal(kernel, kernel.codegen)}

    def rebuild(self, target_context: Any, written: dict[str, Any]) -> Any:
        """Return the kernel, on the GPU.

        Raises:
            ValueError: the file is damaged, or another process has written another kernel there.
        """
        kernel = super().rebuild(target_context, written["states"])  # type: ignore[misc]
        if written["seal"] != self._seal(kernel, target_context.codegen()):
            raise ValueError(f"{self._filename_base} holds another kernel, or a damaged one")
        kernel.bind()  # here, so that machine code that the driver refuses costs a compilation and no step
        return kernel

    def _seal(self, kernel: Any, codegen: Any) -> str:
        """Return a digest of the machine code, its signature, and the GPU and toolkit that it is for."""
        made_for = (self._filename_base, codegen.magic_tuple(), kernel.entry_name, str(kernel.signature))
        digest = hashlib.sha256(repr(made_for).encode())
        for cubin in kernel.library._cubin_cache.values():
            digest.update(getattr(cubin, "code", cubin))
        return digest.hexdigest()


@functools.cache
def _cache_class(package: ModuleType) -> Any:
    """Return the package's cache, mixed with ours; None where it has none that fits."""
    try:
        implementation_class, cache_class = package.CUDACacheImpl, package.CUDACache
    except AttributeError as error:
        _log.warning("GPU kernels are compiled in every process: this CUDA package has no cache that fits (%s)", error)
        return None

    class Implementation(_Sealed, implementation_class):  # type: ignore[misc, valid-type]
        """The package's implementation, with a seal."""

    class KernelCache(FaultTolerant, cache_class):  # type: ignore[misc, valid-type]
        """The package's cache, in our folder."""

        def __init__(self, py_func: Any, name: str) -> None:
            self._impl_class = lambda _: Implementation(name)
            # The package's key is then of the bytecode alone: a closure pickles differently in every process.
            super().__init__(SimpleNamespace(__code__=py_func.__code__, __closure__=None))

    return KernelCache
