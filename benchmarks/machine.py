"""The hardware and software of a run: CPU, memory, system, versions. Imports none of the libraries that it lists."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

_ROOT = Path(__file__).resolve().parent.parent
_OWN_LIBRARIES = ("numba-adam", "numba", "llvmlite", "numpy", "grpcio", "protobuf", "xxhash")
_PEERS = ("torch", "deepspeed", "jax", "jaxlib", "optax", "bitsandbytes", "torchao")
_OURS = ("numba_adam", "server", "client", "proto", "benchmarks/*.py", "benchmarks/*/*.py", "pyproject.toml")


def machine() -> dict[str, str]:
    """Return a description of the hardware and the operating system."""
    return {
        "CPU": _cpu(),
        "kernels": _kernels(),
        "CPUs in all": str(os.cpu_count()),
        "cache": _caches(),
        "memory": f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 1e9:.1f} GB",
        "huge pages": _first_match(Path("/sys/kernel/mm/transparent_hugepage/enabled"), r"\[(\w+)\]"),
        "load before": f"{os.getloadavg()[0]:.2f} (others' work on this machine; a figure is worth little above 0.5)",
        "C++ compiler": _compiler(),
        "system": f"{_distribution()}, {platform.system()} {platform.release()} {platform.machine()}",
    }


def folder_name(cpu: str) -> str:
    """Return the name of the folder with the results of a CPU: "amd-epyc-25-17".

    Args:
        cpu: as `machine` describes it: "AMD EPYC (family 25, model 17, AVX-512)".
    """
    plain = re.sub(r"\((R|TM)\)|\bCPU\b|\bProcessor\b|AVX-512|\bfamily\b|\bmodel\b|@.*?(?= \()", " ", cpu)
    return "-".join(re.findall(r"[a-z0-9.]+", plain.lower())) or _UNKNOWN


def versions() -> dict[str, str]:
    """Return the versions of all libraries in the benchmarks, and our commit."""
    found = {"Python": platform.python_version()}
    for name in (*_OWN_LIBRARIES, *_PEERS):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return {**found, "commit": _commit()}


def _cpu() -> str:
    """Return the CPU's model name with its family and model numbers: "AMD EPYC" alone is ambiguous."""
    info = Path("/proc/cpuinfo")
    name = _first_match(info, r"^model name\s*:\s*(.+)$")
    family, model = _first_match(info, r"^cpu family\s*:\s*(\d+)$"), _first_match(info, r"^model\s*:\s*(\d+)$")
    wide = ", AVX-512" if "avx512f" in _first_match(info, r"^flags\s*:\s*(.+)$") else ""
    return f"{name} (family {family}, model {model}{wide})" if name != _UNKNOWN else platform.processor() or _UNKNOWN


_KERNELS = """
from llvmlite.binding import get_host_cpu_name
from numba_adam.cpu.kernels.vector_width import wide_bits
width = wide_bits()
print(get_host_cpu_name() + (f", vectors of {width} bits where they pay" if width else ", LLVM's own vector width"))
"""


def _kernels() -> str:
    """Return the CPU that LLVM compiles for, and the width of the vectors that our kernels choose."""
    command = [sys.executable, "-c", _KERNELS]
    run = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, check=False, timeout=600)
    return f"for {run.stdout.strip()}" if run.returncode == 0 else _UNKNOWN


def _compiler() -> str:
    """Return the C++ compiler that DeepSpeed and torchao find. They compile at their first use."""
    command = os.environ.get("CXX", "g++")
    try:
        run = subprocess.run([command, "--version"], capture_output=True, text=True, check=True, timeout=60)
    except (OSError, subprocess.CalledProcessError):
        return "none"
    return run.stdout.splitlines()[0].strip()


def _caches() -> str:
    """Return the sizes of the first CPU's caches: "L1d 32K, L2 1024K, L3 32768K"."""
    sizes = {}
    for folder in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        level, kind, size = ((folder / name).read_text().strip() for name in ("level", "type", "size"))
        sizes[f"L{level}{'' if kind == 'Unified' else kind[0].lower()}"] = size
    return ", ".join(f"{level} {size}" for level, size in sizes.items() if level != "L1i") or _UNKNOWN


def _distribution() -> str:
    return _first_match(Path("/etc/os-release"), r'^PRETTY_NAME="?([^"\n]+)')


_UNKNOWN = "unknown"


def _first_match(path: Path, pattern: str) -> str:
    try:
        match = re.search(pattern, path.read_text(), re.MULTILINE)
    except OSError:
        return _UNKNOWN
    return match[1].strip() if match else _UNKNOWN


def _commit() -> str:
    """Return the commit of our sources, and whether the sources differ from it."""
    try:
        commit = _git("rev-parse", "--short=12", "HEAD")
        changed = _git("status", "--porcelain", "--", *_OURS)
    except (OSError, subprocess.CalledProcessError):
        return _UNKNOWN
    return f"{commit} with changes" if changed else commit


def _git(*arguments: str) -> str:
    run = subprocess.run(["git", *arguments], cwd=_ROOT, capture_output=True, text=True, check=True, timeout=60)
    return run.stdout.strip()
