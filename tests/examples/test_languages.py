"""Workers in other languages train on a real server, through its kill and through damaged and lost messages.

`make examples` installs the languages, builds the programs and runs these tests.
"""

import json
import re
import subprocess
from pathlib import Path

import pytest

from numba_adam.client import ParameterClient

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"

languages = pytest.mark.languages
VERSION = re.compile(r"version (\d+): ")


def run(command: list[str]) -> None:
    """Run a worker program to its end."""
    finished = subprocess.run(command, capture_output=True, text=True, check=False, timeout=800)
    assert finished.returncode == 0, finished.stderr


def version_of(address: str, model: str) -> int:
    with ParameterClient(address, timeout_seconds=800) as client:
        return client.open_model(model).version


def is_unnoticed(story) -> bool:
    """Whether the worker went on through the kill as if there had been none, as the level `process` promises."""
    versions = [int(found[1]) for found in map(VERSION.match, story.before + story.after) if found]
    return versions == [*range(10, 2001, 10), 2000]


def result(pattern: str, line: str) -> float:
    """Return the number in a program's last line."""
    found = re.fullmatch(pattern, line)
    assert found is not None, line
    return float(found[1])


def check_each_push_is_applied_once(server, faulty_relay, command: list[str], model: str) -> None:
    """A worker makes 20 steps, with three tries of each push and two of each pull."""
    run(command)
    assert version_of(server.address, model) == 20
    assert faulty_relay.met_by("Push") == faulty_relay.faults["Push"] * 20
    assert faulty_relay.met_by("Pull") == faulty_relay.faults["Pull"] * 21


@languages
def test_a_worker_in_node_learns_to_read_digits_through_a_kill_of_the_server(
    server, train_through_a_kill, node
) -> None:
    story = train_through_a_kill(*node(server.address, 2000))
    assert is_unnoticed(story)
    assert result(r"version 2000: ([\d.]+)% of the test images are read correctly", story.after[-1]) > 90
    assert version_of(server.address, "digits-node") == 2000


@languages
def test_a_worker_in_cpp_fits_a_function_through_a_kill_of_the_server(server, train_through_a_kill, cpp) -> None:
    story = train_through_a_kill(*cpp(server.address, 2000))
    assert is_unnoticed(story)
    assert result(r"version 2000: the largest error of a weight is ([\d.e-]+)", story.after[-1]) < 0.01
    assert version_of(server.address, "regression-cpp") == 2000


@languages
def test_pushes_of_node_are_applied_once_when_messages_are_damaged_and_lost(server, faulty_relay, node) -> None:
    check_each_push_is_applied_once(server, faulty_relay, node(faulty_relay.address, 20), "digits-node")


@languages
def test_pushes_of_cpp_are_applied_once_when_messages_are_damaged_and_lost(server, faulty_relay, cpp) -> None:
    check_each_push_is_applied_once(server, faulty_relay, cpp(faulty_relay.address, 20), "regression-cpp")


@languages
def test_a_new_process_of_a_worker_in_node_takes_over(server, node) -> None:
    for steps in (10, 20):
        run(node(server.address, steps, "--worker-id", "w"))
        assert version_of(server.address, "digits-node") == steps


@languages
@pytest.mark.parametrize(("language", "model"), [("node", "digits-node"), ("cpp", "regression-cpp")])
def test_a_worker_creates_a_deleted_model_again(server, node, cpp, language, model) -> None:
    command = {"node": node, "cpp": cpp}[language]
    run(command(server.address, 20))
    with ParameterClient(server.address, timeout_seconds=800) as client:
        client.delete_model(model)
    run(command(server.address, 10))
    assert version_of(server.address, model) == 10


def test_the_lock_file_of_node_names_no_host() -> None:
    lock = json.loads((EXAMPLES / "node" / "package-lock.json").read_text())
    packages = {path: package for path, package in lock["packages"].items() if path}
    assert {"node_modules/@grpc/grpc-js", "node_modules/@grpc/proto-loader"} <= packages.keys()
    assert [path for path, package in packages.items() if not package["integrity"].startswith("sha512-")] == []
    assert [path for path, package in packages.items() if "resolved" in package] == []
