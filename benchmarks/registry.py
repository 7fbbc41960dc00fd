"""The registry: all cases, in the order of the run and of the table."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.case import Case
from benchmarks.themes import (
    adapters,
    beside,
    busy,
    cold,
    curves,
    denormals,
    durability,
    flat,
    formats,
    growth,
    many,
    memory,
    norm,
    phase,
    remote,
    rows,
    same_host,
    scaling,
    served_formats,
    service,
    small_pushes,
    start,
)

CASES: tuple[Case, ...] = (
    *flat.CASES,
    *many.CASES,
    *adapters.CASES,
    *phase.CASES,
    *norm.CASES,
    *formats.CASES,
    *rows.CASES,
    *scaling.CASES,
    *curves.CASES,
    *growth.CASES,
    *denormals.CASES,
    *memory.CASES,
    *start.CASES,
    *cold.CASES,
    *service.CASES,
    *same_host.CASES,
    *small_pushes.CASES,
    *remote.CASES,
    *beside.CASES,
    *durability.CASES,
    *served_formats.CASES,
    *busy.CASES,
)


def chosen(prefixes: Sequence[str]) -> list[Case]:
    """Return the cases whose names begin with one of the prefixes. Without prefixes, return all but the long ones.

    Raises:
        LookupError: a prefix fits no case.
    """
    for prefix in prefixes:
        if not any(case.name.startswith(prefix) for case in CASES):
            themes = ", ".join(dict.fromkeys(case.theme for case in CASES))
            raise LookupError(f"no case begins with {prefix!r}; the themes are {themes}, and --list shows all names")
    if not prefixes:
        return [case for case in CASES if not case.is_long]
    return [case for case in CASES if case.name.startswith(tuple(prefixes))]


def named(name: str) -> Case:
    """Return one case.

    Raises:
        LookupError: there is none of that name.
    """
    for case in CASES:
        if case.name == name:
            return case
    raise LookupError(f"no case is named {name!r}; --list shows all names")
