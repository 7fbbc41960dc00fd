"""Runs the simulated tests in another process, because the simulator must be enabled before Numba is imported."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

SIMULATED = Path(__file__).resolve().parent / "simulated"
PATIENCE_SECONDS = 1500  # it takes half a minute; a machine that is busy with other things may take any multiple


@pytest.mark.timeout(PATIENCE_SECONDS + 60)
def test_every_test_passes_in_the_simulator() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-m", "", str(SIMULATED)],
        env={**os.environ, "NUMBA_ENABLE_CUDASIM": "1", "OMP_WAIT_POLICY": "passive", "PYTEST_ADDOPTS": ""},
        cwd=SIMULATED.parents[2],
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    passed = re.search(r"^(\d+) passed in ", run.stdout, re.MULTILINE)  # nothing skipped, nothing left out
    assert passed is not None, run.stdout
    functions = sum(path.read_text().count("\ndef test_") for path in SIMULATED.glob("test_*.py"))
    assert int(passed[1]) >= functions
