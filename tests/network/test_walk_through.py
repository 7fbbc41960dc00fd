"""The walk-through of docs/remote.md for two machines, from the page's own text, on two hosts."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.campaign]

PAGE = (Path(__file__).resolve().parents[2] / "docs/remote.md").read_text()
(SECTION,) = re.findall(r"## A server that other machines reach\n(.*?)\n## ", PAGE, re.DOTALL)
MAKE, (COPY,), (SERVE,), (LOGIN,) = (block.splitlines() for block in re.findall(r"```sh\n(.*?)```", SECTION, re.DOTALL))
(PROGRAM,) = re.findall(r"```py\n(.*?)```", SECTION, re.DOTALL)
NAME = "trainer.example.org"


class Machine:
    """A host with a folder and a home of their own, and `numba-adam` on its path."""

    def __init__(self, folder: Path, host) -> None:
        self.folder, self.host = folder, host
        programs = folder / "bin"
        programs.mkdir(parents=True)
        for name, words in (("numba-adam", "-m numba_adam"), ("python", "")):
            (programs / name).write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {words} "$@"\n')
            (programs / name).chmod(0o755)
        ours = {name: value for name, value in os.environ.items() if not name.startswith("NUMBA_ADAM_")}
        path = f"{programs}:{os.environ['PATH']}"
        self.environment = {**ours, "HOME": str(folder), "XDG_CONFIG_HOME": str(folder / "config"), "PATH": path}

    def shell(self, line: str) -> list[str]:
        return ["sh", "-c", f"cd {shlex.quote(str(self.folder))} && {line}"]

    def type(self, line: str) -> str:
        """Run a line of the page to its end; return what it prints."""
        return self.host.run(*self.shell(line), env=self.environment)


def test_the_walk_through_works_on_two_machines(pair, tmp_path):
    server = Machine(tmp_path / "trainer", pair.server)
    worker = Machine(tmp_path / "worker", pair.worker)
    pair.worker.hosts.write_text(f"127.0.0.1 localhost\n10.77.0.1 {NAME}\n")
    for line in MAKE:
        server.type(line)
    assert (server.folder / "w0.token").stat().st_mode & 0o077 == 0
    word, *files, target = COPY.split()
    assert (word, target) == ("scp", "worker.example.org:")
    for file in files:
        shutil.copy(server.folder / file, worker.folder)
    assert not list(worker.folder.rglob("*.key"))  # no secret but the token went to the worker
    log = tmp_path / "walk-log"
    serving = pair.server.start(
        *server.shell(f"exec {SERVE}"), announces="numba-adam: serving on ", log=log, env=server.environment
    )
    assert serving.endswith(":50051")
    worker.type(LOGIN)
    (worker.folder / "train.py").write_text(PROGRAM)
    assert "`python train.py`" in SECTION
    printed = worker.type("python train.py")
    assert printed == "[-0.001 -0.001 -0.001] 1\n"
    assert f"It prints `{printed.strip()}`" in SECTION
    assert worker.type("python train.py").endswith(" 2\n")
