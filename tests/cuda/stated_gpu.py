"""A fake GPU for tests that compile, link, cache and load kernels without a driver.

Of a driver it needs two answers: which compute capability the current GPU has, and that machine code was put there.
Both come from the context that Numba keeps for each thread, so that context is what stands here; it keeps the machine
code that it is given. Everything else is the real thing: Numba's compiler, NVVM, nvJitLink, Numba's caches, our files.
"""

from __future__ import annotations

import hashlib
from types import SimpleNamespace
from typing import Any

from numba.cuda.cudadrv import driver, nvvm

from numba_adam.cuda import seam

_images: list[bytes] = []  # machine code, as the driver would get it


def state(major: int = 9, minor: int = 0, *, refusals: int = 0) -> None:
    """Set the fake GPU's compute capability, and how many loads of machine code it refuses."""
    left = [refusals]

    def load(image: Any, *callbacks: object) -> Any:
        if left[0]:
            left[0] -= 1
            raise RuntimeError("CUDA_ERROR_INVALID_IMAGE")
        _images.append(bytes(getattr(image, "code", image)))
        module = SimpleNamespace(initialized=True)
        module.get_function = lambda name: SimpleNamespace(name=name, module=module)
        return module

    gpu = SimpleNamespace(id=0, compute_capability=(major, minor))
    seam.cuda.cudadrv.devices._runtime._set_attached_context(SimpleNamespace(device=gpu, create_module_image=load))


def forbid_compiling() -> None:
    """Make compiling and linking an error in this process."""

    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("nothing was to be compiled")

    nvvm.compile_ir = driver._Linker = refuse


def use(kernel: Any, arguments: tuple[str, ...]) -> tuple[int, int, str]:
    """Do the work of a first launch without the launch itself.

    Returns:
        how often the kernel was loaded from the folder, how often it was compiled, and a digest of its machine code.
    """
    kernel.compile(tuple(map(seam.type_of, arguments)))
    hits, misses = (sum(counter.values()) for counter in (kernel.stats.cache_hits, kernel.stats.cache_misses))
    return hits, misses, hashlib.sha256(_images[-1]).hexdigest()
