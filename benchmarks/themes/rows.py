"""Rows of an embedding table: 1 % of 10 million, 16 wide, compared with the dense step and PyTorch's sparse one."""

from __future__ import annotations

import functools

import numpy as np

from benchmarks.case import Bar, Case, Measurement, Quantity, Settings
from benchmarks.contestants import on_rows, rows_loop
from benchmarks.contestants.on_rows import SETS, OurRows, TableWorkload, TorchRows, check_same_rows
from benchmarks.contestants.ours import Ours
from benchmarks.contestants.rows_loop import RowsLoop
from benchmarks.measure import interleave
from benchmarks.workload import check_usual

_ROWS = 10_000_000
_WIDTH = 16
_OTHER = 2 * _ROWS * _WIDTH  # elements that are written between two steps, as a dense step writes other memory
_TITLE = "1 % of a table of 10 million rows of 16"  # of 64 bytes, aligned unless a title says otherwise


def _workload(settings: Settings) -> TableWorkload:
    rows = settings.elements(_ROWS * _WIDTH) // _WIDTH
    return TableWorkload(rows, _WIDTH, max(1, rows // 100))


def _compare(
    ours: OurRows, peer: OurRows | TorchRows | Ours | RowsLoop, settings: Settings
) -> list[tuple[float, float | None]]:
    """Compare two ways to update rows. First touch every set of rows once, so that its pages are mapped."""
    for _ in range(SETS):
        ours.step()
        peer.step()
    return interleave(ours.step, peer.step, settings)


def _notes(workload: TableWorkload) -> dict[str, str]:
    return {
        "table": f"{workload.rows:,} rows of {workload.width}",
        "touched by a step": f"{workload.touched:,} distinct rows in no order; {SETS} such sets take turns",
    }


def _against_dense(settings: Settings, *, is_aligned: bool = True) -> Measurement:
    workload = _workload(settings)
    dense, ours = Ours(workload.table, settings.threads), OurRows(workload, is_aligned=is_aligned)
    pairs = _compare(ours, dense, settings)
    check_usual(ours.moments(workload.sets()[0]), "the rows' moments")
    return Measurement(pairs, _notes(workload))


def _against_torch(settings: Settings) -> Measurement:
    workload = _workload(settings)
    peer = TorchRows(workload, settings.threads)
    ours = OurRows(workload)
    pairs = _compare(ours, peer, settings)
    check_same_rows(ours, peer, workload)
    return Measurement(pairs, _notes(workload))


def _against_loop(settings: Settings) -> Measurement:
    """Compare with a loop over the same rows that is a lower bound. Empty the caches before each step."""
    workload = _workload(settings)
    ours, other = OurRows(workload), np.ones(settings.elements(_OTHER), np.float32)
    loop = RowsLoop(ours.table(), workload.sets(), workload.grads(), settings.threads)
    for _ in range(SETS):
        ours.step()
        loop.step()
    pairs = interleave(ours.step, loop.step, settings, before=(lambda: other.fill(1),) * 2)
    check_usual(ours.moments(workload.sets()[0]), "the rows' moments")
    return Measurement(pairs, {**_notes(workload), "written before each step": f"{other.nbytes:,} bytes"})


def _exact_against_lazy(settings: Settings) -> Measurement:
    workload = _workload(settings)
    exact, lazy = OurRows(workload, mode="exact"), OurRows(workload)
    pairs = _compare(exact, lazy, settings)
    check_usual(exact.moments(workload.sets()[0]), "the exact rows' moments")
    return Measurement(pairs, {**_notes(workload), "steps that a touched row has missed": f"{SETS - 1}"})


CASES: tuple[Case, ...] = (
    Case(name="rows/dense", title=_TITLE, peer="our dense step over the table", bar=Bar(0.05), run=_against_dense),
    Case(
        name="rows/unaligned",
        title=f"{_TITLE}, its arrays where NumPy puts them, 16 bytes behind a cache line",
        peer="our dense step over the table",
        run=functools.partial(_against_dense, is_aligned=False),
    ),
    Case(
        name="rows/loop",
        title=f"{_TITLE}, share of the speed of memory, cold caches",
        peer=rows_loop.NAME,
        quantity=Quantity.FRACTION,
        run=_against_loop,
    ),
    Case(name="rows/torch", title=_TITLE, peer=on_rows.NAME, bar=Bar(1.0), run=_against_torch),
    Case(
        name="rows/exact",
        title=f"{_TITLE}, exact: {SETS - 1} missed steps made up for",
        peer="the lazy step over the same rows",
        run=_exact_against_lazy,
    ),
)
