"""The checks of `numba-adam doctor`: one function for each subject. Each returns a `Finding`.

A check that raises is reported as broken, and the other checks still run. May import anything that the library may
import, inside the functions.
"""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from collections.abc import Callable
from importlib import import_module, metadata
from pathlib import Path
from typing import NamedTuple

from numba_adam import installing
from numba_adam.cli.connection import bytes_in_words

_SIMD_BITS = (("avx512f", 512), ("avx2", 256), ("avx", 256), ("sse2", 128), ("neon", 128))


class Finding(NamedTuple):
    """One line of the report."""

    subject: str
    """What was checked."""

    found: str
    """What was found, in words."""

    broken: bool = False
    """True if numba-adam cannot work."""

    advice: str = ""
    """What to do, or what the finding means. May be empty."""


def examine() -> list[Finding]:
    """Run all checks, in the order of the report."""
    return [_guarded(subject, look) for subject, look in _SUBJECTS.items()]


def _guarded(subject: str, look: Callable[[str], Finding]) -> Finding:
    """Run one check. If it raises, return the error as a broken finding."""
    try:
        return look(subject)
    except Exception as error:
        return Finding(
            subject,
            f"{type(error).__name__}: {error}",
            True,
            "report this, with the output of numba-adam doctor --json",
        )


def _python(subject: str) -> Finding:
    found = f"{platform.python_implementation()} {platform.python_version()} on {platform.platform()}"
    return Finding(subject, found, sys.version_info < (3, 11), "" if sys.version_info >= (3, 11) else "install 3.11")


def _own_version(subject: str) -> Finding:
    import numba_adam

    return Finding(subject, f"{numba_adam.__version__} in {Path(numba_adam.__file__).parent}")


def _required(module: str) -> Callable[[str], Finding]:
    """Return a check of a package that numba-adam requires."""

    def look(subject: str) -> Finding:
        try:
            import_module(module)
        except ImportError as error:
            return Finding(subject, f"cannot be imported: {error}", True, f"pip install --force-reinstall {subject}")
        return Finding(subject, metadata.version(subject))

    return look


def _optional(extra: str, modules: dict[str, str]) -> Callable[[str], Finding]:
    """Return a check of the packages of one extra. Each may be missing; the finding says how to install it."""

    def look(subject: str) -> Finding:
        present, missing = [], []
        for distribution, module in modules.items():
            try:
                import_module(module)
                present.append(f"{distribution} {metadata.version(distribution)}")
            except ImportError:
                missing.append(distribution)
        install = installing.advice(extra)
        if not missing:
            return Finding(subject, ", ".join(present))
        if not present:
            return Finding(subject, "not installed", False, f"to install it: {install}")
        return Finding(
            subject, f"{', '.join(present)}; missing: {', '.join(missing)}", False, f"to complete it: {install}"
        )

    return look


def _processor(subject: str) -> Finding:
    """Return the CPU and the vector width that the kernels are compiled for."""
    from llvmlite import binding

    enabled = {name for name, on in binding.get_host_cpu_features().items() if on}
    bits = next((bits for name, bits in _SIMD_BITS if name in enabled), 0)
    # NUMBA_CPU_NAME replaces the name that LLVM detects.
    name = os.environ.get("NUMBA_CPU_NAME") or binding.get_host_cpu_name()
    forced = " (NUMBA_CPU_NAME)" if "NUMBA_CPU_NAME" in os.environ else ""
    return Finding(subject, f"{name}{forced}, {bits}-bit SIMD, {_usable_cores()} cores for this process")


def _vectors(subject: str) -> Finding:
    """Return the width of the kernels' vectors, and how they compute roots."""
    from numba_adam.cpu.kernels.vector_width import MEASURED, estimates_roots, wide_bits

    if not wide_bits():
        return Finding(subject, "LLVM chooses the width in all kernels")
    wide = ", ".join(kind for kind, measured in MEASURED.items() if measured.is_wide)
    widths = f"{wide_bits()} bits in the kernels for {wide}; LLVM chooses the width in the others"
    estimated = "one float32 root in four is estimated" if estimates_roots() else "no roots are estimated"
    return Finding(subject, f"{widths}; {estimated}")


def _usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


def _update(subject: str) -> Finding:
    """Run one update that is large enough for all threads, and compare it with NumPy."""
    import numpy as np

    import numba_adam as na

    gradient = np.linspace(0.5, 1.5, 1_000_000, dtype=np.float32)
    gradient[::2] *= -1
    param, exp_avg, exp_avg_sq = np.zeros_like(gradient), np.zeros_like(gradient), np.zeros_like(gradient)
    na.adam_update(param, gradient, exp_avg, exp_avg_sq, step=1, lr=0.5)
    # After bias correction, step 1 has the moments g and g**2: each element moves by -lr * sign(g).
    wrong = int(np.count_nonzero(np.abs(param + 0.5 * np.sign(gradient)) > 1e-5))
    if wrong:
        return Finding(
            subject,
            f"{wrong} of {param.size} elements are wrong",
            True,
            "delete the files in the kernel cache folder below, and run this again",
        )
    return Finding(subject, f"{param.size} elements updated; the result is right")


def _threads(subject: str) -> Finding:
    """Return the threading layer. It is known only after a parallel launch, so this check follows `_update`."""
    from numba_adam.cpu.kernels.threads import thread_count, threading_layer

    layer = threading_layer()
    advice = ""
    if layer == "workqueue":
        advice = "works; small updates are faster with an OpenMP runtime (Debian: libgomp1)"
    return Finding(subject, f"{thread_count()} threads, layer {layer or 'not chosen yet'}", False, advice)


def _memory(subject: str) -> Finding:
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():
        return Finding(subject, "unknown on this system")
    fields = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in meminfo.read_text().splitlines()}
    available = fields["MemAvailable"]
    # Adam in float32: parameter, gradient and two moments, 4 bytes each.
    found = f"{bytes_in_words(available)} available of {bytes_in_words(fields['MemTotal'])}"
    return Finding(subject, f"{found}, enough for {available // 16 / 1e9:.2f} billion float32 parameters")


def _gpu(subject: str) -> Finding:
    """Look for a GPU with NVIDIA's driver library. This needs no CUDA package."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return Finding(subject, "none found (no NVIDIA driver); updates run on the CPU")
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0 or count.value == 0:
        return Finding(subject, "none found (an NVIDIA driver is installed); updates run on the CPU")
    name = ctypes.create_string_buffer(256)
    driver.cuDeviceGetName(name, len(name), 0)
    seen = f"{count.value} found, the first is {name.value.decode()}"
    return Finding(subject, f"{seen}; to update arrays on a GPU: {installing.advice('cuda')}")


def _cache(subject: str) -> Finding:
    """Return the folder of the kernel cache, if there is one."""
    from numba_adam.cpu.kernels import cache

    folder = cache.folder()
    if folder is None:
        advice = "every process compiles the kernels again; set NUMBA_CACHE_DIR to a writable folder"
        return Finding(subject, "no writable folder", False, advice)
    return Finding(subject, f"{folder}, writable")


_SUBJECTS: dict[str, Callable[[str], Finding]] = {
    "python": _python,
    "numba-adam": _own_version,
    "numpy": _required("numpy"),
    "numba": _required("numba"),
    "llvmlite": _required("llvmlite"),
    "processor": _processor,
    "vectors": _vectors,
    "update": _update,
    "threads": _threads,
    "kernel cache": _cache,
    "memory": _memory,
    "gpu": _gpu,
    "client extra": _optional("client", {"grpcio": "grpc", "protobuf": "google.protobuf", "xxhash": "xxhash"}),
    "server extra": _optional(
        "server",
        {
            "grpcio-health-checking": "grpc_health.v1.health_pb2",
            "grpcio-reflection": "grpc_reflection.v1alpha.reflection",
            "google-crc32c": "google_crc32c",
        },
    ),
    "demo extra": _optional("demo", {"scikit-learn": "sklearn", "matplotlib": "matplotlib"}),
}
