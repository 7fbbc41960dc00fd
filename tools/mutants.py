"""Change the small files that matter, one place at a time, and see that a test notices: `make mutants`.

What is tried, with which tests, and why a mutant that no test notices is harmless, stands in tests/mutants.toml. A
survivor that is not explained there fails the run; so does an explanation that fits no mutant any more. Cosmic Ray
makes the mutants, in copies of the package: nothing is changed in the working tree.

    python tools/mutants.py                            all files
    python tools/mutants.py server/model/push_ledger.py          one of them
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
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
LIST = ROOT / "tests/mutants.toml"
CONFIGURATION = """\
[cosmic-ray]
module-path = "{path}"
timeout = {timeout_seconds}
excluded-modules = []
test-command = "{python} -m pytest -x -q -p no:cacheprovider {tests}"
[cosmic-ray.distributor]
name = "local"
[cosmic-ray.filters.operators-filter]
exclude-operators = ['{excluded}']
"""
# One replacement of an operator is enough, and the | of annotations is none.
KEPT = {
    "ReplaceBinaryOperator": "Add_Sub|Sub_Add|Mul_Div|Div_Mul|FloorDiv_Mul|Mod_Mul|Pow_Mul|RShift_LShift|LShift_RShift",
    "ReplaceComparisonOperator": "Lt_LtE|LtE_Lt|Gt_GtE|GtE_Gt|Lt_GtE|GtE_Lt|Eq_NotEq|NotEq_Eq|Is_IsNot|IsNot_Is|"
    "In_NotIn|NotIn_In",
}


class Survivor(NamedTuple):
    """A mutant that the tests did not notice."""

    path: str
    """The file, as the repository has it."""

    before: str
    """The changed lines, without what surrounds them."""

    after: str
    """What they became."""


def installed(path: str) -> str:
    """Return where a file of the repository lies in the installed package."""
    return path if path.startswith("numba_adam/") else f"numba_adam/{path}"


def copy_of_the_package(to: Path) -> None:
    """Copy the package as a wheel has it, and the tests beside it."""
    ignored = shutil.ignore_patterns("__pycache__")
    for source, target in (
        ("numba_adam", "numba_adam"),
        ("server", "numba_adam/server"),
        ("client", "numba_adam/client"),
    ):
        shutil.copytree(ROOT / source, to / target, ignore=ignored)
    shutil.copytree(ROOT / "tests", to / "tests", ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", to)


def run(words: Iterable[str], folder: Path) -> str:
    """Run a command in a copy, and return what it printed."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(folder),  # the copy, not the installed package
        "PYTHONDONTWRITEBYTECODE": "1",  # two mutants of one second and size would share a .pyc file
        "HYPOTHESIS_PROFILE": "mutants",
        "SEQUENCES": "30",
    }
    done = subprocess.run([*words], cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(words)} failed:\n{done.stdout}\n{done.stderr}")
    return done.stdout


def mutate(module: dict[str, Any]) -> tuple[int, list[Survivor]]:
    """Try every mutant of one file; return how many there were, and which survived."""
    tool = Path(sys.executable).parent
    with tempfile.TemporaryDirectory(prefix="numba-adam-mutants-") as name:
        folder = Path(name)
        copy_of_the_package(folder)
        excluded = "|".join(f"core/{operator}_(?!({kept})$)" for operator, kept in KEPT.items())
        (folder / "mutants.toml").write_text(
            CONFIGURATION.format(
                path=installed(module["path"]),
                timeout_seconds=module.get("timeout_seconds", 120),
                python=sys.executable,
                tests=" ".join(module["tests"]),
                excluded=excluded,
            )
        )
        run([str(tool / "cosmic-ray"), "baseline", "mutants.toml"], folder)
        run([str(tool / "cosmic-ray"), "init", "mutants.toml", "session.sqlite"], folder)
        run([str(tool / "cr-filter-operators"), "session.sqlite", "mutants.toml"], folder)
        run([str(tool / "cosmic-ray"), "exec", "mutants.toml", "session.sqlite"], folder)
        dump = run([str(tool / "cosmic-ray"), "dump", "session.sqlite"], folder)
    results = [result for _, result in map(json.loads, dump.splitlines()) if result["worker_outcome"] != "skipped"]
    lost = [result for result in results if result["test_outcome"] is None]
    if lost:
        sys.exit(f"{module['path']}: {len(lost)} mutants were not tried: {lost[0]}")
    return len(results), [survivor for result in results for survivor in survivors(module["path"], result)]


def survivors(path: str, result: dict[str, Any]) -> Iterator[Survivor]:
    """Return the mutant of a result, if it survived."""
    if result["test_outcome"] == "survived":
        lines = [line for line in result["diff"].splitlines() if not line.startswith(("---", "+++"))]
        before, after = ("\n".join(line[1:].strip() for line in lines if line.startswith(sign)) for sign in ("-", "+"))
        yield Survivor(path, before, after)


def main() -> int:
    """Try the mutants, print what became of them, and return 1 where one is not explained."""
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
