"""The folder of the kernel cache: it needs readable sources, and no other user may write to it."""

from __future__ import annotations

import compileall
import os
import re
import shutil
import stat
import subprocess
import sys
import zipfile
from pathlib import Path
from py_compile import PycInvalidationMode

import pytest

import numba_adam

PACKAGE = Path(numba_adam.__file__).parent

# The smallest kernel we have, and how it is used: what it found, whether it was compiled, and where it is kept.
USE = """
import logging, sys
logging.basicConfig(level=logging.WARNING, stream=sys.stdout, format="log: %(message)s")
import numpy as np

def use():
    "Return whether the kernel had to be compiled."
    from numba_adam.cpu.kernels.compile import kernel
    from numba_adam.cpu.kernels.finite import first_beyond
    made = kernel(first_beyond.py_func)
    global found
    found = made(np.array([1, 2, np.nan]), np.inf)
    return not made.stats.cache_hits
"""
SHOW = """
compiled = use()
from numba_adam.cpu.kernels.cache import folder
print("found", found, "compiled", compiled, "folder", folder())
"""
NOWHERE = "found 2 compiled True folder None"


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """Return a folder with a copy of the library, to be put first on the path."""
    shutil.copytree(
        PACKAGE, tmp_path / "site/numba_adam", ignore=shutil.ignore_patterns("__pycache__", "cli", "demo", "ps")
    )
    return tmp_path / "site"


def edit(source: Path) -> None:
    """Edit the kernel of USE: it returns the index after the first non-finite number."""
    text = source.read_text()
    edited = text.replace("return i\n", "return i + 1\n")
    assert edited != text
    source.write_text(edited)


def shown(output: str) -> tuple[str, str]:
    """Return the last line, and the log before it."""
    *logged, last = output.splitlines()
    return last, "\n".join(logged)


# --- sources that cannot be read ---


def zipped(site: Path) -> Path:
    archive = site.with_suffix(".zip")
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted(site.rglob("*.py")):
            file.write(path, path.relative_to(site))
    return archive


def test_kernels_from_a_zip_are_not_cached(run_python, site, tmp_path):
    cache = tmp_path / "cache"
    environment = {"NUMBA_CACHE_DIR": str(cache), "PYTHONPATH": str(zipped(site))}
    last, logged = shown(run_python(USE + SHOW, **environment))
    assert last == NOWHERE
    assert re.search("sources cannot be read in .*site.zip", logged)
    assert not list(tmp_path.rglob("*.nbi"))
    edit(site / "numba_adam/cpu/kernels/finite.py")
    zipped(site)
    assert shown(run_python(USE + SHOW, **environment))[0] == NOWHERE.replace("found 2", "found 3")


@pytest.mark.parametrize("without_source", ["**/*.py", "numerics/element.py", "cpu/kernels/finite.py"])
def test_kernels_from_pyc_files_without_sources_are_not_cached(run_python, site, tmp_path, without_source):
    """Python runs a .pyc file in place of its source, which may have been different."""
    assert compileall.compile_dir(site, quiet=1, legacy=True)
    for source in (site / "numba_adam").glob(without_source):
        source.unlink()
    environment = {"NUMBA_CACHE_DIR": str(tmp_path / "cache"), "PYTHONPATH": str(site)}
    last, logged = shown(run_python(USE + SHOW, **environment))
    assert last == NOWHERE
    assert "sources cannot be read" in logged


def test_kernels_from_unchecked_pyc_files_are_not_cached(run_python, site, tmp_path):
    """Python then runs the .pyc file even after an edit of the source (PEP 552)."""
    unchecked = PycInvalidationMode.UNCHECKED_HASH
    assert compileall.compile_file(site / "numba_adam/cpu/kernels/finite.py", quiet=1, invalidation_mode=unchecked)
    edit(site / "numba_adam/cpu/kernels/finite.py")
    environment = {"NUMBA_CACHE_DIR": str(tmp_path / "cache"), "PYTHONPATH": str(site)}
    assert shown(run_python(USE + SHOW, **environment))[0] == NOWHERE


def test_kernels_are_not_cached_if_pyc_files_are_never_checked(site, tmp_path):
    """The same with --check-hash-based-pycs never."""
    checked = PycInvalidationMode.CHECKED_HASH
    assert compileall.compile_file(site / "numba_adam/cpu/kernels/finite.py", quiet=1, invalidation_mode=checked)
    edit(site / "numba_adam/cpu/kernels/finite.py")
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / "cache"), "PYTHONPATH": str(site)}
    show = "from numba_adam.cpu.kernels.cache import folder; print(folder())"
    for option, is_kept in (("never", False), ("default", True)):
        command = [sys.executable, "--check-hash-based-pycs", option, "-c", show]
        done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=True)
        assert (done.stdout.strip() != "None") is is_kept, done.stderr


def test_kernels_edited_during_a_process_are_not_cached_as_the_old_ones(run_python, site, tmp_path):
    environment = {"NUMBA_CACHE_DIR": str(tmp_path / "cache"), "PYTHONPATH": str(site)}
    edited_meanwhile = """
from pathlib import Path
import numba_adam.cpu.kernels.convert  # the folder is chosen
source = Path(sys.argv[1])
original = source.read_text()
source.write_text(original.replace("return i\\n", "return i + 1\\n"))
assert use() and use() and found == 3
source.write_text(original)
"""
    run_python(USE + edited_meanwhile, str(site / "numba_adam/cpu/kernels/finite.py"), **environment)
    assert shown(run_python(USE + SHOW, **environment))[0].startswith("found 2 compiled True folder /")
    assert shown(run_python(USE + SHOW, **environment))[0].startswith("found 2 compiled False folder /")


def test_numba_does_not_choose_the_cache_folder(run_python, tmp_path):
    """Numba's folders depend on one file each, so edits of other files would go unnoticed."""
    environment = {"NUMBA_CACHE_DIR": str(tmp_path / "cache"), "NUMBA_CACHE_LOCATOR_CLASSES": "InTreeCacheLocator"}
    last, _ = shown(run_python(USE + SHOW, **environment))
    assert last.startswith(f"found 2 compiled True folder {tmp_path / 'cache'}")
    assert list(tmp_path.glob("cache/numba-adam/*/*.nbi"))


def test_settings_that_change_the_machine_code_have_their_own_folder(run_python, tmp_path):
    program = "from numba_adam.cpu.kernels.cache import folder; print(folder())"
    settings = ({}, {"NUMBA_OPT": "0"}, {"NUMBA_BOUNDSCHECK": "1"}, {"NUMBA_LOOP_VECTORIZE": "0"})
    found = {run_python(program, NUMBA_CACHE_DIR=str(tmp_path), **each) for each in settings}
    assert len(found) == len(settings)


# --- which folder ---


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"NUMBA_CACHE_DIR": "~/kept"}, "home/kept/numba-adam"),
        ({"NUMBA_CACHE_DIR": "~"}, "home/numba-adam"),
        ({"XDG_CACHE_HOME": "~/kept"}, "home/kept/numba-adam"),
        ({"XDG_CACHE_HOME": "relative"}, "home/.cache/numba-adam"),  # to be ignored, says its specification
        ({}, "home/.cache/numba-adam"),
    ],
)
def test_a_tilde_means_the_home_folder(run_python, tmp_path, variables, expected):
    environment = {"NUMBA_CACHE_DIR": "", "XDG_CACHE_HOME": "", "HOME": str(tmp_path / "home"), **variables}
    folder = Path(run_python("from numba_adam.cpu.kernels.cache import folder; print(folder())", **environment))
    assert folder.parent == tmp_path / expected
    assert [path.name for path in tmp_path.iterdir()] == ["home"]


@pytest.mark.parametrize("home", ["~", "~/user", "relative", ""])
def test_a_home_that_is_not_a_path_creates_no_folder_with_that_name(run_python, tmp_path, home):
    """The home then comes from the system's list of users; here it is a folder of this test."""
    program = """
import os, pwd, sys, types
pwd.getpwuid = lambda number: types.SimpleNamespace(pw_dir=sys.argv[1])
from numba_adam.cpu.kernels.cache import folder
print(folder())
"""
    environment = {"NUMBA_CACHE_DIR": "", "XDG_CACHE_HOME": "", "HOME": home}
    folder = Path(run_python(program, str(tmp_path / "listed"), **environment))
    assert folder.is_relative_to(tmp_path / "listed/.cache/numba-adam")
    assert [path.name for path in tmp_path.iterdir()] == ["listed"]


def test_an_unknown_users_home_creates_no_folder(run_python, tmp_path):
    program = "from numba_adam.cpu.kernels.cache import folder; print(folder())"
    assert run_python(program, NUMBA_CACHE_DIR="~nobody-of-this-name/kept").splitlines()[-1] == "None"
    assert not list(tmp_path.iterdir())


def test_a_relative_folder_stays_the_same_after_a_change_of_directory(run_python, tmp_path):
    elsewhere = """
from numba_adam.cpu.kernels.cache import folder
import os
checked = folder()
os.mkdir("elsewhere")
os.chdir("elsewhere")
"""
    output = run_python(USE + elsewhere + SHOW + "print(os.listdir('.'))", NUMBA_CACHE_DIR="kept")
    *_, last, listed = output.splitlines()
    assert last.startswith(f"found 2 compiled True folder {tmp_path / 'kept/numba-adam'}")
    assert listed == "[]"
    assert list(tmp_path.glob("kept/numba-adam/*/*.nbi"))


def test_a_symbolic_link_is_resolved_once(run_python, tmp_path):
    """A later change of the link does not change the folder."""
    (tmp_path / "own").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(tmp_path / "own")
    output = run_python(USE + SHOW, NUMBA_CACHE_DIR=str(tmp_path / "link"))
    assert shown(output)[0].startswith(f"found 2 compiled True folder {tmp_path / 'own'}")


# --- who else may write there ---


def test_a_folder_that_anyone_may_rename_is_not_used(run_python, tmp_path):
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    environment = {"NUMBA_CACHE_DIR": str(tmp_path / "open/kept")}
    last, logged = shown(run_python(USE + SHOW, **environment))
    assert last == NOWHERE
    assert "anyone may rename" in logged
    (tmp_path / "open").chmod(0o1777)  # as /tmp is
    assert shown(run_python(USE + SHOW, **environment))[0].startswith(f"found 2 compiled True folder {tmp_path}")


def test_a_folder_that_others_replaced_later_is_not_used(run_python, tmp_path):
    swapped = """
from numba_adam.cpu.kernels.cache import folder
import os
assert use() and not use()
os.chmod(folder(), 0o777)
assert use() and found == 2
os.chmod(folder(), 0o700)
assert not use()
os.chmod(folder().parent, 0o777)
assert use() and found == 2
"""
    output = run_python(USE + swapped, NUMBA_CACHE_DIR=str(tmp_path / "kept"))
    assert output.count("others may write to") >= 2


def test_created_folders_belong_to_their_owner_only_for_any_umask(run_python, tmp_path):
    program = (
        "import os; os.umask(int(sys.argv[1], 8))\nfrom numba_adam.cpu.kernels.cache import folder; print(folder())"
    )
    for umask in ("000", "022", "277"):
        home = tmp_path / umask
        home.mkdir()
        environment = {"NUMBA_CACHE_DIR": "", "XDG_CACHE_HOME": "", "HOME": str(home)}
        folder = Path(run_python("import sys\n" + program, umask, **environment))
        made = [path for path in (folder, *folder.parents) if path.is_relative_to(home) and path != home]
        assert len(made) == 3
        assert [stat.S_IMODE(path.stat().st_mode) for path in made] == [0o700] * 3, umask


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="users are POSIX's")
def test_the_log_says_why_a_folder_is_not_used(run_python, tmp_path):
    (tmp_path / "kept/numba-adam").mkdir(parents=True)
    (tmp_path / "kept/numba-adam").chmod(0o775)
    _, logged = shown(run_python(USE + SHOW, NUMBA_CACHE_DIR=str(tmp_path / "kept")))
    assert f"others may write to '{tmp_path / 'kept/numba-adam'}' (mode 775" in logged
