"""`numba-adam workers`: list the workers of a model, and evict them. May import what cli.connection may."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from numba_adam.cli import connection

if TYPE_CHECKING:
    from numba_adam.client.workers import WorkerInfo

_DESCRIPTION = """\
List the workers that have a session with a model: their session, clock (mode ssp), last call, lease, and the round in
which they wait (mode sync). On a server with tokens, this needs the scope admin for the model.

--evict lets nobody wait for a worker any more, as if its lease had ended: its clock and its gradient in an open round
are given up. Its session stays, and if it pushes again, it joins again. To keep a worker out, revoke its token.
"""
_EPILOG = """\
examples:
  numba-adam workers digits
  numba-adam workers digits --evict worker-3
"""
_HEADINGS = ("worker", "session", "pushes", "clock", "last seen", "lease", "round")


def describe(parser: argparse.ArgumentParser) -> None:
    """Add the description, the arguments and the examples."""
    parser.description, parser.epilog = _DESCRIPTION, _EPILOG
    parser.add_argument("model", metavar="MODEL", help="name of the model")
    parser.add_argument("--evict", metavar="WORKER", help="the id of a worker, as the list shows it")
    connection.add_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Evict the worker, if one is named, and print the workers."""
    with connection.connect(arguments) as client:
        if arguments.evict is not None:
            client.evict(arguments.model, arguments.evict)
        workers = client.workers(arguments.model)
    if arguments.json:
        connection.print_json(workers)
    elif workers:
        print("\n".join(_table([_HEADINGS, *map(_row, workers)])))
    else:
        print("no workers")
    return 0


def _row(worker: WorkerInfo) -> tuple[str, ...]:
    return (
        worker.worker_id,
        str(worker.epoch),
        str(worker.pushes),
        "-" if worker.clock is None else str(worker.clock),
        f"{worker.idle_seconds:.0f} s ago",
        f"{worker.lease_seconds:.0f} s left" if worker.lease_seconds else "ended",
        "-" if worker.round is None else str(worker.round),
    )


def _table(rows: list[tuple[str, ...]]) -> list[str]:
    """Return rows with columns of equal width.

    >>> _table([("a", "b"), ("long", "c")])
    ['a     b', 'long  c']
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
