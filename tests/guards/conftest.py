"""What the guards share: the repository's folder and every Python file of ours with its syntax tree."""

import ast
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("numba_adam", "server", "client", "tests", "tools", "examples", "benchmarks")
GENERATED = "numba_adam/ps/v1/"


class Source(NamedTuple):
    """One of our files."""

    path: str
    """Relative to the repository's folder, with forward slashes."""

    tree: ast.Module

    @property
    def shipped(self) -> bool:
        """Say whether users install this file."""
        return self.path.startswith(("numba_adam/", "server/", "client/"))

    def imports(self) -> list[tuple[str, int]]:
        """Return every module that is imported anywhere in the file, as if spelled out, with the line."""
        found: list[tuple[str, int]] = []
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                found += [(alias.name, node.lineno) for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                module = "." * node.level + (node.module or "")
                found += [(f"{module}.{alias.name}", node.lineno) for alias in node.names]
        return found


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def sources() -> list[Source]:
    paths = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
    names = [path.relative_to(ROOT).as_posix() for path in paths]
    return [Source(name, ast.parse((ROOT / name).read_text())) for name in names if not name.startswith(GENERATED)]
