"""The tree in CONTRIBUTING.md lists the folders that exist, each with the first sentence of its docstring."""

import ast
import re

import pytest

TREE = re.compile(r"<!-- tree:begin -->\n```\n(.*?)```\n<!-- tree:end -->", re.DOTALL)
MADE = {"build", "dist"}
ADVICE = "run `make format`, or python tools/draw_tree.py"


@pytest.fixture(scope="module")
def listed(root) -> dict[str, str]:
    """Return the folders in the drawing and their descriptions, parsed by indentation."""
    (tree,) = TREE.findall((root / "CONTRIBUTING.md").read_text())
    found: dict[str, str] = {}
    above: list[str] = []
    for line in tree.splitlines():
        entry = re.match(r"( *)([\w.]+)/ +(\S.*)", line)
        if entry is None:
            found["/".join(above)] += f" {line.strip()}"
            continue
        above = [*above[: len(entry[1]) // 2], entry[2]]
        assert "/".join(above) not in found
        found["/".join(above)] = entry[3]
    return found


def test_the_tree_lists_every_package_and_no_other_folder(root, listed) -> None:
    packages = {
        path.parent.relative_to(root).as_posix()
        for folder in ("numba_adam", "server", "client", "benchmarks")
        for path in (root / folder).rglob("__init__.py")
    }
    assert packages - listed.keys() == set(), ADVICE
    assert {name for name in listed if not (root / name).is_dir()} == set(), ADVICE


def test_every_folder_of_the_repository_is_listed(root, listed) -> None:
    folders = {
        path.name
        for path in root.iterdir()
        if path.is_dir() and not path.name.startswith(".") and path.name not in MADE and path.suffix != ".egg-info"
        if any(next(path.rglob(pattern), None) for pattern in ("*.py", "*.proto", "*.md"))
    }
    assert folders - listed.keys() == set(), "name it in OTHERS of tools/draw_tree.py"


def test_descriptions_are_the_first_sentences_of_the_docstrings(root, listed) -> None:
    for name, description in listed.items():
        source = root / name / "__init__.py"
        if source.exists():
            docstring = " ".join(ast.get_docstring(ast.parse(source.read_text())).split())
            assert docstring.startswith(description), f"{name}: {ADVICE}"
            assert description.endswith("."), f"{name}: the docstring must begin with a sentence"
