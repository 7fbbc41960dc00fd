"""The documents' examples run, their quotations match the sources, and their links are valid."""

import doctest
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted(
    [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "benchmarks/README.md", *(ROOT / "docs").glob("*.md")]
)
QUOTATION = re.compile(r"^\[`([^`]+)`\]\(([^)#]+)#L(\d+)\)\n```python\n(.*?)```", re.MULTILINE | re.DOTALL)
NAMED_TEST = re.compile(r"\[`(test_\w+)`\]\(([^)]+)\)")
ANCHORED_TEST = re.compile(r"\]\(([^)#\s]+\.py)#(test_\w+)\)")
LINK = re.compile(r"\]\((?!https?:|#)([^)#\s]+)|\bsrc(?:set)?=\"([^\"]+)\"")


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def with_marks(document: Path):
    """Return a document as a parameter; one that trains a network is marked slow."""
    return pytest.param(document, marks=[pytest.mark.slow] if "import digits" in document.read_text() else [])


@pytest.mark.parametrize("document", [with_marks(d) for d in DOCUMENTS if ">>> " in d.read_text()], ids=name)
def test_examples_run(document):
    results = doctest.testfile(str(document), module_relative=False)
    assert results.attempted > 0
    assert results.failed == 0


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_quotations_match_their_sources(document):
    for label, target, number, quoted in QUOTATION.findall(document.read_text()):
        source = (document.parent / target).resolve()
        assert source == ROOT / label
        lines, expected = source.read_text().splitlines(), quoted.splitlines()
        found = [k + 1 for k in range(len(lines)) if lines[k : k + len(expected)] == expected]
        assert found == [int(number)], f"{document.name} says {label}#L{number}; the quotation stands at {found}"


def test_how_adam_works_quotes_all_four_steps():
    assert len(QUOTATION.findall((ROOT / "docs/how-adam-works.md").read_text())) >= 4


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_links_are_valid(document):
    targets = [link or picture for link, picture in LINK.findall(document.read_text())]
    broken = [target for target in targets if not (document.parent / target).exists()]
    assert broken == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_named_tests_are_in_the_files_they_link_to(document):
    text = document.read_text()
    named = [(target, test) for test, target in NAMED_TEST.findall(text)] + ANCHORED_TEST.findall(text)
    missing = [
        f"{test} in {target}" for target, test in named if f"def {test}(" not in (document.parent / target).read_text()
    ]
    assert missing == []


def test_every_row_of_the_guarantees_names_its_test():
    rows = [line for line in (ROOT / "docs/guarantees.md").read_text().splitlines() if line.startswith("| ")]
    unproven = [row for row in rows if set(row) - set("| ") and not re.search(r"\[`?test_\w+(\.py)?`?\]\(", row)]
    assert rows
    assert unproven == []
