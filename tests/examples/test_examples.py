"""The examples run unchanged and reach the results that they promise."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from numba_adam.server.config import ServerConfig
from numba_adam.server.embedded import Server

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"


def run(name: str, *words: str) -> str:
    """Run an example in a new process in the clone's folder, and return its output."""
    command = [sys.executable, f"examples/{name}", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=800).stdout


def test_the_library_quickstart_runs() -> None:
    assert run("quickstart_library.py") == "slope 3.000, offset -2.000\n"


def test_the_service_quickstart_runs(tmp_path: Path) -> None:
    server = Server(ServerConfig(listen="127.0.0.1:0", data_dir=tmp_path))
    server.start()
    try:
        assert run("quickstart_service.py", server.address) == "slope 3.000, offset -2.000 at version 300\n"
    finally:
        server.stop()


@pytest.mark.campaign
def test_the_digits_example_reaches_its_accuracy() -> None:
    shown = run("digits.py", "--steps", "500")
    killed = re.search(r"the server was killed after version (\d+) and continued at (\d+)", shown)
    assert killed is not None
    assert int(killed[2]) >= int(killed[1]) >= 250
    accuracy = re.search(r"version \d+: ([\d.]+)% of the test images", shown)
    assert accuracy is not None
    assert float(accuracy[1]) > 90.0


@pytest.mark.parity
def test_two_pytorch_workers_train_a_transformer() -> None:
    shown = run("transformer.py", "--steps", "100")
    found = re.search(r"^version (\d+): loss ([\d.]+) before, ([\d.]+) after$", shown, re.MULTILINE)
    assert found is not None, shown
    assert int(found[1]) == 200  # of two workers
    assert float(found[2]) > 4.5  # nearly as if all 128 characters were equally likely: 4.85
    assert float(found[3]) < 3.0
    assert {line[:8] for line in shown.splitlines() if line.startswith("worker")} == {"worker 0", "worker 1"}


def test_every_example_has_a_test() -> None:
    tests = "".join(path.read_text() for path in Path(__file__).parent.glob("*.py"))
    programs = [path for path in EXAMPLES.iterdir() if path.suffix == ".py"]
    folders = [path for path in EXAMPLES.iterdir() if path.is_dir() and path.name != "__pycache__"]
    assert len(programs) >= 3
    assert folders
    assert [path.name for path in programs if f'run("{path.name}"' not in tests] == []
    services = [EXAMPLES / "Dockerfile", *EXAMPLES.glob("*.service")]
    assert [path.name for path in services if f'"examples" / "{path.name}"' not in tests] == []
    assert [path.name for path in folders if f'EXAMPLES / "{path.name}"' not in tests] == []
