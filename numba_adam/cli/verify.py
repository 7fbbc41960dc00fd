"""`numba-adam verify`: check every checksum of a data folder, without a server. May import the server in functions."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from numba_adam.cli.key_file import add_key_file, keys_of

_DESCRIPTION = """\
Read every file of a data folder that has a checksum, and check it: snapshots, journals of models at the level `disk`,
the records of the last run and the last stop, deletions, access tokens. A model of the last run without a snapshot is
reported too. No server may use the folder; a copy can be verified as well. Nothing in it is changed. Not checked: the
audit log, and what a killed server left in --memory-dir.

With the server's key file, tags are checked too. Without it, a tag is named, and not checked.

The exit status is 0 if everything is intact, and 1 if something is damaged; the line of a damaged file says what. A
server that starts on a damaged newest snapshot sets it aside and goes back to the previous one.

The last record of a journal may be torn: a power failure leaves such a record, which was never acknowledged, and a
start cuts it off. No later record says that the last one was on disk. So damage to an acknowledged last record, which
has 512 bytes of zeros as well, looks torn. Damage anywhere else is reported as damage.
"""
_EPILOG = """\
examples:
  numba-adam verify ./adam
  numba-adam verify ./adam --json                   for a program
"""


def describe(parser: argparse.ArgumentParser) -> None:
    """Add the description, the arguments and the examples."""
    parser.description, parser.epilog = _DESCRIPTION, _EPILOG
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="the data folder: what --data-dir names")
    add_key_file(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object, for programs")


def run(arguments: argparse.Namespace) -> int:
    """Print a line for each file; return 1 if one is damaged."""
    from numba_adam.server.storage.verification import verify

    keys = None if arguments.snapshot_key_file is None else keys_of(arguments, arguments.folder)
    found = []
    for each in verify(arguments.folder, keys):
        found.append(each)
        if not arguments.json:
            print(f"{'ok' if each.is_intact else 'DAMAGED':<9}{each.path}: {each.found}", flush=True)
    damaged = sum(not each.is_intact for each in found)
    if arguments.json:
        print(json.dumps({"ok": not damaged, "files": [each._asdict() for each in found]}, indent=2))
    else:
        print(f"\n{damaged} of {len(found)} files damaged" if damaged else f"\nall {len(found)} files are intact")
    return 1 if damaged else 0
