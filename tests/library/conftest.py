"""Fixtures and helpers of the library's tests: the oracle, child processes, small arrays."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE)]  # for `reference`, `damage` and `updates`, which are no tests themselves

TIMEOUT_SECONDS = 800  # of a program that hangs: on a busy machine any other takes as long as it takes

# OpenMP's threads spin while they wait for each other. On cores that others use too, that makes a step of 0.1 ms take
# 2.5 ms, and there are thousands of steps here.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")


@pytest.fixture
def run_python(tmp_path: Path) -> Callable[..., str]:
    """Return a function that runs a program in a new interpreter and returns its output.

    Keyword arguments are environment variables. Warnings are errors there as they are here. The machine code that the
    kernels leave in the user's cache is shared by all of them, unless a test says NUMBA_CACHE_DIR.
    """

    def run(program: str | Path, *arguments: str, **environment: str) -> str:
        source = [str(program)] if isinstance(program, Path) else ["-c", program]
        with subprocess.Popen(
            [sys.executable, "-W", "error", *source, *arguments],
            env={**os.environ, **environment},
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        ) as child:
            try:
                output, errors = child.communicate(timeout=TIMEOUT_SECONDS)
            except BaseException:
                os.killpg(child.pid, signal.SIGKILL)  # its own children too
                raise
        assert child.returncode == 0, f"exit {child.returncode}\n{output}\n{errors}"
        return output.strip()

    return run


@pytest.fixture(params=["float32", "float64"])
def dtype(request: pytest.FixtureRequest) -> np.dtype:
    return np.dtype(request.param)


@pytest.fixture
def state_of_five() -> SimpleNamespace:
    """Return a parameter of five elements with a gradient and a used state."""
    rng = np.random.default_rng(5)
    param, grad, exp_avg = (rng.normal(size=5).astype(np.float32) for _ in range(3))
    return SimpleNamespace(
        param=param, grad=grad, exp_avg=exp_avg, exp_avg_sq=rng.random(5, np.float32), max_exp_avg_sq=np.ones(5, "f4")
    )
