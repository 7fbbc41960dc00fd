"""The documents' programs run as they stand, from the clone's own folder, where a reader has just installed it."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from numba_adam.server.config import ServerConfig
from numba_adam.server.embedded import Server

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = re.compile(r"(?<!\))\n```python\n(.*?)```", re.DOTALL)  # what follows a link is a quotation
ADDRESS = "127.0.0.1:50051"  # the default, which another server may have here


def programs() -> list[tuple[str, str]]:
    """Return every program with what to call it; examples with prompts are doctests."""
    documents = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    return [
        (f"{document.name}-{number}", program)
        for document in documents
        for number, program in enumerate(PROGRAM.findall(document.read_text()), 1)
        if ">>> " not in program
    ]


@pytest.mark.parametrize("program", [pytest.param(program, id=name) for name, program in programs()])
def test_a_program_runs_from_the_clones_folder(program: str, tmp_path: Path) -> None:
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
    assert sum(name.startswith("README.md") for name, _ in programs()) >= 3
