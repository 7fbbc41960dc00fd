"""Imports point downward, stay light, and name frameworks in one place only."""

import subprocess
import sys

import pytest

HEAVY = {"numba", "llvmlite", "scipy", "sklearn", "matplotlib", "pandas"}
FRAMEWORKS = {"torch", "jax", "jaxlib", "tensorflow", "keras", "cupy", "mlx", "mxnet", "paddle", "flax", "optax", "ray"}
WIRE = {"grpc", "google", "grpc_health", "grpc_reflection"}

# A part (the longest matching path decides) and what it may never import.
FORBIDDEN = {
    "numba_adam/": {"numba_adam.ps", "numba_adam.server", "numba_adam.client", "numba_adam.cli", "numba_adam.demo"}
    | WIRE,
    "numba_adam/__main__.py": {"numba_adam.server", "numba_adam.client"} | WIRE,
    "numba_adam/ps/": {
        "numba_adam.server",
        "numba_adam.client",
        "numba_adam.cli",
        "numba_adam.demo",
        "numba_adam.cpu.kernels",
    },
    "numba_adam/cli/": set(),
    "numba_adam/demo/": {"numba_adam.server", "numba_adam.cpu.kernels", "numba_adam.cli"},
    "client/": {"numba_adam.server", "numba_adam.cli", "numba_adam.demo", "numba_adam.cpu.kernels"},
    "server/": {"numba_adam.client", "numba_adam.cli", "numba_adam.demo"},
}
# Who may know Numba, and who a framework: all others go through them.
NUMBA = (
    "numba_adam/cpu/kernels/",
    "numba_adam/rows/kernels/",
    "numba_adam/cuda/",
    "numba_adam/cli/checkup.py",
    "server/runtime/launcher.py",
)
INTEROP = ("numba_adam/interop/", "numba_adam/demo/")
# The server's folders that speak plain values, and the modules that know the protocol's messages.
PLAIN = ("server/model/", "server/storage/", "server/runtime/")
MESSAGES = {"numba_adam.ps.v1", "numba_adam.ps.convert", "numba_adam.ps.errors", "numba_adam.ps.framing"}


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
def test_importing_stays_light(program: str, forbidden: set[str]) -> None:
    assert loaded_by(program) & forbidden == set()


def test_imports_point_downward(sources) -> None:
    upward = []
    for source in filter(lambda source: source.shipped, sources):
        part = max((part for part in FORBIDDEN if source.path.startswith(part)), key=len)
        upward += [f"{source.path}:{line}: {name}" for name, line in source.imports() if below(name, FORBIDDEN[part])]
    assert upward == []


def test_numba_is_known_to_the_kernels_only(sources) -> None:
    strangers = [
        f"{source.path}:{line}: {name}"
        for source in sources
        if source.shipped and not source.path.startswith(NUMBA)
        for name, line in source.imports()
        if below(name, {"numba", "llvmlite"})
    ]
    assert strangers == []


def test_frameworks_are_known_to_interop_only(sources) -> None:
    strangers = [
        f"{source.path}:{line}: {name}"
        for source in sources
        if source.shipped and not source.path.startswith(INTEROP)
        for name, line in source.imports()
        if below(name, FRAMEWORKS)
    ]
    assert strangers == []


def test_nothing_imports_the_folders_by_their_bare_names(sources) -> None:
    """From the repository's root `import server` would work, and in an installation it would not."""
    bare = [
        f"{source.path}:{line}: {name}"
        for source in sources
        for name, line in source.imports()
        if below(name, {"server", "client", "tests"}) or name.startswith(".")
    ]
    assert bare == []


def test_below_its_transport_the_server_knows_no_message(sources) -> None:
    strangers = [
        f"{source.path}:{line}: {name}"
        for source in sources
        if source.path.startswith(PLAIN)
        for name, line in source.imports()
        if below(name, MESSAGES | WIRE)
    ]
    assert strangers == []
