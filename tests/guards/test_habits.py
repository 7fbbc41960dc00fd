"""House rules checked by scanning the sources: docstrings, asserting tests, no sleep, no print, no leftovers."""

import ast
import re

ASSERTS = re.compile(r"assert|check|expect|verify|raises|warns|fails")
PRINTERS = ("numba_adam/cli/", "numba_adam/demo/")


def asserts(test: ast.AST) -> bool:
    """Return whether a test can fail: it has an assert, pytest.raises, or a helper with an asserting name."""
    for node in ast.walk(test):
        if isinstance(node, ast.Assert):
            return True
        if isinstance(node, ast.Call) and ASSERTS.search(ast.unparse(node.func)):
            return True
    return False


def test_every_file_has_a_docstring(sources) -> None:
    assert [source.path for source in sources if not (ast.get_docstring(source.tree) or "").strip()] == []


def test_every_test_asserts(sources) -> None:
    empty = [
        f"{source.path}:{node.lineno}: {node.name}"
        for source in sources
        if source.path.startswith("tests/")
        for node in ast.walk(source.tree)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.name.startswith("test_")
        if not asserts(node)
    ]
    assert empty == []


def test_no_test_sleeps(sources) -> None:
    sleeping = [
        f"{source.path}:{node.lineno}"
        for source in sources
        if source.path.startswith("tests/")
        for node in ast.walk(source.tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("time.sleep", "sleep", "asyncio.sleep")
    ]
    assert sleeping == []


def test_the_library_logs_and_never_prints(sources) -> None:
    printing = [
        f"{source.path}:{node.lineno}"
        for source in sources
        if source.shipped and not source.path.startswith(PRINTERS)
        for node in ast.walk(source.tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "print"
    ]
    assert printing == []


def test_no_file_has_a_todo(sources, root) -> None:
    mark = re.compile(r"\b(TO" r"DO|FIX" r"ME|X" r"XX|NotImplemented" r"Error)\b")
    left = [
        f"{source.path}:{number}: {line.strip()}"
        for source in sources
        for number, line in enumerate((root / source.path).read_text().splitlines(), 1)
        if mark.search(line)
    ]
    assert left == []


def test_files_are_short(sources, root) -> None:
    lengths = {source.path: len((root / source.path).read_text().splitlines()) for source in sources}
    assert {path: length for path, length in lengths.items() if length > 600} == {}
