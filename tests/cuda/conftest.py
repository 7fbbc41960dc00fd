"""Settings of the GPU's tests. Those under simulated/ run in their own process, with Numba's simulator."""

import os
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE)]  # for `reference`, `damage`, `lending` and others: no tests themselves
IS_SIMULATED = os.environ.get("NUMBA_ENABLE_CUDASIM") == "1"
IS_ON_GPU = os.environ.get("NUMBA_ADAM_TESTS_ON_GPU") == "1"  # of benchmarks/gpu/suite.py

# Not skipped: test_simulator.py runs them, in a process in which the simulator is switched on.
collect_ignore = [] if IS_SIMULATED or IS_ON_GPU else ["simulated"]

# The seam takes the first CUDA package that it finds; those named here it is not to find.
sys.modules.update(dict.fromkeys(os.environ.get("HIDDEN_PACKAGES", "").split()))  # type: ignore[arg-type]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that read one kernel's PTX stand together: a process compiles it once, however many share the tests."""
    places = [place for place, item in enumerate(items) if item.path.name == "test_ptx.py"]
    for place, item in zip(places, sorted((items[place] for place in places), key=_kernel_of), strict=True):
        items[place] = item


def _kernel_of(item: pytest.Item) -> tuple[str, ...]:
    params = item.callspec.params if hasattr(item, "callspec") else {}
    return tuple(str(params.get(name)) for name in ("name", "kernel", "capability"))


if IS_SIMULATED:
    sys.setswitchinterval(5e-4)  # the simulator's threads wait for each other by polling: they wait a tenth of the time
