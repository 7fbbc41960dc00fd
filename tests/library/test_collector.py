"""Python's garbage collector pauses while a kernel compiles, and then is as the program left it."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

# What the collector did: while the smallest kernel compiled, after it, after one that fails, and in a child that was
# forked in between by another thread.
PROGRAM = """
import gc, json, os, sys, threading
import numba.core.event as event
import numpy as np
from numba_adam.cpu.kernels.compile import kernel
from numba_adam.cpu.kernels.finite import first_beyond

is_enabled = json.loads(sys.argv[1])
if not is_enabled:
    gc.disable()
seen = {"during": set(), "in child": None}

def fork():
    child = os.fork()
    if child == 0:
        os._exit(10 + gc.isenabled())
    seen["in child"] = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 11

class Listener(event.Listener):
    def on_start(self, _):
        seen["during"].add(gc.isenabled())
        if seen["in child"] is None:
            other = threading.Thread(target=fork)
            other.start()
            other.join()

    def on_end(self, _):
        pass

event.register("numba:run_pass", Listener())
assert kernel(first_beyond.py_func)(np.array([1, np.nan]), np.inf) == 1
seen["after"] = gc.isenabled()

@kernel
def fails(array):
    return array.nothing

try:
    fails(np.zeros(1))
except Exception:
    seen["after a failure"] = gc.isenabled()
seen["during"] = sorted(seen["during"])
print(json.dumps(seen))
"""


@pytest.mark.parametrize("is_enabled", [True, False])
def test_the_collector_pauses_for_a_compilation_only(is_enabled, tmp_path, monkeypatch):
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    command = [sys.executable, "-c", PROGRAM, json.dumps(is_enabled)]
    child = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(child.stdout) == {
        "during": [False],
        "in child": is_enabled,
        "after": is_enabled,
        "after a failure": is_enabled,
    }
