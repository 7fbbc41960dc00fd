"""`numba-adam restore`: go back to a kept snapshot of a model. May import the server in functions."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from numba_adam.cli.connection import bytes_in_words
from numba_adam.cli.key_file import add_key_file, keys_of
from numba_adam.errors import ConfigurationError, NumbaAdamError

_DESCRIPTION = """\
Go back to an earlier snapshot of a model. Without --snapshot, list those that are kept, and change nothing. No server
may use the folder: stop it first.

The next server starts the model from that snapshot and from nothing else. Its log and its workers are told that the
model was rewound: it has a new state id, and pushes that were meant for the lost state are refused. Other models are
not touched.

Nothing is removed. Newer snapshots and the journals of a model at the level `disk` are moved to the folder
set-aside-0001 (then 0002, ...) in the model's folder. Until the next start, you can undo this: move those files back,
and remove the file `restored` beside them. Remove the folder when you no longer need it; a deletion of the model
removes it too.
"""
_EPILOG = """\
examples:
  numba-adam restore ./adam digits                  list the snapshots of the model
  numba-adam restore ./adam digits --snapshot 7     go back to the one with number 7
"""


def describe(parser: argparse.ArgumentParser) -> None:
    """Add the description, the arguments and the examples."""
    parser.description, parser.epilog = _DESCRIPTION, _EPILOG
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="the data folder: what --data-dir names")
    parser.add_argument("model", metavar="MODEL", help="name of the model")
    parser.add_argument("--snapshot", metavar="N", type=int, help="number of the snapshot (default: list them)")
    parser.add_argument(
        "--memory-dir",
        metavar="DIR",
        type=Path,
        default=Path("/dev/shm"),
        help="the server's --memory-dir, where a killed one may have left a newer state (default: %(default)s)",
    )
    add_key_file(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object, for programs")


def run(arguments: argparse.Namespace) -> int:
    """List the snapshots, or restore one."""
    return _list(arguments) if arguments.snapshot is None else _restore(arguments)


def _list(arguments: argparse.Namespace) -> int:
    from numba_adam.server.storage.restoring import kept_snapshots

    found = kept_snapshots(arguments.folder, arguments.model, keys_of(arguments, arguments.folder))
    if arguments.json:
        print(json.dumps({"snapshots": [each._asdict() for each in found]}, indent=2))
        return 0
    for each in found:
        what = "DAMAGED" if each.version is None else f"version {each.version} of state {each.state_id}"
        print(f"snapshot {each.number}: {what}, written {each.written}, {bytes_in_words(each.size_bytes)}")
    if not found:
        print("no snapshots")
    return 0


def _restore(arguments: argparse.Namespace) -> int:
    from numba_adam.server.storage.restoring import restore

    keys = keys_of(arguments, arguments.folder)
    try:
        version, moved = restore(arguments.folder, arguments.model, arguments.snapshot, arguments.memory_dir, keys)
    except NumbaAdamError:
        raise
    except OSError as error:
        raise ConfigurationError(f"{error}: run this as the user of the server") from error
    if arguments.json:
        print(json.dumps({"snapshot": arguments.snapshot, "version": version, "set_aside": moved}, indent=2))
        return 0
    for path in moved:
        print(f"set aside: {path}")
    print(
        f"model {arguments.model}: the next server starts it from snapshot {arguments.snapshot}, version {version}, as "
        "a rewind with a new state id"
    )
    return 0
