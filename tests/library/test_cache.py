"""The kernel cache: machine code is reused, never stale, and no damaged file or folder stops a step."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import damage
import pytest

import numba_adam

TESTS = Path(__file__).resolve().parents[1]
PACKAGE = Path(numba_adam.__file__).parent
NOBODY = 65534

# One step; then the moments of it, how often Numba compiled, and what was logged.
STEP = """
import logging, sys
logging.basicConfig(level=logging.WARNING, stream=sys.stdout, format="log: %(message)s")
import numba.core.event as event
import numpy as np
recorder = event.RecordingListener()
event.register("numba:compile", recorder)
import numba_adam as na
param, grad = np.zeros(3, "f4"), np.array([1, -2, 4], "f4")
optimizer = na.Adam([param], betas=(0.5, 0.75))
optimizer.step([grad])
compiled = len(recorder.buffer)
optimizer.step([grad])
from numba_adam.cpu.kernels.cache import folder
print("moments", optimizer.state[0]["exp_avg"].tolist(), optimizer.state[0]["exp_avg_sq"].tolist())
print("compiled", compiled)
print("folder", folder())
"""
MOMENTS = "moments [0.75, -1.5, 3.0] [0.4375, 1.75, 7.0]"


# The smallest kernel we have, made as in a new process each time `use` is called.
USE = """
import logging, sys
logging.basicConfig(level=logging.WARNING, stream=sys.stdout, format="log: %(message)s")
import numpy as np
from numba_adam.cpu.kernels.compile import kernel
from numba_adam.cpu.kernels.finite import first_beyond

def use():
    "Return whether the kernel had to be compiled."
    made = kernel(first_beyond.py_func)
    assert made(np.array([1, 2, np.nan]), np.inf) == 2
    return sum(made.stats.cache_misses.values()) == 1

first = use()
from numba_adam.cpu.kernels.cache import folder
"""


def lines(output):
    """Return the output of a step: its moments, the number of compilations, its folder, and the log."""
    found = dict(line.split(" ", 1) for line in output.splitlines() if line.startswith(("compiled", "folder")))
    logged = [line for line in output.splitlines() if line.startswith("log: ")]
    (moments,) = [line for line in output.splitlines() if line.startswith("moments")]
    return moments, int(found["compiled"]), found["folder"], "\n".join(logged)


@pytest.fixture(scope="module")
def warm(tmp_path_factory):
    """Return a cache folder with every kernel of STEP."""
    folder = tmp_path_factory.mktemp("warm")
    child = subprocess.run(
        [sys.executable, "-c", STEP],
        env={**os.environ, "NUMBA_CACHE_DIR": str(folder)},
        capture_output=True,
        text=True,
        check=True,
        timeout=800,
    )
    moments, compiled, used, logged = lines(child.stdout)
    assert (moments, logged) == (MOMENTS, "")
    assert compiled > 0
    assert Path(used).is_relative_to(folder)
    return folder


@pytest.fixture
def own_copy(warm, tmp_path):
    """Return a copy of the warm folder that a test may damage."""
    shutil.copytree(warm, tmp_path / "cache")
    return tmp_path / "cache"


def files(folder, suffix):
    found = sorted(folder.rglob(f"*.{suffix}"))
    assert found
    return found


def test_a_new_process_with_a_warm_cache_compiles_nothing(run_python, warm):
    moments, compiled, _, logged = lines(run_python(STEP, NUMBA_CACHE_DIR=str(warm)))
    assert (moments, compiled, logged) == (MOMENTS, 0, "")


def test_a_second_step_compiles_nothing(run_python, warm):
    program = (
        STEP
        + """
before = len(recorder.buffer)
for lr in (0.5, 0.25):
    optimizer.param_groups[0]["lr"] = lr
    optimizer.step([np.ones(3, "f4")])
print("more", len(recorder.buffer) - before)
"""
    )
    assert "more 0" in run_python(program, NUMBA_CACHE_DIR=str(warm)).splitlines()


# --- never stale ---


def copy_of_the_package(to):
    """Copy the library for edits; return the folder to put first on the path."""
    shutil.copytree(PACKAGE, to / "numba_adam", ignore=shutil.ignore_patterns("__pycache__", "cli", "demo", "ps"))
    return to


WHICH = "\nimport numba_adam.numerics.element\nprint('from', numba_adam.numerics.element.__file__)\n"


def test_the_next_process_uses_edited_mathematics(run_python, tmp_path, own_copy):
    folder = copy_of_the_package(tmp_path / "site")
    environment = {"PYTHONPATH": str(folder), "NUMBA_CACHE_DIR": str(own_copy)}
    output = run_python(STEP + WHICH, **environment)
    assert f"from {folder}" in output
    assert lines(output)[:2] == (MOMENTS, 0)  # an equal copy runs the same machine code
    element = folder / "numba_adam" / "numerics" / "element.py"
    source = element.read_text()
    edited = source.replace("product(c.beta1, exp_avg) + product", "product(c.beta1, exp_avg) - product")
    assert edited != source
    status = element.stat()
    element.write_text(edited)
    os.utime(element, ns=(status.st_atime_ns, status.st_mtime_ns))  # as an unpacked archive may have it
    assert lines(run_python(STEP, **environment))[0] == MOMENTS.replace("0.75, -1.5, 3.0", "-0.75, 1.5, -3.0")
    element.write_text(source)
    moments, compiled, _, _ = lines(run_python(STEP, **environment))
    assert (moments, compiled) == (MOMENTS, 0)  # the old code is still there


NUMERICS = [path.stem for path in (PACKAGE / "numerics").glob("*.py") if path.stem != "__init__"]


def test_every_source_of_a_kernel_is_in_the_fingerprint(run_python, tmp_path):
    folder = copy_of_the_package(tmp_path)
    changed = [folder / "numba_adam" / "numerics" / f"{name}.py" for name in NUMERICS]
    changed += [folder / "numba_adam" / "cpu" / "kernels" / name for name in ("update.py", "tiles.py", "intrinsics.py")]
    program = """
from numba_adam.cpu.kernels.cache import sources
print(sources.__wrapped__().fingerprint)
for path in sys.argv[1:]:
    with open(path, "a") as file:
        file.write("\\n# edited\\n")
    print(sources.__wrapped__().fingerprint)
"""
    seen = run_python("import sys" + program, *map(str, changed), PYTHONPATH=str(folder)).splitlines()
    assert len(seen) == len(set(seen)) == 1 + len(changed)


# --- places that cannot be written to ---


def forbid_writing(folder):
    for path in [folder, *folder.rglob("*")]:
        path.chmod(path.stat().st_mode & ~(stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH))


def test_a_read_only_package_and_no_home_still_have_a_cache(run_python, tmp_path):
    """The home is a file, because root may write to folders of any mode."""
    folder = copy_of_the_package(tmp_path / "site")
    forbid_writing(folder)
    (tmp_path / "home").write_text("a file")
    (tmp_path / "temporary").mkdir()
    environment = {
        "PYTHONPATH": str(folder),
        "HOME": str(tmp_path / "home"),
        "XDG_CACHE_HOME": "",
        "NUMBA_CACHE_DIR": "",
        "TMPDIR": str(tmp_path / "temporary"),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    before = sorted(folder.rglob("*"))
    program = USE + "import numba_adam; print(numba_adam.__file__, folder(), first, use())"
    for expected in ("True False", "False False"):
        file, used, *compiled = run_python(program, **environment).split()
        assert Path(file).is_relative_to(folder)
        assert Path(used).is_relative_to(tmp_path / "temporary")
        assert " ".join(compiled) == expected
    assert sorted(folder.rglob("*")) == before


def test_without_any_writable_folder_every_process_compiles(run_python, tmp_path):
    (tmp_path / "file").write_text("a file")
    output = run_python(USE + "print(folder(), first, use())", NUMBA_CACHE_DIR=str(tmp_path / "file"))
    warning, result = output.splitlines()
    assert result == "None True True"
    assert "NUMBA_CACHE_DIR" in warning


def test_a_folder_that_others_may_write_to_is_not_used(run_python, own_copy):
    """Otherwise other users could make us execute their code."""
    (base,) = own_copy.iterdir()
    (version,) = base.iterdir()
    program = """
import sys
from pathlib import Path
from numba_adam.cpu.kernels import cache
for path in map(Path, sys.argv[1:]):
    for mode in (0o770, 0o707, 0o777, 0o720, 0o702):
        path.chmod(mode)
        cache.folder.cache_clear()
        assert cache.folder() is None, (path, oct(mode))
    path.chmod(0o755)
    cache.folder.cache_clear()
    assert cache.folder() is not None
"""
    run_python(program, str(base), str(version), NUMBA_CACHE_DIR=str(own_copy))
    base.chmod(0o770)
    output = run_python(USE + "print(folder(), first, use())", NUMBA_CACHE_DIR=str(own_copy))
    assert output.splitlines()[-1] == "None True True"
    assert "compiled in every process" in output


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can give files away")
def test_a_folder_that_belongs_to_another_user_is_not_used(run_python, own_copy):
    (base,) = own_copy.iterdir()
    for path in [base, *base.rglob("*")]:
        os.chown(path, NOBODY, NOBODY)
    output = run_python(USE + "print(folder(), first)", NUMBA_CACHE_DIR=str(own_copy))
    assert output.splitlines()[-1] == "None True"


def opened_for_reading(folder):
    """Do what docs/warmup.md says about images: chmod -R a+rX, and nobody may write."""
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    return {path: (path.stat().st_size, path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}


def test_kernels_in_an_image_are_loaded_under_another_home_and_nothing_is_written(run_python, own_copy, tmp_path):
    before = opened_for_reading(own_copy)
    (tmp_path / "home").mkdir()
    image = {"NUMBA_CACHE_DIR": str(own_copy), "HOME": str(tmp_path / "home"), "XDG_CACHE_HOME": ""}
    moments, compiled, used, logged = lines(run_python(STEP, **image))
    assert (moments, compiled, logged) == (MOMENTS, 0, "")
    assert Path(used).is_relative_to(own_copy)
    assert opened_for_reading(own_copy) == before
    assert list((tmp_path / "home").iterdir()) == []


AS_ANOTHER_USER = """
import os, sys
from pathlib import Path
from numba_adam.kernel_cache import location
from numba_adam.kernel_cache.sources import CPU_KERNELS, Sources
sources = Sources(CPU_KERNELS)
sources.fingerprint = sys.argv[3]
os.setgroups([])
os.setgid(int(sys.argv[2]))
os.setuid(int(sys.argv[2]))
found = location.folder(sources, sys.argv[1])
print(found, found is not None and {path.suffix for path in found.iterdir() if path.read_bytes()} == {".nbi", ".nbc"})
"""


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can become another user")
def test_kernels_that_root_put_into_an_image_are_read_by_another_user(run_python, warm):
    """The folder lies in /tmp: pytest's own folders are for their owner alone."""
    with tempfile.TemporaryDirectory() as image:
        Path(image).chmod(0o755)
        shutil.copytree(warm, Path(image) / "kernels")
        opened_for_reading(Path(image) / "kernels")
        (version,) = Path(image).glob("kernels/numba-adam/*")
        arguments = str(Path(image) / "kernels"), str(NOBODY), version.name
        assert run_python(AS_ANOTHER_USER, *arguments) == f"{version} True"
        version.chmod(0o755)
        os.chown(version, NOBODY + 1, NOBODY + 1)  # neither the reader's nor root's
        assert run_python(AS_ANOTHER_USER, *arguments).splitlines()[-1] == "None False"


def test_folders_are_created_for_their_owner_only(warm):
    (base,) = warm.iterdir()
    assert [stat.S_IMODE(path.stat().st_mode) for path in (base, *base.iterdir())] == [0o700, 0o700]


def test_unused_versions_are_removed(run_python, own_copy):
    (base,) = own_copy.iterdir()
    (current,) = base.iterdir()
    old, young = "0123456789abcdef" * 2, "fedcba9876543210" * 2
    strange = ("photographs", old[:-1], f"{old}0", old.upper())  # not ours, however old they are
    for name in (old, young, *strange):
        (base / name).mkdir()
        (base / name / "kernel.nbi").write_bytes(b"")
        age_days = 10 if name == young else 100
        os.utime(base / name, (current.stat().st_mtime - age_days * 86_400,) * 2)
    os.utime(current, (0, 0))
    assert lines(run_python(STEP, NUMBA_CACHE_DIR=str(own_copy)))[:2] == (MOMENTS, 0)
    assert {path.name for path in base.iterdir()} == {current.name, young, *strange}


# --- damage ---

DAMAGE = """
assert not first
sys.path.append(sys.argv[2])
import damage
for name in damage.damaged(damage.KINDS, lambda: folder().rglob("*." + sys.argv[1])):
    print("damage:", name)
    print("compiled:", use(), use())
"""


@pytest.fixture(scope="module")
def one_kernel(tmp_path_factory):
    """Return a cache folder with the one kernel of USE."""
    folder = tmp_path_factory.mktemp("one")
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(folder)}
    subprocess.run([sys.executable, "-c", USE + "assert first"], env=environment, check=True, timeout=800)
    return folder


@pytest.mark.parametrize("suffix", ["nbi", "nbc"])  # Numba's index files, and its machine code
def test_a_damaged_file_costs_a_compilation(run_python, one_kernel, tmp_path, suffix):
    shutil.copytree(one_kernel, tmp_path / "cache")
    output = run_python(USE + DAMAGE, suffix, str(TESTS), NUMBA_CACHE_DIR=str(tmp_path / "cache"))
    damage.assert_each_was_mended(output, len(damage.KINDS), suffix)


def test_unwritable_files_cost_only_compilations(run_python, one_kernel, tmp_path):
    """A folder with the file's name cannot be read or replaced, not even by root."""
    shutil.copytree(one_kernel, tmp_path / "cache")
    for path in files(tmp_path / "cache", "nbi"):
        path.unlink()
        path.mkdir()
    output = run_python(USE + "print(first, use())", NUMBA_CACHE_DIR=str(tmp_path / "cache")).splitlines()
    assert output[-1] == "True True"
    assert any("could not be cached" in line for line in output)


def test_a_process_without_a_compiler_gets_a_clear_error(run_python):
    program = """
import numba_adam
try:
    numba_adam.Adam
except ImportError as error:
    print(error)
"""
    assert "NUMBA_DISABLE_JIT=0" in run_python(program, NUMBA_DISABLE_JIT="1")
