"""Workers in other languages train on a real server, through its kill and through damaged and lost messages.

`make examples` installs the languages, builds the programs and runs these tests.
"""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from numba_adam.client import ParameterClient

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"

languages = pytest.mark.languages
BACK = re.compile(r"the server is back, at version (\d+)")


@pytest.fixture
def digits(tmp_path: Path) -> str:
    """The file of images that the Node.js example reads."""
    command = [sys.executable, "examples/node/digits_json.py"]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=800).stdout
    (tmp_path / "digits.json").write_text(shown)
    return str(tmp_path / "digits.json")


@pytest.fixture
def node(digits: str) -> Callable[..., list[str]]:
    """The command of the worker in Node.js."""

    def command(address: str, steps: int) -> list[str]:
        program = str(EXAMPLES / "node" / "digits.js")
        return ["node", program, address, digits, "--steps", str(steps), "--timeout-seconds", "800"]

    return command


def version_of(address: str, model: str) -> int:
    with ParameterClient(address, timeout_seconds=800) as client:
        return client.open_model(model).version


@languages
def test_a_worker_in_node_learns_to_read_digits_through_a_kill_of_the_server(
    server, train_through_a_kill, node
) -> None:
    story = train_through_a_kill(*node(server.address, 2000))
    (restored,) = [int(found[1]) for found in map(BACK.fullmatch, story.after) if found]
    assert story.saved <= restored < 2000
    last = re.fullmatch(r"version 2000: ([\d.]+)% of the test images are read correctly", story.after[-1])
    assert last is not None, story.after[-1]
    assert float(last[1]) > 90
    assert version_of(server.address, "digits-node") == 2000


@languages
def test_a_worker_in_node_applies_each_push_once_when_messages_are_damaged_and_lost(server, faulty_relay, node) -> None:
    run = subprocess.run(node(faulty_relay.address, 20), capture_output=True, text=True, check=False, timeout=800)
    assert run.returncode == 0, run.stderr
    assert version_of(server.address, "digits-node") == 20
    assert faulty_relay.met_by("Push") == faulty_relay.faults["Push"] * 20
    assert faulty_relay.met_by("Pull") == faulty_relay.faults["Pull"] * 21


def test_the_lock_file_of_node_names_no_host() -> None:
    lock = json.loads((EXAMPLES / "node" / "package-lock.json").read_text())
    packages = {path: package for path, package in lock["packages"].items() if path}
    assert {"node_modules/@grpc/grpc-js", "node_modules/@grpc/proto-loader"} <= packages.keys()
    assert [path for path, package in packages.items() if not package["integrity"].startswith("sha512-")] == []
    assert [path for path, package in packages.items() if "resolved" in package] == []
