"""The stages of a run in their order, and each one's share of the time. An item is one question to the GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib import import_module
from typing import NamedTuple

from benchmarks.gpu.journal import Finding


class Item(NamedTuple):
    """One question to the GPU."""

    name: str
    answer: Callable[[], Finding]


class Stage(NamedTuple):
    """Items that one process asks one after the other, or several processes share."""

    name: str
    share: float
    """The part of the whole time that it may take. What it leaves goes to the stages after it."""

    module: str
    """The module of `benchmarks.gpu` whose `items()` it runs."""

    lanes: int = 1
    """How many processes share its items, on a machine with as many cores: compiling takes most of their time."""

    is_long: bool = False
    """Whether it runs only where it is asked for by name."""

    def items(self) -> Iterator[Item]:
        """Return the items, the most important ones first."""
        found: Iterator[Item] = import_module(f"benchmarks.gpu.{self.module}").items()
        return found


STAGES = (
    Stage("machine", 0.02, "machine"),
    Stage("first", 0.06, "first"),
    Stage("compile", 0.07, "kept"),
    Stage("correctness", 0.25, "correctness", lanes=8),
    Stage("doors", 0.12, "doors", lanes=4),
    Stage("memory-check", 0.08, "memory_check"),
    Stage("speed", 0.30, "speed"),
    Stage("tuning", 0.10, "tuning"),
    Stage("suite", 0.5, "suite", is_long=True),
)
BY_NAME = {stage.name: stage for stage in STAGES}


def chosen(names: str | None) -> list[Stage]:
    """Return the stages of a comma-separated list; all but the long ones for None.

    Raises:
        ValueError: there is no stage of that name.
    """
    if names is None:
        return [stage for stage in STAGES if not stage.is_long]
    asked = names.split(",")
    unknown = [name for name in asked if name not in BY_NAME]
    if unknown:
        raise ValueError(f"there is no stage {unknown[0]!r}: choose among {', '.join(BY_NAME)}")
    return [stage for stage in STAGES if stage.name in asked]
