"""Importing our packages loads no framework, and the client never loads Numba. Tested in separate processes."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("torch", "jax", "tensorflow", "cupy", "numba", "llvmlite")


@pytest.mark.parametrize("module", ["numba_adam", "numba_adam.interop", "numba_adam.ps.framing", "numba_adam.client"])
def test_the_client_loads_neither_numba_nor_a_framework(module, tmp_path):
    program = f"import sys, {module}; print([name for name in {HEAVY} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert (result.returncode, result.stdout.strip(), result.stderr) == (0, "[]", "")


def test_borrowing_loads_no_framework(tmp_path):
    program = (
        "import sys, numpy; from numba_adam.interop import borrow\n"
        "borrow(numpy.ones(3), name='w'); borrow(memoryview(numpy.ones(3)), name='w')\n"
        f"print([name for name in {HEAVY} if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert (result.returncode, result.stdout.strip(), result.stderr) == (0, "[]", "")
