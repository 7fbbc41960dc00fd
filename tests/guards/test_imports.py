"""Imports point downward, stay light, and name frameworks in one place only."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = {"numba", "llvmlite", "scipy", "sklearn", "matplotlib", "pandas"}
FRAMEWORKS = {"torch", "jax", "jaxlib", "tensorflow", "keras", "cupy", "mlx", "mxnet", "paddle", "flax", "optax", "ray"}
WIRE = {"grpc", "google", "grpc_health", "grpc_reflection"}

# Where modules stand (the longest matching name decides), from the bottom up. A module imports from its own place and
# from those in the rows above its own; the places of one row do not import each other.
ORDER = (
    ("errors", "installing", "telling"),
    ("numerics", "kernel_cache"),
    ("interop",),
    ("settings",),
    ("cpu", "cuda"),
    ("optim",),
    ("rows",),
    ("functional", "optimizer"),
    ("warmup", "torch", "jax"),
    ("ps",),
    ("server.memory", "server.logs", "server.supervision", "client.progress", "client.pieces"),
    ("server.config", "client.transport"),
    ("server.model",),
    ("server.storage",),
    ("server.runtime",),
    ("server.transport",),
    ("server.metrics",),
    ("server.embedded", "client"),
    ("server.main",),
    ("server",),
    ("climb", "demo"),
    ("cli",),
    ("__init__", "__main__"),
)
# What a place may not import although it stands above.
FORBIDDEN = {
    "ps": {"numerics", "kernel_cache", "interop", "cpu", "cuda", "optim", "rows", "functional", "optimizer", "warmup"},
    "client": {"kernel_cache", "cpu", "cuda", "optim", "rows", "functional", "optimizer", "warmup", "server"},
    "server": {"client"},
    "demo": {"server", "cpu", "cuda"},
    "__main__": {"server", "client"},
}
MOST_FILES_AT_THE_TOP = 12
# Who may know Numba, and who a framework: all others go through them.
NUMBA = (
    "numba_adam/cpu/kernels/",
    "numba_adam/rows/kernels/",
    "numba_adam/cuda/",
    "numba_adam/cli/checkup.py",
    "server/runtime/launcher.py",
)
SERVICE = ("numba_adam/ps/", "numba_adam/cli/", "numba_adam/demo/", "server/", "client/")
INTEROP = ("numba_adam/interop/", "numba_adam/demo/", "numba_adam/torch/", "numba_adam/jax.py")
# The server's folders that speak plain values, and the modules that know the protocol's messages.
PLAIN = ("server/model/", "server/storage/", "server/runtime/")
MESSAGES = {
    "numba_adam.ps.v1",
    "numba_adam.ps.convert",
    "numba_adam.ps.errors",
    "numba_adam.ps.framing",
    "numba_adam.ps.whole",
}


def loaded_by(program: str) -> set[str]:
    """Return the top-level modules that a new process has loaded after running `program`."""
    code = f"{program}\nimport sys; print(*sorted({{name.split('.')[0] for name in sys.modules}}), file=sys.stderr)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=800)
    return set(run.stderr.split("\n")[-2].split())


def below(module: str, packages: set[str]) -> bool:
    return any(f"{module}.".startswith(f"{package}.") for package in packages)


@pytest.mark.parametrize(
    ("program", "forbidden"),
    [
        ("import numba_adam", HEAVY | FRAMEWORKS | WIRE),
        ("import numba_adam; numba_adam.Hyperparameters(lr=0.1)", HEAVY | FRAMEWORKS | WIRE),
        ("import numba_adam.errors", HEAVY | FRAMEWORKS | WIRE | {"numpy"}),
        (
            "import numba_adam.cli\ntry: numba_adam.cli.main(['--version'])\nexcept SystemExit: pass",
            HEAVY | WIRE | {"numpy"},
        ),
        ("import numba_adam.interop", HEAVY | FRAMEWORKS | WIRE),
        ("import numba_adam.server.config", HEAVY | FRAMEWORKS | WIRE),
        (
            "import importlib, pkgutil, numba_adam.server.model as model, numba_adam.server.storage as storage\n"
            "for path, name in ((model.__path__, model.__name__), (storage.__path__, storage.__name__)):\n"
            "    for module in pkgutil.iter_modules(path, f'{name}.'): importlib.import_module(module.name)",
            HEAVY | FRAMEWORKS | WIRE,
        ),
        (
            "import importlib, pkgutil, numba_adam.client as client\n"
            "for module in pkgutil.walk_packages(client.__path__, 'numba_adam.client.'):\n"
            "    importlib.import_module(module.name)",
            HEAVY | FRAMEWORKS,
        ),
    ],
)
def test_imports_are_light(program: str, forbidden: set[str]) -> None:
    assert loaded_by(program) & forbidden == set()


def inside(sources):
    """Return the shipped modules by their names within numba_adam; the package itself is "__init__"."""
    found = {}
    for source in filter(lambda source: source.shipped, sources):
        name = source.path.removeprefix("numba_adam/").removesuffix(".py").replace("/", ".")
        found[name if name == "__init__" else name.removesuffix(".__init__")] = source
    return found


def imported_modules(source, modules):
    """Return the modules of ours that a file imports, and their lines."""
    found = {}
    for name, line in source.imports():
        parts = name.split(".")
        if parts[0] == "numba_adam":
            candidates = (".".join(parts[1:end]) for end in range(len(parts), 1, -1))
            found[next((each for each in candidates if each in modules), "__init__")] = line
    return found


def place(module: str) -> str:
    places = [each for row in ORDER for each in row if f"{module}.".startswith(f"{each}.")]
    assert places, f"{module} stands in no row of ORDER: say what it may import"
    return max(places, key=len)


def test_imports_point_one_way(sources) -> None:
    rows = {each: number for number, row in enumerate(ORDER) for each in row}
    modules, wrong = inside(sources), []
    for module, source in modules.items():
        own = place(module)
        never = {each for above, them in FORBIDDEN.items() if f"{module}.".startswith(f"{above}.") for each in them}
        for name, line in imported_modules(source, modules).items():
            other = place(name)
            is_below = other == own or rows[other] < rows[own] or name == "__init__"
            if not is_below or any(f"{name}.".startswith(f"{each}.") for each in never):
                wrong.append(f"{source.path}:{line}: {own} imports {name}")
    assert wrong == []


def test_no_imports_are_circular(sources) -> None:
    modules = inside(sources)
    left = {name: set(imported_modules(source, modules)) - {name, "__init__"} for name, source in modules.items()}
    needed = set(left)
    while free := [name for name, needs in left.items() if not needs & left.keys() or name not in needed]:
        for name in free:
            del left[name]
        needed = {each for needs in left.values() for each in needs}
    assert {name: sorted(needs & left.keys()) for name, needs in left.items()} == {}


def test_no_private_name_is_imported_from_another_folder(sources) -> None:
    modules, wrong = inside(sources), []
    for source in modules.values():
        for node in ast.walk(source.tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("numba_adam"):
                home = node.module.removeprefix("numba_adam").removeprefix(".").replace(".", "/")
                folder = home if home.replace("/", ".") not in modules else home.rpartition("/")[0]
                own = source.path.removeprefix("numba_adam/").rpartition("/")[0]
                private = [
                    each.name for each in node.names if each.name.startswith("_") and not each.name.endswith("__")
                ]
                if private and folder != own:
                    wrong.append(f"{source.path}:{node.lineno}: {', '.join(private)} of {node.module}")
    assert wrong == []


def test_the_top_of_the_package_is_its_public_face(root: Path) -> None:
    assert len(list((root / "numba_adam").glob("*.py"))) <= MOST_FILES_AT_THE_TOP


def test_only_the_service_imports_grpc(sources) -> None:
    strangers = [
        f"{source.path}:{line}: {name}"
        for source in sources
        if source.shipped and not source.path.startswith(SERVICE)
        for name, line in source.imports()
        if below(name, WIRE)
    ]
    assert strangers == []


def test_only_kernels_import_numba(sources) -> None:
    strangers = [
        f"{source.path}:{line}: {name}"
        for source in sources
        if source.shipped and not source.path.startswith(NUMBA)
        for name, line in source.imports()
        if below(name, {"numba", "llvmlite"})
    ]
    assert strangers == []


def test_only_interop_names_frameworks(sources) -> None:
    strangers = [
        f"{source.path}:{line}: {name}"
        for source in sources
        if source.shipped and not source.path.startswith(INTEROP)
        for name, line in source.imports()
        if below(name, FRAMEWORKS)
    ]
    assert strangers == []


def test_no_import_uses_a_folders_bare_name(sources) -> None:
    """`import server` works in the root of the repository only, where tests/torture runs, and not installed."""
    bare = [
        f"{source.path}:{line}: {name}"
        for source in sources
        for name, line in source.imports()
        if below(name, {"server", "client", "tests"}) or name.startswith(".")
        if not (source.path.startswith("tests/torture/") and name.startswith("tests.torture."))
    ]
    assert bare == []


def test_below_its_transport_the_server_imports_no_messages(sources) -> None:
    strangers = [
        f"{source.path}:{line}: {name}"
        for source in sources
        if source.path.startswith(PLAIN)
        for name, line in source.imports()
        if below(name, MESSAGES | WIRE)
    ]
    assert strangers == []
