"""Build the wheel from the files that git tracks, check its contents, install it and run it.

From the repository's root Python would find the folder numba_adam/ first, and a mistake in packaging would go
unseen. So the wheel is built from a copy that holds no left-overs, and run from an empty folder.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# Programs that must run with the base dependencies only, and their expected output.
PROBES = {
    "import numba_adam; print(numba_adam.__version__)": None,
    "import numpy, numba_adam as na; p = numpy.ones(3); na.Adam([p]).step([numpy.ones(3)]); print(p[0] < 1)": "True",
}


def run(*command: str | Path, cwd: Path | None = None) -> str:
    """Run a command and return its output. If it fails, exit with its error output."""
    result = subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))} failed:\n{result.stdout}{result.stderr}")
    return result.stdout.strip()


def copy_sources(target: Path) -> None:
    """Copy every file that git tracks or would track, so that no stale build/ folder gets into the wheel."""
    listed = run("git", "ls-files", "--cached", "--others", "--exclude-standard", "-z", cwd=ROOT)
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, target / name)


def build(folder: Path) -> Path:
    """Build a source distribution, and the wheel from it."""
    source = folder / "source"
    copy_sources(source)
    run(sys.executable, "-m", "build", "--outdir", folder / "dist", source)
    (wheel,) = (folder / "dist").glob("*.whl")
    return wheel


def inspect(wheel: Path) -> None:
    """Exit with a message unless the wheel has exactly the expected files."""
    names = zipfile.ZipFile(wheel).namelist()
    top = {name.split("/")[0] for name in names if ".dist-info/" not in name}
    if top != {"numba_adam"}:
        sys.exit(f"the wheel's top-level names are {sorted(top)}; it may have numba_adam only")
    expected = {"numba_adam/py.typed"}
    for source, target in (
        ("numba_adam", "numba_adam"),
        ("server", "numba_adam/server"),
        ("client", "numba_adam/client"),
    ):
        expected |= {
            f"{target}/{path.relative_to(ROOT / source)}"
            for path in (ROOT / source).rglob("*.py*")
            if path.suffix in (".py", ".pyi")
        }
    if missing := sorted(expected - set(names)):
        sys.exit(f"the wheel lacks {', '.join(missing)}: list the package in pyproject.toml")


def try_out(wheel: Path, folder: Path) -> None:
    """Install the wheel alone and run the command and a few imports from an empty folder."""
    environment, empty = folder / "environment", folder / "empty"
    venv.create(environment, with_pip=True)
    empty.mkdir()
    python = environment / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", wheel)
    version = wheel.name.split("-")[1]
    commands: list[list[str | Path]] = [[environment / "bin" / "numba-adam"], [python, "-m", "numba_adam"]]
    for command in commands:
        if (printed := run(*command, "--version", cwd=empty)) != f"numba-adam {version}":
            sys.exit(f"`{' '.join(map(str, command))} --version` printed {printed!r}, not 'numba-adam {version}'")
    for program, expected in PROBES.items():
        if (printed := run(python, "-c", program, cwd=empty)) != (expected or version):
            sys.exit(f"{program!r} printed {printed!r}, not {expected or version!r}")
    run(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", f"{wheel}[server]")
    run(python, "-c", "import numba_adam.client, numba_adam.server.main", cwd=empty)


def main() -> None:
    """Build the wheel, check its contents, install and run it."""
    with tempfile.TemporaryDirectory(prefix="numba-adam-wheel-") as name:
        wheel = build(Path(name))
        inspect(wheel)
        try_out(wheel, Path(name))
        print(f"{wheel.name}: built, complete, installed and run in an empty environment")


if __name__ == "__main__":
    main()
