"""The GPU kernel cache: kernels are saved and loaded, never mixed up or stale, and no damaged file stops a step.

No GPU is needed. Kernels are really compiled, linked to machine code, saved by one process and loaded by another; only
the GPU's compute capability is stated, and the machine code is put on no GPU (stated_gpu.py). `make gpu` does it all.
"""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import damage
import pytest

import numba_adam
from benchmarks.gpu.kernels import every_kernel
from numba_adam.cuda import seam
from numba_adam.cuda.kernels.layout import Layout

pytestmark = pytest.mark.cuda  # linking machine code needs nvJitLink: `make cuda` installs it

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PACKAGE = Path(numba_adam.__file__).parent

# Kernels that are quickly compiled, of every kind: of some there are several in one file, under one name.
CHOSEN = (
    *("total", "blocks", "fold float32", "lanes float32", "lanes float16"),
    *("sum flat, float32", "sum table, float32", "update flat, float32", "update flat, float32, contracted"),
)
SMALL = ("total", "lanes float32")

BEGIN = f"""
import json, logging, os, sys
logging.basicConfig(level=logging.WARNING, stream=sys.stdout, format="log: %(message)s")
sys.path[:0] = [{str(HERE)!r}, {str(HERE.parent)!r}]
sys.path.append({str(ROOT)!r})
from pathlib import Path
from numba_adam.cuda import cache, seam
from numba_adam.cuda.kernels import norm
import damage, stated_gpu
"""

# Uses kernels by their names, and prints what `stated_gpu.use` says of each.
USE = """
from benchmarks.gpu.kernels import every_kernel
major, minor = map(int, sys.argv[1].split("."))
stated_gpu.state(major, minor)
kernels = {kernel.name: kernel for kernel in every_kernel()}
print(json.dumps({name: stated_gpu.use(kernels[name].make(), kernels[name].types) for name in sys.argv[2:]}))
"""

# The smallest kernel that a format tells from others, made as in a new process each time `use` is called.
USE_ANEW = """
stated_gpu.state(9, 0)

def use(made=None):
    "Return whether the kernel had to be compiled."
    made = made or norm.lanes_kernel.__wrapped__("float32")
    return bool(stated_gpu.use(made, norm.LANES_ARGUMENTS)[1])

first = use()
"""


def run(program, *arguments, **environment):
    """Run a program in a new process; return the lines that it printed."""
    child = subprocess.run(
        [sys.executable, "-W", "error", "-c", BEGIN + program, *arguments],
        env={**os.environ, "NUMBA_ENABLE_CUDASIM": "0", **environment},
        cwd=HERE,  # not the repository's root, whose package would come before that of PYTHONPATH
        capture_output=True,
        text=True,
        check=False,
    )
    assert child.returncode == 0, child.stdout + child.stderr
    return child.stdout.splitlines()


def used(folder, *names, capability="9.0", before="", **environment):
    """Use kernels in a new process without log messages; return each one's loads, compilations and machine code."""
    (line,) = run(before + USE, capability, *names, NUMBA_CACHE_DIR=str(folder), **environment)
    return json.loads(line)


def counts(found):
    """Return the numbers of loads and compilations."""
    return {(loads, compilations) for loads, compilations, _ in found.values()}


LOADED, COMPILED = {(1, 0)}, {(0, 1)}


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """Return a folder with the kernels of one process, and that process's output."""
    folder = tmp_path_factory.mktemp("kept")
    return folder, used(folder, *CHOSEN)


@pytest.fixture
def own_copy(first, tmp_path):
    """Return a copy of that folder that a test may damage."""
    shutil.copytree(first[0], tmp_path / "cache")
    return tmp_path / "cache"


def files(folder, pattern):
    found = sorted(folder.rglob(pattern))
    assert found
    return found


# --- kept ---


def test_the_next_process_loads_compiled_kernels(first):
    folder, cold = first
    warm = used(folder, *CHOSEN, before="stated_gpu.forbid_compiling()\n")
    assert (counts(cold), counts(warm)) == (COMPILED, LOADED)
    assert [code for *_, code in warm.values()] == [code for *_, code in cold.values()]
    assert len({code for *_, code in cold.values()}) == len(CHOSEN), "kernels whose machine code differs must be chosen"


def test_gpu_and_cpu_kernels_are_cached_in_separate_folders(own_copy):
    """Neither removes the other's."""
    program = "import numba_adam.cpu.kernels.cache as cpu; print(cpu.folder()); print(cache.folder())"
    cpu, gpu = map(Path, run(program, NUMBA_CACHE_DIR=str(own_copy)))
    assert cpu.parent == gpu.parent == own_copy / "numba-adam"
    assert cpu != gpu
    assert files(gpu, "*.nbc")


def test_in_the_simulator_nothing_is_cached(tmp_path):
    program = "from numba_adam.cuda.kernels import norm; norm.lanes_kernel('float32')"
    environment = {**os.environ, "NUMBA_ENABLE_CUDASIM": "1", "NUMBA_CACHE_DIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", program], env=environment, check=True)
    assert list(tmp_path.iterdir()) == []


def test_a_package_without_a_cache_compiles_and_logs_it_once():
    program = """
import types
made, package = norm.lanes_kernel("float32"), types.ModuleType("another_package")
before = made._cache
for name in ("one", "two"):
    cache.keep(made, package, name)
print(made._cache is before)
"""
    logged, same = run(program)
    assert "compiled in every process" in logged
    assert "CUDACacheImpl" in logged
    assert same == "True"


# --- never another's ---


def name_of(kernel):
    """Return the file name of a cached kernel."""
    return kernel._cache._impl.filename_base


def test_every_kernel_has_its_own_name():
    names = {kernel.name: name_of(kernel.make()) for kernel in every_kernel()}
    assert len(names) >= 40
    assert len(set(names.values())) == len(names)


@pytest.mark.parametrize("field", Layout._fields)
def test_every_field_of_a_layout_is_in_the_name(field):
    def entry():
        pass

    usual = Layout()
    other = usual._replace(**{field: not getattr(usual, field) if field in ("zero_grad", "contract") else "float16"})
    assert name_of(seam.kernel(entry, "entry", usual)) != name_of(seam.kernel(entry, "entry", other))


def test_every_argument_of_a_builder_is_in_the_kernels_name():
    @seam.kernel_builder("entry")
    def build(format_, count):
        def entry():
            return

        return entry

    given = (("float32", 1), ("float16", 1), ("float32", 2))
    assert len({name_of(build(*arguments)) for arguments in given}) == len(given)
    assert [name_of(build(*arguments)) for arguments in given] == [name_of(build.__wrapped__(*one)) for one in given]


def test_kernels_that_differ_only_in_the_format_have_different_names(tmp_path):
    """Both are the same function with different closures, which the file's index cannot distinguish."""
    program = (
        USE_ANEW
        + """
one, other = (norm.lanes_kernel(number) for number in ("float32", "float16"))
for identity in ([("same",)] * 2, [("own", 1), ("own", 2)]):
    for kernel, of in zip((one, other), identity):
        made = seam.kernel(kernel.py_func, *of)
        print(*stated_gpu.use(made, norm.LANES_ARGUMENTS))
"""
    )
    lines = [line.split() for line in run(program, NUMBA_CACHE_DIR=str(tmp_path))]
    assert [line[:2] for line in lines] == [["0", "1"], ["1", "0"], ["0", "1"], ["0", "1"]]
    assert lines[0][2] == lines[1][2]
    assert lines[2][2] != lines[3][2]


def test_another_compute_capability_has_its_own_machine_code(own_copy, first):
    ours = {name: first[1][name] for name in SMALL}
    other = used(own_copy, *SMALL, capability="8.0")
    assert counts(other) == COMPILED
    assert [other[name][2] != ours[name][2] for name in SMALL] == [True, True]
    for capability, expected in (("8.0", other), ("9.0", ours)):
        again = used(own_copy, *SMALL, capability=capability)
        assert counts(again) == LOADED
        assert [again[name][2] for name in SMALL] == [expected[name][2] for name in SMALL]


def test_a_file_overwritten_by_another_process_is_not_used(own_copy):
    """Numba numbers files without a lock, so two processes on different GPUs may choose the same number."""
    used(own_copy, "total", capability="8.0")
    ours, theirs = files(own_copy, "total-*.nbc")
    shutil.copy(theirs, ours)
    logged, *_, line = run(USE, "9.0", "total", NUMBA_CACHE_DIR=str(own_copy))
    assert "could not be read" in logged
    assert counts(json.loads(line)) == COMPILED
    assert counts(used(own_copy, "total")) == LOADED


# --- never stale ---


def copy_of_the_package(to):
    """Copy the library for edits; return the folder to put first on the path."""
    shutil.copytree(PACKAGE, to / "numba_adam", ignore=shutil.ignore_patterns("__pycache__", "cli", "demo", "ps"))
    return to


def test_edited_kernels_are_compiled_by_the_next_process(own_copy, tmp_path):
    folder = copy_of_the_package(tmp_path / "site")
    environment = {"PYTHONPATH": str(folder)}
    assert counts(used(own_copy, *SMALL, **environment)) == LOADED  # an equal copy runs the same machine code
    source = folder / "numba_adam" / "cuda" / "kernels" / "norm.py"
    whole, status = source.read_text(), source.stat()
    source.write_text(whole.replace("total = total + _product", "total = total - _product"))
    assert source.read_text() != whole
    os.utime(source, ns=(status.st_atime_ns, status.st_mtime_ns))  # as an unpacked archive may have it
    assert counts(used(own_copy, *SMALL, **environment)) == COMPILED
    source.write_text(whole)
    assert counts(used(own_copy, *SMALL, **environment)) == LOADED


FINGERPRINT = "print(cache.sources().fingerprint)"


def test_every_source_is_in_the_fingerprint(tmp_path):
    folder = copy_of_the_package(tmp_path)
    seen = set(run(FINGERPRINT, PYTHONPATH=str(folder)))
    sources = sorted(made_of())
    for source in sources:
        path = folder / "numba_adam" / source
        path.write_text(path.read_text() + "\n# edited\n")
        seen |= set(run(FINGERPRINT, PYTHONPATH=str(folder)))
    assert len(seen) == 1 + len(sources)


# Imported by those, and no part of any kernel.
BESIDE = {
    "errors.py",
    "installing.py",
    "interop/arrays.py",
    "kernel_cache/files.py",
    "kernel_cache/location.py",
    "kernel_cache/private_folder.py",
    "kernel_cache/sources.py",
    "settings/hyperparameters.py",
}


def made_of():
    """Return the source files of kernels by following imports; one file of kernels/ stands for all."""
    found, left = set(), [f"cuda/kernels/{name}.py" for name in ("update", "accumulate", "fold", "norm")]
    while left:
        source = left.pop()
        if source not in found | BESIDE:
            found.add(source)
            left += imported(source)
    assert {
        "numerics/element.py",
        "numerics/constants.py",
        "numerics/codecs.py",
        "cuda/seam.py",
        "cuda/kernels/columns.py",
    } <= found
    return found


def imported(source):
    """Return the package's own files that one of them imports."""
    nodes = [node for node in ast.walk(ast.parse((PACKAGE / source).read_text())) if isinstance(node, ast.ImportFrom)]
    modules = [(node.module or "", alias.name) for node in nodes for alias in node.names]
    names = {
        name for module, part in modules for name in (module, f"{module}.{part}") if name.startswith("numba_adam.")
    }
    paths = [name.removeprefix("numba_adam.").replace(".", "/") + ".py" for name in names]
    return [path for path in paths if (PACKAGE / path).is_file()]


@pytest.mark.parametrize("distribution", ["numba-cuda", "cuda-core", "nvidia-nvvm", "nvidia-nvjitlink-cu12"])
def test_another_version_of_a_compiler_has_another_folder(tmp_path, distribution):
    """Distributions are found by their metadata, so this one has only metadata."""
    metadata = tmp_path / f"{distribution.replace('-', '_')}-99.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 99.0\n")
    assert run(FINGERPRINT) != run(FINGERPRINT, PYTHONPATH=str(tmp_path))


@pytest.mark.parametrize("option", [{"NUMBA_OPT": "0"}, {"NUMBA_FORCE_CUDA_CC": "8.6"}], ids=str)
def test_other_options_have_other_files(own_copy, option):
    assert counts(used(own_copy, *SMALL, **option)) == COMPILED
    assert counts(used(own_copy, *SMALL, **option)) == LOADED
    assert counts(used(own_copy, *SMALL)) == LOADED


# --- damage, and places that cannot be written to ---


@pytest.mark.parametrize("suffix", ["nbi", "nbc"])  # Numba's index files, and machine code
def test_a_damaged_file_costs_a_compilation(own_copy, suffix):
    program = (
        USE_ANEW
        + """
assert not first
own_name = norm.lanes_kernel("float32")._cache._impl.filename_base

def flip(data):
    "Change one bit in the middle of the machine code; an index has none."
    at = max(0, data.find(b"\\x7fELF"))
    at += (len(data) - at) // 2 if at else 0
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]

kinds = {**damage.KINDS, "a bit": flip}
for name in damage.damaged(kinds, lambda: cache.folder().glob(own_name + ".*" + sys.argv[1])):
    print("damage:", name)
    print("compiled:", use(), use())
"""
    )
    output = "\n".join(run(program, suffix, NUMBA_CACHE_DIR=str(own_copy)))
    damage.assert_each_was_mended(output, len(damage.KINDS) + 1, suffix)


def test_machine_code_that_the_driver_refuses_is_compiled_again(own_copy):
    """A fake driver refuses loaded machine code, and accepts compiled code."""
    program = USE_ANEW + "assert not first\nstated_gpu.state(9, 0, refusals=1)\nprint(use(), use())"
    logged, *_, result = run(program, NUMBA_CACHE_DIR=str(own_copy))
    assert "could not be read" in logged
    assert result == "True False"


def test_unwritable_files_cost_only_compilations(own_copy):
    """A folder with the file's name cannot be read or replaced, not even by root."""
    for path in files(own_copy, "lanes-*.nbi"):
        path.unlink()
        path.mkdir()
    *logged, result = run(USE_ANEW + "print(first, use())", NUMBA_CACHE_DIR=str(own_copy))
    assert result == "True True"
    assert any("could not be cached" in line for line in logged)


def test_without_any_writable_folder_every_process_compiles(tmp_path):
    (tmp_path / "file").write_text("a file")
    warning, result = run(USE_ANEW + "print(cache.folder(), first, use())", NUMBA_CACHE_DIR=str(tmp_path / "file"))
    assert result == "None True True"
    assert "NUMBA_CACHE_DIR" in warning


def test_a_folder_that_others_may_write_to_is_not_used(own_copy):
    """Otherwise other users could make us execute their code."""
    (base,) = own_copy.iterdir()
    base.chmod(0o770)
    warning, result = run(USE_ANEW + "print(cache.folder(), first)", NUMBA_CACHE_DIR=str(own_copy))
    assert result == "None True"
    assert "compiled in every process" in warning


def test_a_folder_that_was_removed_is_created_again(own_copy):
    program = "import shutil\nshutil.rmtree(cache.folder())\n" + USE_ANEW + "print(first, use())"
    assert run(program, NUMBA_CACHE_DIR=str(own_copy)) == ["True False"]
