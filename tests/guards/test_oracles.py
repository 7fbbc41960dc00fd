"""Oracles import no code that they test, even indirectly: a shared error would stay undetected."""

from __future__ import annotations

import ast
from pathlib import PurePosixPath

JUDGED = ("numba_adam", "numba", "conftest", "updates", "format_updates")
KNOWN = {
    "reference.py",
    "constants_reference.py",
    "eight_bit_reference.py",
    "formats_reference.py",
    "random_reference.py",
}


def is_oracle(path: str) -> bool:
    name = PurePosixPath(path).name
    return path.startswith("tests/") and (name == "reference.py" or name.endswith("_reference.py"))


def imported(tree: ast.AST) -> set[str]:
    """Return the top-level names of all imports of a file, including those in functions."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add((node.module or "").split(".")[0])
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            names.add(ast.literal_eval(node.args[0]).split(".")[0])
    return names


def test_oracles_import_no_code_that_they_test(sources) -> None:
    oracles = {source.path: imported(source.tree) for source in sources if is_oracle(source.path)}
    assert {PurePosixPath(path).name for path in oracles} >= KNOWN
    judged = {path: names & set(JUDGED) for path, names in oracles.items()}
    assert {path: names for path, names in judged.items() if names} == {}
