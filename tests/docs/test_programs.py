"""The documents' programs run unchanged in the clone's folder, as for a reader who has just installed it."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

from numba_adam.server.config import ServerConfig
from numba_adam.server.embedded import Server

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = re.compile(r"(?<!\))\n```python\n(.*?)```", re.DOTALL)  # what follows a link is a quotation
FRAMEWORK = re.compile(r"^import (torch|jax)$", re.MULTILINE)
ADDRESS = "127.0.0.1:50051"  # the default, which another server may have here


def programs() -> list[tuple[str, str]]:
    """Return every program with its name; examples with prompts are doctests."""
    documents = [ROOT / "README.md", ROOT / "benchmarks/README.md", *sorted((ROOT / "docs").glob("*.md"))]
    return [
        (f"{document.relative_to(ROOT)}-{number}", program)
        for document in documents
        for number, program in enumerate(PROGRAM.findall(document.read_text()), 1)
        if ">>> " not in program
    ]


def marks(program: str) -> list[pytest.MarkDecorator]:
    """Return the marks of a program: one that imports a framework needs the parity environment."""
    found = FRAMEWORK.search(program)
    if found is None:
        return []
    is_missing = importlib.util.find_spec(found[1]) is None
    reason = f"{found[1]} is not installed; the parity environment has it"
    return [pytest.mark.parity, pytest.mark.skipif(is_missing, reason=reason)]


@pytest.mark.parametrize(
    "program", [pytest.param(program, id=name, marks=marks(program)) for name, program in programs()]
)
def test_every_program_runs_in_the_clones_folder(program: str, tmp_path: Path) -> None:
    server = Server(ServerConfig(listen="127.0.0.1:0", data_dir=tmp_path / "data"))
    server.start()
    try:
        text = program.replace(ADDRESS, server.address)
        run = subprocess.run(
            [sys.executable, "-c", text], cwd=ROOT, capture_output=True, text=True, check=False, timeout=800
        )
    finally:
        server.stop()
    assert run.returncode == 0, run.stderr
    assert run.stderr == ""


def test_the_readme_has_programs() -> None:
    of_the_readme = [program for name, program in programs() if name.startswith("README.md-")]
    assert len(of_the_readme) >= 4
    assert {found[1] for program in of_the_readme if (found := FRAMEWORK.search(program))} == {"torch", "jax"}
