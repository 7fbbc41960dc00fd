"""The examples in the library's docstrings run, and give what they show."""

import doctest
import importlib
from pathlib import Path

import pytest

import numba_adam

ROOT = Path(__file__).resolve().parents[2]
SOURCES = [path.relative_to(ROOT) for path in sorted((ROOT / "numba_adam").rglob("*.py")) if "/v1/" not in str(path)]
MODULES = [
    ".".join(source.with_suffix("").parts) for source in SOURCES if "\n        >>> " in (ROOT / source).read_text()
]


def test_there_are_docstrings_with_examples():
    assert {"numba_adam.optimizer", "numba_adam.functional", "numba_adam.interop.flat"} <= set(MODULES)


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_run(name):
    assert [getattr(numba_adam, public) for public in numba_adam.__all__]  # as users meet them
    results = doctest.testmod(importlib.import_module(name))
    assert results.attempted > 0
    assert results.failed == 0
