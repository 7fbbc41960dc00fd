"""The first push to a new server waits for no compiler: kernels are compiled before the server serves."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

# A server and its client in one process, whose cache of kernels is empty: what is compiled is seen.
PROGRAM = """
import json, logging, sys, tempfile
logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="log: %(message)s")
import numpy as np
from numba.core import event
from numba_adam.client import ParameterClient
from numba_adam.server.config import ServerConfig
from numba_adam.server.embedded import Server

dtype, options, sizes = sys.argv[1], json.loads(sys.argv[2]), (3, 70_001)
long = {"timeout_seconds": 800}
with tempfile.TemporaryDirectory() as folder:
    server = Server(ServerConfig(listen="127.0.0.1:0", data_dir=folder, threads=2))
    with event.install_recorder("numba:compile") as starting:
        server.start()
    with event.install_recorder("numba:compile") as creating, ParameterClient(server.address, **long) as client:
        models = [client.create_model(f"m{size}", {"w": np.ones(size, dtype)}, **options) for size in sizes]
    with event.install_recorder("numba:compile") as pushing, ParameterClient(server.address, **long) as client:
        for size in sizes:
            model = client.open_model(f"m{size}")
            assert model.push({"w": np.ones(size, dtype)}).version == 1
            assert model.pull(average="ema_decay" in options)["w"][0] < 1
    server.stop()
print("compiled", len(starting.buffer) > 0, len(creating.buffer) > 0, len(pushing.buffer))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "options"),
    [
        ("float32", {}),
        ("float64", {}),
        ("float32", {"state_dtype": "8bit", "ema_decay": 0.9}),
        ("float64", {"state_dtype": "float32"}),
    ],
)
def test_the_first_push_waits_for_no_compiler(dtype: str, options: dict[str, object], tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM, dtype, json.dumps(options)],
        env={**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / "cache"), "NUMBA_NUM_THREADS": "2"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
        timeout=800,
    )
    lines = run.stdout.splitlines()
    assert lines[-1] == f"compiled True {dtype == 'float64' or bool(options)} 0"
    said = [place for place, line in enumerate(lines) if "kernels for models of" in line]
    serving = next(place for place, line in enumerate(lines) if "serving on" in line)
    assert "float32" in lines[said[0]]
    assert said[0] < serving
    assert [line.split(" of ")[1].split(":")[0] for line in (lines[place] for place in said)] == (
        ["float32", f"{dtype} with options"] if options else ["float32"] if dtype == "float32" else ["float32", dtype]
    )
