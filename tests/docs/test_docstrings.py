"""The examples in the library's docstrings run with the results shown."""

import doctest
import importlib
import importlib.util
from pathlib import Path

import pytest

import numba_adam

ROOT = Path(__file__).resolve().parents[2]
SOURCES = [path.relative_to(ROOT) for path in sorted((ROOT / "numba_adam").rglob("*.py")) if "/v1/" not in str(path)]
MODULES = [
    ".".join(source.with_suffix("").parts) for source in SOURCES if "\n        >>> " in (ROOT / source).read_text()
]


def test_examples_in_docstrings_are_found():
    assert {"numba_adam.optimizer", "numba_adam.functional", "numba_adam.interop.flat"} <= set(MODULES)


def marks(name):
    """Return the marks of a module: one that needs a framework runs where that is installed."""
    if not name.startswith("numba_adam.torch."):
        return []
    is_missing = importlib.util.find_spec("torch") is None
    reason = "torch is not installed; the parity environment has it"
    return [pytest.mark.parity, pytest.mark.skipif(is_missing, reason=reason)]


@pytest.mark.parametrize("name", [pytest.param(name, marks=marks(name)) for name in MODULES])
def test_examples_in_docstrings_run(name):
    assert [getattr(numba_adam, public) for public in numba_adam.__all__]  # as users meet them
    results = doctest.testmod(importlib.import_module(name))
    assert results.attempted > 0
    assert results.failed == 0
