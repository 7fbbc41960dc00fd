"""Prints and saves a report: comparisons of bits, timings, and the machine."""

from __future__ import annotations

import datetime
import json
import platform
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

from benchmarks.gpu.correctness import Finding
from benchmarks.gpu.device import description
from benchmarks.gpu.kept import Kept
from benchmarks.gpu.speed import Timing
from numba_adam.cuda import seam

RESULTS = Path(__file__).resolve().parent.parent / "results"
_PACKAGES = ("numba-adam", "numba", "numba-cuda", "numba-cuda-mlir", "numpy", "torch", "apex", "bitsandbytes")


@dataclass(frozen=True)
class Report:
    """One run."""

    when: str
    machine: dict[str, str]
    kernels: Sequence[Kept]  # none in the simulator
    findings: Sequence[Finding]
    timings: Sequence[Timing]


def made_of(kernels: Sequence[Kept], findings: Sequence[Finding], timings: Sequence[Timing]) -> Report:
    """Return the report of a run that has just ended."""
    return Report(datetime.datetime.now(datetime.UTC).date().isoformat(), machine(), kernels, findings, timings)


def machine() -> dict[str, str]:
    """Return a description of the machine and the software."""
    found = {**description(), "driver": _driver(), "CUDA package": seam.PACKAGE, "Python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def _driver() -> str:
    command = shutil.which("nvidia-smi")
    if command is None:
        return "unknown"
    query = [command, "--query-gpu=driver_version,clocks.max.memory", "--format=csv,noheader"]
    run = subprocess.run(query, capture_output=True, text=True, check=False, timeout=30)
    return run.stdout.strip().splitlines()[0] if run.returncode == 0 and run.stdout.strip() else "unknown"


def text(report: Report) -> str:
    """Return the report as readable text."""
    lines = [f"numba-adam on a GPU, {report.when}", ""]
    lines += [f"  {key}: {value}" for key, value in report.machine.items()]
    lines += ["", *_kept(report.kernels)]
    wrong = [finding for finding in report.findings if finding.differing]
    compared = sum(finding.elements for finding in report.findings)
    lines += ["", f"Bits against the CPU's: {len(report.findings)} comparisons of {compared:,} elements in all"]
    lines += [f"  {finding.what}: {finding.differing:,} of {finding.elements:,} DIFFER" for finding in wrong]
    lines += [] if wrong else ["  every bit is the same"]
    lines += ["", "Times: a step as a user makes it, median of interleaved rounds"]
    for timing in report.timings:
        against = "" if timing.of_torch is None else f", {timing.of_torch:.2f} of torch fused's time"
        lines.append(
            f"  {timing.case}: {timing.contestant} {timing.seconds * 1e3:.3f} ms, "
            f"{timing.gigabytes_per_second:,.0f} GB/s, {timing.of_copy:.2f} of a copy's bandwidth{against}"
        )
    return "\n".join(lines) + "\n"


def _kept(kernels: Sequence[Kept]) -> list[str]:
    """Return the lines about the kernels' first launches."""
    if not kernels:
        return ["Kernels between processes: the simulator compiles nothing, so nothing is kept"]
    cold, warm = sum(kernel.cold_seconds for kernel in kernels), sum(kernel.warm_seconds for kernel in kernels)
    lines = [f"First launches of {len(kernels)} kernels: {cold:.1f} s in one process, {warm:.2f} s in the next"]
    lines += [
        f"  {kernel.kernel}: {kernel.cold_seconds * 1e3:,.0f} ms, then {kernel.warm_seconds * 1e3:,.1f} ms"
        + ("" if kernel.is_kept else ": NOT KEPT")
        for kernel in kernels
    ]
    lost = sum(not kernel.is_kept for kernel in kernels)
    return [*lines, f"  {lost} WERE NOT KEPT" if lost else "  all were kept, and none was compiled again"]


def save(report: Report, folder: Path = RESULTS) -> Path:
    """Write the report as JSON and as text; return the text's path."""
    name = re.sub(r"[^a-z0-9]+", "-", report.machine["GPU"].lower()).strip("-")[:40]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"gpu-{name}-{report.when}.txt"
    path.write_text(text(report))
    path.with_suffix(".json").write_text(json.dumps(asdict(report), indent=1) + "\n")
    return path
