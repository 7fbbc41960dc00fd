"""A small run under NVIDIA's compute-sanitizer, which finds accesses outside an array. Slow, hence small.

python -m benchmarks.gpu.memory_check is that run.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks.gpu.correctness import TRAININGS
from benchmarks.gpu.journal import Finding
from benchmarks.gpu.stages import Item
from benchmarks.gpu.training import trained

_SIZES = (1, 3, 0, 17, 255, 257, 16_385)
_TRAININGS = ("float32", "bfloat16, rounded at random", "8-bit state, AMSGrad, average", "float64")
_USUAL = Path("/usr/local/cuda/bin/compute-sanitizer")


def items() -> Iterator[Item]:
    """Return one question for each tool."""
    for tool in ("memcheck", "racecheck"):
        yield Item(f"compute-sanitizer's {tool}", lambda tool=tool: _checked(tool))  # type: ignore[misc]


def _checked(tool: str) -> Finding:
    command = shutil.which("compute-sanitizer") or (str(_USUAL) if _USUAL.exists() else None)
    if command is None:
        return Finding("it is not installed here")
    run = subprocess.run(
        [command, "--tool", tool, sys.executable, "-m", "benchmarks.gpu.memory_check"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    summary = re.findall(r"(?:ERROR|RACECHECK) SUMMARY: (\d+) .*", run.stdout)
    said = "; ".join(re.findall(r"(?:ERROR|RACECHECK) SUMMARY: .*", run.stdout)) or run.stdout.strip()[-300:]
    if not summary:
        return Finding(f"it could not run here: {said}")
    return Finding(f"{said}; the run ended with status {run.returncode}", run.returncode == 0 and set(summary) == {"0"})


def main() -> int:
    """Train each format on small arrays; return 1 if a bit differs."""
    findings = [trained(sizes=_SIZES, steps=2, **TRAININGS[name]) for name in _TRAININGS]
    return 0 if all(finding.is_good for finding in findings) else 1


if __name__ == "__main__":
    sys.exit(main())
