"""The GPU, its driver, and the versions of all that takes part."""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata

from benchmarks.gpu.device import description
from benchmarks.gpu.journal import Finding
from benchmarks.gpu.stages import Item
from numba_adam.cuda import seam

_PACKAGES = (
    *("numba-adam", "numba", "numba-cuda", "numba-cuda-mlir", "llvmlite", "numpy", "torch", "triton"),
    *("cupy-cuda12x", "cupy-cuda13x", "jax", "apex", "bitsandbytes", "cuda-bindings", "cuda-core"),
)
_QUERY = "name,driver_version,memory.total,clocks.max.memory,clocks.max.sm,ecc.mode.current,mig.mode.current"


def items() -> Iterator[Item]:
    """Return the questions about the machine."""
    yield Item("the machine", _machine)


def _machine() -> Finding:
    found = {**description(), "CUDA package": seam.PACKAGE, "Python": sys.version.split()[0]}
    found |= {"system": platform.platform(), "nvidia-smi": _nvidia_smi()}
    found |= {name: version for name in _PACKAGES if (version := _version(name)) is not None}
    return Finding(", ".join(f"{key} {value}" for key, value in found.items()), None, dict(found))


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _nvidia_smi() -> str:
    command = shutil.which("nvidia-smi")
    if command is None:
        return "not found"
    query = [command, f"--query-gpu={_QUERY}", "--format=csv,noheader"]
    run = subprocess.run(query, capture_output=True, text=True, check=False, timeout=30)
    lines = run.stdout.strip().splitlines()
    return lines[0] if run.returncode == 0 and lines else "no answer"
