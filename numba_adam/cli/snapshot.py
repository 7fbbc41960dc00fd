"""`numba-adam snapshot`: have a running server write its models to disk now."""

from __future__ import annotations

import argparse

from numba_adam.cli import connection

_DESCRIPTION = """\
Have a running server write its models to disk now, and return when they are there. A crash from then on goes back
to what was written.
"""
_EPILOG = """\
examples:
  numba-adam snapshot                               all models
  numba-adam snapshot --model digits --json
"""


def describe(parser: argparse.ArgumentParser) -> None:
    """Add the description, the arguments and the examples."""
    parser.description, parser.epilog = _DESCRIPTION, _EPILOG
    parser.add_argument("--model", metavar="NAME", help="one model only (default: all)")
    connection.add_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Ask for the snapshots and print what was written."""
    with connection.connect(arguments) as client:
        snapshots = client.snapshot(arguments.model)
    if arguments.json:
        connection.print_json(snapshots)
        return 0
    for snapshot in snapshots:
        size = connection.bytes_in_words(snapshot.size_bytes)
        print(f"{snapshot.model}: version {snapshot.version}, {size} in {snapshot.duration_seconds:.2f} s")
    if not snapshots:
        print("no models")
    return 0
