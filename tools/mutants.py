"""Mutation tests (`make mutants`): change small files, one place at a time, and check that a test fails.

tests/mutants.toml lists the files with their tests, and explains why each surviving mutant is harmless. The run fails
if a survivor has no explanation, or if an explanation fits no mutant. Cosmic Ray makes the mutants in copies of the
package (tools/mutant_runs.py). The working tree does not change.

    python tools/mutants.py                                  all files
    python tools/mutants.py server/model/push_ledger.py     one of them
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
LIST = ROOT / "tests/mutants.toml"
RUNS = ROOT / "tools/mutant_runs.py"


class Survivor(NamedTuple):
    """A mutant with which the tests pass."""

    path: str
    """Path of the file in the repository."""

    before: str
    """The original lines, without context."""

    after: str
    """The lines of the mutant."""


def installed(path: str) -> str:
    """Return the path of a file in the installed package."""
    return path if path.startswith("numba_adam/") else f"numba_adam/{path}"


def copy_of_the_package(to: Path) -> None:
    """Copy the package as in a wheel, and the tests."""
    ignored = shutil.ignore_patterns("__pycache__")
    for source, target in (
        ("numba_adam", "numba_adam"),
        ("server", "numba_adam/server"),
        ("client", "numba_adam/client"),
    ):
        shutil.copytree(ROOT / source, to / target, ignore=ignored)
    shutil.copytree(ROOT / "tests", to / "tests", ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", to)


def mutate(module: dict[str, Any]) -> tuple[int, list[Survivor]]:
    """Run every mutant of one file. Return the number of mutants, and the survivors."""
    with tempfile.TemporaryDirectory(prefix="numba-adam-mutants-") as name:
        folder = Path(name)
        copy_of_the_package(folder)
        seconds = str(module.get("timeout_seconds", 120))
        words = [sys.executable, str(RUNS), installed(module["path"]), seconds, *module["tests"]]
        environment = {
            **os.environ,
            "PYTHONPATH": name,  # the copy, not the installed package
            "PYTHONDONTWRITEBYTECODE": "",
            "HYPOTHESIS_PROFILE": "mutants",
            "SEQUENCES": "30",
        }
        done = subprocess.run(words, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(f"{module['path']}: the mutants could not be tried")
    result = json.loads(done.stdout)
    return result["count"], [Survivor(module["path"], before, after) for before, after in result["survivors"]]


def main() -> int:
    """Run the mutants and print the results. Return 1 if a survivor is not explained."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="*", help="files of tests/mutants.toml; none: all of them")
    parser.add_argument("--jobs", type=int, default=2, help="files mutated at the same time (default: %(default)s)")
    arguments = parser.parse_args()
    listed = tomllib.loads(LIST.read_text())
    modules = [each for each in listed["module"] if not arguments.paths or each["path"] in arguments.paths]
    unknown = set(arguments.paths) - {each["path"] for each in listed["module"]}
    if unknown:
        parser.error(f"{sorted(unknown)[0]!r} is not in {LIST.name}")
    explained = {
        Survivor(each["path"], each["before"], each["after"])
        for each in listed.get("survivor", ())
        if each["path"] in {module["path"] for module in modules}
    }
    found: set[Survivor] = set()
    with ThreadPoolExecutor(arguments.jobs) as pool:
        for module, (count, lived) in zip(modules, pool.map(mutate, modules), strict=True):
            known = sum(each in explained for each in lived)
            print(f"{module['path']}: {count} mutants, {count - len(lived)} noticed, {known} explained", flush=True)
            found.update(lived)
    for each in sorted(found - explained):
        print(f"\nnobody noticed, in {each.path}:\n- {each.before}\n+ {each.after}")
    for each in sorted(explained - found):
        print(f"\nexplained, but noticed or gone, in {each.path}:\n- {each.before}\n+ {each.after}")
    return int(found != explained)


if __name__ == "__main__":
    sys.exit(main())
