"""`make gpu`: run as far as it can be without a GPU. Its times are none, its bits are."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def run(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "benchmarks.gpu", *arguments],
        env={**os.environ, "OMP_WAIT_POLICY": "passive", **environment},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )


def test_without_a_gpu_it_says_so():
    result = run(NUMBA_ENABLE_CUDASIM="0", CUDA_VISIBLE_DEVICES="")
    assert result.returncode == 2
    assert "finds no GPU" in result.stderr
    assert "Traceback" not in result.stderr


def test_in_the_simulator_every_bit_is_the_cpus(tmp_path):
    result = run("--output", str(tmp_path), NUMBA_ENABLE_CUDASIM="1")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "every bit is the same" in result.stdout
    (saved,) = tmp_path.glob("gpu-*.json")
    report = json.loads(saved.read_text())
    assert report["machine"]["GPU"].startswith("Numba's simulator")
    assert all(finding["differing"] == 0 for finding in report["findings"])
    assert any("8-bit state" in finding["what"] for finding in report["findings"])
    assert any("8-bit state" in timing["case"] for timing in report["timings"])
    assert {timing["contestant"] for timing in report["timings"]} >= {"numba-adam", "numba-adam, contracted"}
