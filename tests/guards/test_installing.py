"""Install commands work, and come from one file: no package index has the package."""

import re
import tomllib

from numba_adam import installing

OURS = re.compile(r"pip install (?:-[\w-]+ )*['\"]?(?:\.|numba-adam\b)[^`\s]*")
DOCUMENTS = ("*.md", "docs/*.md", "benchmarks/**/*.md")
SHIPPED = ("numba_adam/**/*.py", "server/**/*.py", "client/**/*.py", "examples/**/*.py")
SERVICES = ("docs/running.md", "examples/*.service", "examples/Dockerfile")


def test_every_install_line_comes_from_installing(root) -> None:
    extras = tomllib.loads((root / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    known = {installing.command(extra) for extra in (None, *extras)}
    of_services = {path.relative_to(root).as_posix() for pattern in SERVICES for path in root.glob(pattern)}
    copies = {installing.copying(extra) for extra in extras}
    found = {
        (str(path.relative_to(root)), match)
        for pattern in DOCUMENTS + SHIPPED + SERVICES
        for path in root.glob(pattern)
        if path.name != "installing.py"
        for match in OURS.findall(path.read_text())
    }
    assert {path for path, _ in found} >= {"README.md", "examples/digits.py", "docs/running.md"}
    assert {
        (path, line)
        for path, line in found
        if not {line, line.rstrip(".,;:)")} & (known | copies if path in of_services else known)
    } == set()


def test_only_one_file_of_the_package_has_install_commands(root) -> None:
    """Other files use it, so that the advice is the same everywhere."""
    saying = {
        path.relative_to(root).as_posix()
        for pattern in SHIPPED[:3]
        for path in root.glob(pattern)
        if OURS.search(path.read_text())
    }
    assert saying <= {"numba_adam/installing.py"}
