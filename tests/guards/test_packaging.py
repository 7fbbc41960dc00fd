"""pyproject.toml matches the repository: its packages, versions and lower bounds."""

import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

import numba_adam


@pytest.fixture(scope="module")
def pyproject(root: Path) -> dict:
    return tomllib.loads((root / "pyproject.toml").read_text())


def test_every_package_is_listed(root: Path, pyproject: dict) -> None:
    homes = {
        "numba_adam": root / "numba_adam",
        "numba_adam.server": root / "server",
        "numba_adam.client": root / "client",
    }
    found = {
        ".".join((name, *path.parent.relative_to(folder).parts))
        for name, folder in homes.items()
        for path in folder.rglob("__init__.py")
    }
    assert set(pyproject["tool"]["setuptools"]["packages"]) == found


def test_every_folder_with_code_is_a_package(root: Path) -> None:
    folders = {path.parent for top in ("numba_adam", "server", "client") for path in (root / top).rglob("*.py")}
    assert [str(folder) for folder in folders if not (folder / "__init__.py").exists()] == []


def test_types_are_shipped(root: Path, pyproject: dict) -> None:
    assert (root / "numba_adam" / "py.typed").exists()
    assert "py.typed" in pyproject["tool"]["setuptools"]["package-data"]["numba_adam"]


def test_the_version_is_the_same_everywhere(root: Path, pyproject: dict) -> None:
    version = pyproject["project"]["version"]
    assert numba_adam.__version__ == version
    assert metadata.version("numba-adam") == version
    assert re.search(rf"^## {re.escape(version)}\b", (root / "CHANGELOG.md").read_text(), re.MULTILINE)


def test_the_library_requires_only_numba_and_numpy(pyproject: dict) -> None:
    names = {re.split(r"[<>=!~\[ ]", requirement)[0] for requirement in pyproject["project"]["dependencies"]}
    assert names == {"numba", "numpy"}


def test_every_lower_bound_is_an_exact_version(root: Path, pyproject: dict) -> None:
    tool = root / "tools" / "lower_bounds.py"
    run = subprocess.run([sys.executable, tool], capture_output=True, text=True, check=True, timeout=800)
    bounds = dict(line.split("==") for line in run.stdout.split())
    assert {"numba", "numpy", "grpcio", "protobuf", "xxhash"} <= set(bounds)
    assert f"numba>={bounds['numba']}" in pyproject["project"]["dependencies"]
