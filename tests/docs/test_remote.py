"""The commands of docs/remote.md run in their order, as a reader would type them, except for the SSH tunnel."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/remote.md").read_text()
TWO_MACHINES = re.compile(r"## A server that other machines reach\n.*?\n(?=## )", re.DOTALL)
TEXT = TWO_MACHINES.sub("", PAGE)  # tests/network/test_walk_through.py runs that section
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", TEXT, re.DOTALL) for line in block.splitlines()]
(PROGRAM,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
ADDRESS = "127.0.0.1:50051"  # the default, which another server may have here
READY = "numba-adam: serving on "


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    found = Reader(tmp_path)
    yield found
    found.close()


class Reader:
    """Someone who types the commands, in a folder and with a configuration of their own."""

    def __init__(self, folder: Path) -> None:
        self.address = ADDRESS
        self._folder = folder
        self._servers: list[subprocess.Popen[str]] = []
        ours = {name: value for name, value in os.environ.items() if not name.startswith("NUMBA_ADAM_")}
        self._environment = {**ours, "XDG_CONFIG_HOME": str(folder / "config")}

    def run(self, *words: str) -> str:
        """Run a command to its end; return what it prints."""
        found = subprocess.run(
            words, cwd=self._folder, env=self._environment, capture_output=True, text=True, check=False, timeout=800
        )
        assert found.returncode == 0, found.stderr
        return found.stdout

    def type(self, line: str) -> None:
        name, *words = line.replace(ADDRESS, self.address).split()
        assert name == "numba-adam"
        command = [sys.executable, "-m", "numba_adam", *words]
        if words[0] == "serve":
            self._serve([*command, "--listen", "127.0.0.1:0"])
        else:
            self.run(*command)

    def _serve(self, command: list[str]) -> None:
        with (self._folder / "log").open("a") as log:
            server = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=log, text=True, cwd=self._folder, env=self._environment
            )
        self._servers.append(server)
        line = server.stdout.readline()
        assert line.startswith(READY), (self._folder / "log").read_text()
        self.address = line.removeprefix(READY).strip()

    def close(self) -> None:
        for server in self._servers:
            server.kill()
            server.wait()
            server.stdout.close()


def test_the_commands_and_the_program_of_the_page_work(reader: Reader) -> None:
    typed = [line for line in COMMANDS if not line.startswith("ssh ")]
    assert [line.split()[1] for line in typed] == [
        "certificate",
        "certificate",
        "serve",
        "login",
        "status",
        "certificate",
    ]
    for line in typed:
        reader.type(line)
    assert reader.address != ADDRESS
    printed = reader.run(sys.executable, "-c", PROGRAM.replace(ADDRESS, reader.address))
    assert printed == "[-0.001 -0.001 -0.001] 1\n"
