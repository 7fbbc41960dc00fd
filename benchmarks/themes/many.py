"""Many arrays, updated in place; the peers get one optimizer over the same list."""

from __future__ import annotations

from benchmarks.case import Case, Settings
from benchmarks.themes.comparison import against_all
from benchmarks.workload import Workload, equal_arrays, resnet50


def _thousand(settings: Settings) -> Workload:  # noqa: ARG001 - small enough for every run
    return equal_arrays(count=1000, elements=1000)


def _resnet50(settings: Settings) -> Workload:  # noqa: ARG001 - the shapes are fixed
    return resnet50()


CASES: tuple[Case, ...] = (
    *against_all("many/1000x1000", "1,000 arrays of 1,000", _thousand, torch_bar=0.25),
    *against_all("many/resnet50", "ResNet-50's 161 arrays, 25.6 million", _resnet50, torch_bar=0.9),
)
