"""What it costs that a push survives the death of the server's process, for models whose state has other formats.

Two models of one server take turns, at the levels `process` and `memory`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from benchmarks.case import Bar, Case, Measurement, Settings
from benchmarks.contestants.contestant import DisagreementError, load
from benchmarks.measure import interleave
from benchmarks.themes.service import parameter_server
from benchmarks.workload import one_array

_TIMEOUT_SECONDS = 600.0
_FORMATS: dict[str, dict[str, Any]] = {
    "8bit": {"state_dtype": "8bit"},
    "bfloat16": {"state_dtype": "bfloat16"},
    "average": {"ema_decay": 0.999},
}
_SIZES = {"4mb": 1_000_000, "100mb": 25_000_000}


def _push(options: Mapping[str, Any], most: int, settings: Settings) -> Measurement:
    """Compare pushes of one array to two models of the same server."""
    client_of = load("numba_adam.client").ParameterClient
    workload = one_array(settings.elements(most))
    (param,), (grad,) = workload.params(), workload.grads()
    with parameter_server() as address, client_of(address, timeout_seconds=_TIMEOUT_SECONDS) as client:
        levels = ("process", "memory")
        models = [client.create_model(level, {"w": param}, durability=level, **options) for level in levels]
        ours, theirs = ((lambda model=model: model.push({"w": grad})) for model in models)
        pairs = interleave(ours, theirs, settings)
        if models[0].version != models[1].version or not np.array_equal(*(model.pull()["w"] for model in models)):
            raise DisagreementError("the two models have other versions or parameters")
        for level in levels:
            client.delete_model(level)  # otherwise the server would write snapshots at its stop
    return Measurement(pairs, {"bytes pushed": f"{grad.nbytes:,}"})


CASES: tuple[Case, ...] = tuple(
    Case(
        name=f"served/{name}-{size}",
        title=f"{size.replace('mb', ' MB')} of gradients pushed to survive a kill, state: {name}",
        peer="the level memory",
        bar=Bar(1.25),
        run=partial(_push, options, most),
    )
    for name, options in _FORMATS.items()
    for size, most in _SIZES.items()
)
