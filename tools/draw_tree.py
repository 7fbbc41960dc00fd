"""Draw the tree of the code into CONTRIBUTING.md: every package folder, with the first sentence of its docstring.

    python tools/draw_tree.py             rewrites the drawing; `make format` runs this too

tests/guards/test_tree.py fails when the drawing is out of date. Imports the standard library alone.
"""

from __future__ import annotations

import ast
import re
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DOCUMENT = ROOT / "CONTRIBUTING.md"
BEGIN, END = "<!-- tree:begin -->", "<!-- tree:end -->"
PACKAGES = ("numba_adam", "server", "client", "benchmarks")
# Folders that are no packages have no docstring.
OTHERS = {
    "proto": "The wire contract. Every element has a comment.",
    "tests": "The tests mirror the folders above. guards/ holds the house rules as tests.",
    "docs": "Explanations, guarantees, and the wire protocol.",
    "examples": "Programs to copy.",
    "tools": "Scripts for contributors.",
}
_LEFT, _WIDTH = 20, 108  # columns


def description(package: Path) -> str:
    """Return the first sentence of a package's docstring.

    Args:
        package: a folder with an `__init__.py`.
    """
    docstring = ast.get_docstring(ast.parse((package / "__init__.py").read_text())) or ""
    return re.split(r"(?<=\.)\s", " ".join(docstring.partition("\n\n")[0].split()))[0]


def folders(root: Path = ROOT) -> dict[str, str]:
    """Return every folder of the tree, relative to the repository, with its description."""
    found: dict[str, str] = {}
    for package in PACKAGES:
        for path in sorted((root / package).rglob("__init__.py")):
            found[path.parent.relative_to(root).as_posix()] = description(path.parent)
    return found | OTHERS


def drawing(found: dict[str, str]) -> str:
    """Return the tree as text: one folder per line, indented by its depth."""
    lines = []
    for path, what in found.items():
        name = f"{'  ' * path.count('/')}{path.rpartition('/')[2]}/"
        lines += textwrap.wrap(what, _WIDTH, initial_indent=f"{name:<{_LEFT}}", subsequent_indent=" " * _LEFT)
    return "\n".join(lines)


def replaced(text: str, tree: str) -> str:
    """Return a document with the drawing between its markers.

    Raises:
        ValueError: the markers are not there, once each and in order.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end or BEGIN in rest or END in before + after:
        raise ValueError(f"the text must hold {BEGIN} and then {END}, once each: the tree goes between them")
    return f"{before}{BEGIN}\n```\n{tree}\n```\n{END}{after}"


def main() -> None:
    """Rewrite the drawing."""
    try:
        DOCUMENT.write_text(replaced(DOCUMENT.read_text(), drawing(folders())))
    except ValueError as error:
        sys.exit(f"draw_tree: {DOCUMENT.name}: {error}")


if __name__ == "__main__":
    main()
