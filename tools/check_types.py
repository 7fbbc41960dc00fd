"""Run mypy --strict over the package as it is installed: server/ as numba_adam.server, client/ as numba_adam.client.

mypy finds modules by folder and follows neither setuptools' package-dir nor an editable install's import hook,
so this program makes a folder of links with the installed form under build/, and runs mypy on it. The path of the
folder is always the same, so that mypy's cache stays valid.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LAYOUT = ROOT / "build" / "types"
MAPPED = ("server", "client")
PROGRAMS = ("tools", "examples", "benchmarks")


def lay_out() -> None:
    """Fill LAYOUT with links to the sources, as they are installed."""
    shutil.rmtree(LAYOUT, ignore_errors=True)
    package = LAYOUT / "numba_adam"
    package.mkdir(parents=True)
    sources = [path for path in (ROOT / "numba_adam").iterdir() if path.name != "__pycache__"]
    for source in [*sources, *(ROOT / name for name in MAPPED)]:
        (package / source.name).symlink_to(source)


def check(arguments: list[str]) -> int:
    """Run mypy on some sources. Print its messages with the paths of the repository."""
    command = [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml"), *arguments]
    run = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "MYPYPATH": str(LAYOUT)}, capture_output=True, text=True, check=False
    )
    prefix = f"{LAYOUT.relative_to(ROOT)}{os.sep}"
    mapped = run.stdout + run.stderr
    for name in MAPPED:
        mapped = mapped.replace(f"{prefix}numba_adam{os.sep}{name}{os.sep}", f"{name}{os.sep}")
    print(mapped.replace(prefix, "").rstrip())
    return run.returncode


def main() -> None:
    """Check the package, then each other program. Exit non-zero if there is an error."""
    lay_out()
    codes = [check(["--package", "numba_adam", *sys.argv[1:]])]
    for folder in PROGRAMS:
        programs = sorted(str(path) for path in (ROOT / folder).rglob("*.py"))
        codes += (
            [check(["--scripts-are-modules", "--follow-imports=silent", *programs, *sys.argv[1:]])] if programs else []
        )
    sys.exit(max(codes))


if __name__ == "__main__":
    main()
