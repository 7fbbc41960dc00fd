"""The time to start: the import, and the first update with and without compiled kernels in the cache."""

from __future__ import annotations

import functools
import time

from benchmarks.case import Bar, Case, Measurement, MissingError, Quantity, Settings, Unit
from benchmarks.contestants import torch_fused
from benchmarks.process import answer_of, seconds_of

_FIRST_UPDATE = """
import numpy as np
import numba_adam as na
random = np.random.default_rng(0)
param, grad = (random.standard_normal({elements}, dtype=np.float32) for _ in range(2))
na.Adam(param).step(grad)
"""
_FIRST_UPDATE_TORCH = """
import numpy as np
import torch
random = np.random.default_rng(0)
param, grad = (torch.from_numpy(random.standard_normal({elements}, dtype=np.float32)) for _ in range(2))
param.grad = grad
torch.optim.Adam([param], fused=True).step()
"""
_COMPILATION = """
import os, tempfile, time
with tempfile.TemporaryDirectory() as folder:
    os.environ["NUMBA_CACHE_DIR"] = folder
    import numpy as np
    import numba_adam as na
    param, grad = np.ones({elements}, dtype=np.float32), np.ones({elements}, dtype=np.float32)
    optimizer = na.Adam(param)
    begin = time.perf_counter()
    optimizer.step(grad)
    seconds = time.perf_counter() - begin
print(seconds)
"""
_COMPILATIONS = 3  # they take seconds each
# Numba reports every compilation as an event, but not a load from its cache.
_SECOND_STEP = """
import numpy as np
import numba_adam as na
from numba.core import event
param, grad = np.ones({elements}, dtype=np.float32), np.ones({elements}, dtype=np.float32)
optimizer = na.Adam(param)
optimizer.step(grad)
with event.install_recorder("numba:compile") as compilations:
    optimizer.step(grad)
print(len(compilations.buffer))
"""


def _pairs(ours: str, peer: str | None, settings: Settings) -> list[tuple[float, float | None]]:
    """Time whole processes in turns. The first of each warms the caches and does not count."""
    seconds_of(ours)
    if peer is not None:
        seconds_of(peer)
    pairs: list[tuple[float, float | None]] = []
    begin = time.perf_counter()
    while len(pairs) < settings.fewest_pairs or time.perf_counter() - begin < settings.seconds:
        pairs.append((seconds_of(ours), None if peer is None else seconds_of(peer)))
    return pairs


def _imports(ours: str, peer: str, settings: Settings) -> Measurement:
    return Measurement(_pairs(ours, peer, settings), {"program": ours, "peer's program": peer})


def _first_update(elements: int, settings: Settings) -> Measurement:
    pairs = _pairs(_FIRST_UPDATE.format(elements=elements), None, settings)
    return Measurement(pairs, {"elements": f"{elements:,}", "cache": "warm"})


def _first_update_torch(elements: int, settings: Settings) -> Measurement:
    ours, peer = (program.format(elements=elements) for program in (_FIRST_UPDATE, _FIRST_UPDATE_TORCH))
    try:
        seconds_of(peer)
    except RuntimeError as error:
        raise MissingError("torch does not run here") from error
    return Measurement(_pairs(ours, peer, settings), {"elements": f"{elements:,}", "cache": "warm"})


def _compilation(elements: int, settings: Settings) -> Measurement:  # noqa: ARG001 - has no settings
    pairs: list[tuple[float, float | None]] = [
        (float(answer_of(_COMPILATION.format(elements=elements))), None) for _ in range(_COMPILATIONS)
    ]
    return Measurement(pairs, {"elements": f"{elements:,}", "cache": "empty"})


def _second_step(settings: Settings) -> Measurement:  # noqa: ARG001 - has no settings
    pairs: list[tuple[float, float | None]] = [
        (float(answer_of(_SECOND_STEP.format(elements=elements))), None) for elements in (1_000, 1_000_000)
    ]
    return Measurement(pairs, {"elements": "1,000 (one thread), then 1,000,000 (all threads)"})


CASES: tuple[Case, ...] = (
    Case(
        name="start/import",
        title="import numpy, numba_adam",
        peer="import numpy",
        quantity=Quantity.DIFFERENCE,
        bar=Bar(0.060),
        run=functools.partial(_imports, "import numpy, numba_adam", "import numpy"),
    ),
    Case(
        name="start/import-adam",
        title="import numpy, and numba_adam.Adam, which brings Numba in",
        peer="import numba",
        quantity=Quantity.DIFFERENCE,
        run=functools.partial(_imports, "import numpy, numba_adam; numba_adam.Adam", "import numba"),
    ),
    Case(
        name="start/first-update",
        title="new process: imports, first update of 1 million, end",
        quantity=Quantity.VALUE,
        bar=Bar(1.5),
        run=functools.partial(_first_update, 1_000_000),
    ),
    Case(
        name="start/first-update/torch",
        title="new process: imports, first update of 1 million, end",
        peer=torch_fused.NAME,
        run=functools.partial(_first_update_torch, 1_000_000),
    ),
    Case(
        name="start/compilation",
        title="first step of 1 million that compiles its kernels, imports not counted",
        quantity=Quantity.VALUE,
        run=functools.partial(_compilation, 1_000_000),
    ),
    Case(
        name="start/second-step",
        title="compilations in a second step",
        quantity=Quantity.VALUE,
        unit=Unit.COUNT,
        bar=Bar(0),
        run=_second_step,
    ),
)
