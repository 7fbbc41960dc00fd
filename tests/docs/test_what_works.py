"""Each cell of the README's tables "What works with what" links to a test that exists, of that column's framework."""

import ast
import re
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
SECTION = re.compile(r"^## What works with what\n(.*?)^## ", re.MULTILINE | re.DOTALL)
CELL = re.compile(r"\[(yes|no|simulated)\]\((tests/[\w/]+\.py)#(test_\w+)\)")
# What the file of a test has, if it is about the column's framework; for other languages, what the test's name has.
IMPORTS = {
    "NumPy": "import numpy",
    "PyTorch on the CPU": "import torch",
    "PyTorch": "import torch",
    "JAX on the CPU": "import jax",
    "JAX": "import jax",
}
NAMES = {"Node.js": "_node_", "C++": "_cpp_"}
FOLDERS = {"NVIDIA GPU": "tests/cuda/"}


class Cell(NamedTuple):
    """One cell: what it says, and the test behind it."""

    row: str
    column: str
    text: str

    @property
    def link(self) -> re.Match[str] | None:
        return CELL.fullmatch(self.text)


def cells() -> list[Cell]:
    (section,) = SECTION.findall((ROOT / "README.md").read_text())
    found, columns = [], []
    for line in section.splitlines():
        parts = [part.strip() for part in line.strip().strip("|").split("|")] if line.startswith("|") else []
        if not parts or set(line) <= set("|-"):
            columns = columns if parts else []
        elif not columns:
            columns = [part.strip() for part in line.strip()[1:-1].split("|")]
        else:
            found += [Cell(parts[0], column, part) for column, part in zip(columns[1:], parts[1:], strict=True)]
    return found


def linked(cell: Cell) -> ast.FunctionDef:
    """Return the syntax tree of the test that a cell links to."""
    _, path, name = cell.link.groups()
    tree = ast.parse((ROOT / path).read_text())
    (test,) = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == name]
    return test


def named(cell: Cell) -> str:
    return f"{cell.row}-{cell.column}"


@pytest.mark.parametrize("cell", cells(), ids=named)
def test_the_cell_links_to_a_test_of_its_framework(cell: Cell) -> None:
    assert cell.link is not None, f"expected [yes|no|simulated](tests/...py#test_...), got {cell.text}"
    _, path, name = cell.link.groups()
    assert IMPORTS.get(cell.column, "") in (ROOT / path).read_text()
    assert NAMES.get(cell.column, "") in name
    assert path.startswith(FOLDERS.get(cell.column, "tests/"))
    assert cell.column in IMPORTS.keys() | NAMES.keys() | FOLDERS.keys()
    test = linked(cell)
    assert not any(re.search(r"xfail|mark\.skip\b", ast.unparse(each)) for each in test.decorator_list)


@pytest.mark.parametrize("cell", cells(), ids=named)
def test_a_no_is_a_refusal_and_a_simulated_test_runs_in_the_simulator(cell: Cell) -> None:
    word, path, _ = cell.link.groups()
    refuses = "pytest.raises" in ast.unparse(linked(cell))
    assert refuses or word != "no"
    assert (word == "simulated") == path.startswith("tests/cuda/simulated/")


def test_every_cell_is_found() -> None:
    rows = {cell.row for cell in cells()}
    assert len(cells()) >= 30
    assert {"8-bit state", "some rows of a table", "trains on the parameter server"} <= rows
