"""What `numba-adam doctor` looks at: one function for each subject, each returning what it found.

A subject whose examination itself fails is reported as broken; it never ends the others. May import anything the
library may, inside the functions.
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
    """What was looked at."""

    found: str
    """What was found, in words."""

    broken: bool = False
    """True when numba-adam cannot do its work like this."""

    advice: str = ""
    """What to do, or what it means; empty when there is nothing to say."""


def examine() -> list[Finding]:
    """Look at everything, in the order in which a person would ask."""
    return [_guarded(subject, look) for subject, look in _SUBJECTS.items()]


def _guarded(subject: str, look: Callable[[str], Finding]) -> Finding:
    """Run one examination; what it raises is its finding."""
    try:
        return look(subject)
    except Exception as error:
        return Finding(
            subject, f"{type(error).__name__}: {error}", True, "please report this with the output of --json"
        )


def _python(subject: str) -> Finding:
    found = f"{platform.python_implementation()} {platform.python_version()} on {platform.platform()}"
    return Finding(subject, found, sys.version_info < (3, 11), "" if sys.version_info >= (3, 11) else "install 3.11")


def _own_version(subject: str) -> Finding:
    import numba_adam

    return Finding(subject, f"{numba_adam.__version__} in {Path(numba_adam.__file__).parent}")


def _required(module: str) -> Callable[[str], Finding]:
    """Return an examination of a package that numba-adam cannot do without."""

    def look(subject: str) -> Finding:
        try:
            import_module(module)
        except ImportError as error:
            return Finding(subject, f"cannot be imported: {error}", True, f"pip install --force-reinstall {subject}")
        return Finding(subject, metadata.version(subject))

    return look


def _optional(extra: str, modules: dict[str, str]) -> Callable[[str], Finding]:
    """Return an examination of the packages of one extra: not installed is no fault, half installed is."""

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
            return Finding(subject, "not installed", False, f"if you want it: {install}")
        return Finding(
            subject, f"{', '.join(present)}; without {', '.join(missing)}", False, f"to complete it: {install}"
        )

    return look


def _processor(subject: str) -> Finding:
    """Return the CPU and vector width that the kernels are compiled for."""
    from llvmlite import binding

    enabled = {name for name, on in binding.get_host_cpu_features().items() if on}
    bits = next((bits for name, bits in _SIMD_BITS if name in enabled), 0)
    # NUMBA_CPU_NAME and NUMBA_CPU_FEATURES replace what LLVM sees.
    name = os.environ.get("NUMBA_CPU_NAME") or binding.get_host_cpu_name()
    forced = " (NUMBA_CPU_NAME)" if "NUMBA_CPU_NAME" in os.environ else ""
    return Finding(subject, f"{name}{forced}, {bits}-bit SIMD, {_usable_cores()} cores for this process")


def _usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


def _update(subject: str) -> Finding:
    """Run one real update, large enough for all threads, and compare it with the same thing done by NumPy."""
    import numpy as np

    import numba_adam as na

    gradient = np.linspace(0.5, 1.5, 1_000_000, dtype=np.float32)
    gradient[::2] *= -1
    param, exp_avg, exp_avg_sq = np.zeros_like(gradient), np.zeros_like(gradient), np.zeros_like(gradient)
    na.adam_update(param, gradient, exp_avg, exp_avg_sq, step=1, lr=0.5)
    # On the first step the corrected moments are the gradient and its square: every step is lr against its sign.
    wrong = int(np.count_nonzero(np.abs(param + 0.5 * np.sign(gradient)) > 1e-5))
    if wrong:
        return Finding(subject, f"{wrong} of {param.size} elements are wrong", True, "empty the cache folder below")
    return Finding(subject, f"{param.size} elements updated, as they should be")


def _threads(subject: str) -> Finding:
    """Return the threading layer; known only after a parallel launch, so this comes after `_update`."""
    from numba_adam.cpu.kernels.threads import thread_count, threading_layer

    layer = threading_layer()
    advice = ""
    if layer == "workqueue":
        advice = "works; with an OpenMP runtime (Debian: libgomp1) small updates start sooner"
    return Finding(subject, f"{thread_count()} threads, layer {layer or 'not chosen yet'}", False, advice)


def _memory(subject: str) -> Finding:
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():
        return Finding(subject, "cannot be seen on this system")
    fields = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in meminfo.read_text().splitlines()}
    available = fields["MemAvailable"]
    # Adam in float32: parameter, gradient and two moments, 4 bytes each.
    found = f"{bytes_in_words(available)} available of {bytes_in_words(fields['MemTotal'])}"
    return Finding(subject, f"{found}, enough for {available // 16 / 1e9:.2f} billion float32 parameters")


def _gpu(subject: str) -> Finding:
    """Ask NVIDIA's driver library itself; no CUDA package is needed to know whether a GPU is there."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return Finding(subject, "none seen (no NVIDIA driver); updates run on the CPU")
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0 or count.value == 0:
        return Finding(subject, "an NVIDIA driver is installed, but it offers no GPU; updates run on the CPU")
    name = ctypes.create_string_buffer(256)
    driver.cuDeviceGetName(name, len(name), 0)
    seen = f"{count.value} seen, the first is {name.value.decode()}"
    return Finding(subject, f"{seen}; arrays are updated where they lie ({installing.advice('cuda')})")


def _cache(subject: str) -> Finding:
    """Return where compiled kernels are kept, if there is such a place."""
    from numba_adam.cpu.kernels import cache

    folder = cache.folder()
    if folder is None:
        advice = "kernels are compiled anew in every process; set NUMBA_CACHE_DIR to a folder of your own"
        return Finding(subject, "no folder can be written to", False, advice)
    return Finding(subject, f"{folder}, writable")


_SUBJECTS: dict[str, Callable[[str], Finding]] = {
    "python": _python,
    "numba-adam": _own_version,
    "numpy": _required("numpy"),
    "numba": _required("numba"),
    "llvmlite": _required("llvmlite"),
    "processor": _processor,
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
