"""`numba-adam snapshot-key`: make a key file, or put a new key first in one. May import the server in functions."""

from __future__ import annotations

import argparse
from pathlib import Path

from numba_adam.errors import ConfigurationError

_DESCRIPTION = """\
Make a key file for `numba-adam serve --snapshot-key-file FILE`. With it, every file of the data folder that decides the
state of a model gets a tag, an HMAC-SHA256, which only those with the key can make: snapshots, journals, the records of
the last run and the last stop, deletions, access tokens. A file without a valid tag is not used, and stops the start.
docs/security.md says what whoever can write the data folder can still do.

The file has one key in each line. The first one is used for writing, all are used for reading. So a new key comes first
(--rotate), the server is started with it once, and then the line of the old key may be removed: that start writes all
files anew, but for older snapshots, which are kept for `numba-adam restore`.

The word `unkeyed` may stand in place of a key, and stands for files without a tag. At the end of the file (--unkeyed),
it admits what an earlier server without keys wrote. As the first line, it ends the use of keys.

Keep the file outside the data folder, and have a copy of it: without it, nobody can read the models. Use a file of its
own for each data folder.
"""
_EPILOG = """\
examples:
  numba-adam snapshot-key adam.keys
  numba-adam snapshot-key adam.keys --unkeyed       for a data folder that has models already; remove the line later
  numba-adam snapshot-key adam.keys --rotate        a new key; the earlier ones are still read
"""


def describe(parser: argparse.ArgumentParser) -> None:
    """Add the description, the arguments and the examples."""
    parser.description, parser.epilog = _DESCRIPTION, _EPILOG
    parser.add_argument("file", metavar="FILE", type=Path, help="the key file")
    kinds = parser.add_mutually_exclusive_group()
    kinds.add_argument("--rotate", action="store_true", help="put a new key first in a file that exists")
    kinds.add_argument("--unkeyed", action="store_true", help="admit files without a tag, with the line `unkeyed`")


def run(arguments: argparse.Namespace) -> int:
    """Write the file, and say the id of its first key."""
    from numba_adam.server.storage.keys import UNKEYED, id_of, new_key, read_lines, write_key_file

    path = arguments.file.absolute()
    if path.exists() and not arguments.rotate:
        raise ConfigurationError(
            f"FILE={str(path)!r} exists: pass --rotate to put a new key first, or name another file"
        )
    lines = [new_key(), *(read_lines(path) if arguments.rotate else []), *([UNKEYED] if arguments.unkeyed else [])]
    try:
        write_key_file(path, lines)
    except OSError as error:
        raise ConfigurationError(f"FILE={str(path)!r}: it cannot be written ({error.strerror})") from error
    others = ", ".join(id_of(line) or UNKEYED for line in lines[1:])
    print(f"{path}: key {id_of(lines[0])}{others and f', then {others}'}")
    return 0
