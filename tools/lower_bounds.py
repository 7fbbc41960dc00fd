"""Print the lowest version of each dependency that pyproject.toml admits, as constraints for pip.

`make oldest` installs them and runs the test suite, so that a lower bound is a version that was tried.
Imports nothing but the standard library: it runs before anything is installed.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

PYPROJECT = Path(__file__).resolve().parent.parent / "pyproject.toml"
# The dependencies of users. The tools for tests and checks may be newer.
EXTRAS = ("client", "server", "certificate", "demo")
REQUIREMENT = re.compile(r"^(?P<name>[A-Za-z0-9._-]+)(?:\[[^\]]*\])?>=(?P<version>[0-9.]+)$")


def lower_bounds(pyproject: dict[str, dict[str, object]]) -> dict[str, str]:
    """Return the name and lowest version of each dependency that users need."""
    project = pyproject["project"]
    optional = project["optional-dependencies"]
    assert isinstance(optional, dict)
    assert isinstance(project["dependencies"], list)
    bounds: dict[str, str] = {}
    for requirement in [*project["dependencies"], *(each for extra in EXTRAS for each in optional[extra])]:
        if requirement.startswith("numba-adam["):
            continue
        match = REQUIREMENT.match(requirement)
        if match is None:
            sys.exit(
                f"{requirement!r} in pyproject.toml: write it as name>=version, so that its lower end can be tried"
            )
        bounds[match["name"]] = match["version"]
    return bounds


def main() -> None:
    """Print one constraint per line."""
    for name, version in sorted(lower_bounds(tomllib.loads(PYPROJECT.read_text())).items()):
        print(f"{name}=={version}")


if __name__ == "__main__":
    main()
