"""The tests under tests/cuda/simulated, on the GPU instead of Numba's simulator.

Those tests lend NumPy arrays as if they were a GPU's. On a GPU their pages are pinned and mapped, so that kernels read
and write them where they lie (tests/cuda/host_memory.py), and every launch waits for its end.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib import util
from pathlib import Path

from benchmarks.gpu.journal import Finding
from benchmarks.gpu.stages import Item
from numba_adam.cuda import seam

_ROOT = Path(__file__).resolve().parents[2]
_TESTS = _ROOT / "tests" / "cuda" / "simulated"
_SETTINGS = {
    "NUMBA_ADAM_TESTS_ON_GPU": "1",
    "CUDA_LAUNCH_BLOCKING": "1",
    "PYTEST_ADDOPTS": "",
    # Memory that a test frees stays mapped, and so does its registration.
    "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 40),
}


def items() -> Iterator[Item]:
    """Return one question for each file of tests."""
    for path in sorted(_TESTS.glob("test_*.py")):
        yield Item(path.name, lambda path=path: _run(path))  # type: ignore[misc]


def _run(path: Path) -> Finding:
    if seam.SIMULATED:
        return Finding("there is no GPU: the simulator runs it in `make cuda`")
    shared = ["-n", str(min(8, os.cpu_count() or 1))] if util.find_spec("xdist") else []
    with tempfile.NamedTemporaryFile("r", suffix=".txt") as log:
        with open(log.name, "w") as written:
            run = subprocess.run(
                [sys.executable, "-m", "pytest", "-q", "-m", "", "--tb=short", *shared, str(path)],
                env={**os.environ, **_SETTINGS},
                cwd=_ROOT,
                stdin=subprocess.DEVNULL,
                stdout=written,
                stderr=subprocess.STDOUT,
                check=False,
            )
        text = log.read()
    last = next((line for line in reversed(text.splitlines()) if re.search(r"\d+ (passed|failed|error)", line)), "")
    failed = re.findall(r"^(?:FAILED|ERROR) (\S+)", text, re.MULTILINE)
    said = f"{last.strip('= ')}; failed: {', '.join(failed)}" if failed else last.strip("= ") or text[-300:]
    return Finding(said, run.returncode == 0, {"log": text[-20_000:]} if run.returncode else {})
