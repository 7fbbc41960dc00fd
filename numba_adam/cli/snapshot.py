"""`numba-adam snapshot`: write the models of a running server to disk now. May import what cli.connection may."""

from __future__ import annotations

import argparse

from numba_adam.cli import connection

_DESCRIPTION = """\
Write the models of a running server to disk now, and return when the files are complete. After a later crash, the
server continues from these snapshots.
"""
_EPILOG = """\
examples:
  numba-adam snapshot                               all models
  numba-adam snapshot --model digits --json
"""


def describe(parser: argparse.ArgumentParser) -> None:
    """Add the description, the arguments and the examples."""
    parser.description, parser.epilog = _DESCRIPTION, _EPILOG
    parser.add_argument("--model", metavar="NAME", help="name of one model (default: all models)")
    connection.add_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Request the snapshots and print one line for each."""
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
