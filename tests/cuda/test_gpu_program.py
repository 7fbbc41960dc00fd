"""`make gpu` in the simulator: tests its comparisons of bits, not its times."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.gpu.kept import Launch, compared

ROOT = Path(__file__).resolve().parents[2]


def run(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "benchmarks.gpu", *arguments],
        env={**os.environ, "OMP_WAIT_POLICY": "passive", **environment},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=800,
        check=False,
    )


def test_without_a_gpu_the_program_says_so():
    result = run(NUMBA_ENABLE_CUDASIM="0", CUDA_VISIBLE_DEVICES="")
    assert result.returncode == 2
    assert "finds no GPU" in result.stderr
    assert "Traceback" not in result.stderr


def test_in_the_simulator_every_bit_equals_the_cpus(tmp_path):
    result = run("--output", str(tmp_path), NUMBA_ENABLE_CUDASIM="1")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "every bit is the same" in result.stdout
    assert "nothing is kept" in result.stdout
    (saved,) = tmp_path.glob("gpu-*.json")
    report = json.loads(saved.read_text())
    assert report["machine"]["GPU"].startswith("Numba's simulator")
    assert all(finding["differing"] == 0 for finding in report["findings"])
    assert any("8-bit state" in finding["what"] for finding in report["findings"])
    assert any("8-bit state" in timing["case"] for timing in report["timings"])
    assert {timing["contestant"] for timing in report["timings"]} >= {"numba-adam", "numba-adam, contracted"}


@pytest.mark.parametrize(
    ("cold", "warm", "is_kept"),
    [((0, 1), (1, 0), True), ((0, 1), (0, 1), False), ((1, 0), (1, 0), False), ((0, 0), (0, 0), False)],
)
def test_a_kernel_is_cached_by_one_process_and_loaded_by_the_next(cold, warm, is_kept):
    """In the last case, the CUDA package counts neither."""
    first, second = (Launch("lanes", seconds, *counts) for seconds, counts in ((1.5, cold), (0.25, warm)))
    (found,) = compared([first], [second])
    assert (found.is_kept, found.cold_seconds, found.warm_seconds) == (is_kept, 1.5, 0.25)


def test_processes_that_launched_other_kernels_are_not_compared():
    one, other = (Launch(name, 1.0, 0, 1) for name in ("lanes", "total"))
    with pytest.raises(ValueError, match="expected all"):
        compared([one], [other])
