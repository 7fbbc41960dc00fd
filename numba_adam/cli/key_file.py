"""The option --snapshot-key-file of the commands that use a data folder. May import the server in functions."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from numba_adam.server.storage.keys import Keys

_VARIABLE = "NUMBA_ADAM_SNAPSHOT_KEY_FILE"


def add_key_file(parser: argparse.ArgumentParser) -> None:
    """Add the option. Its default is the variable that the server reads too."""
    parser.add_argument(
        "--snapshot-key-file",
        metavar="FILE",
        type=Path,
        default=Path(os.environ[_VARIABLE]) if os.environ.get(_VARIABLE) else None,
        help=f"the server's key file, if it has one (default: ${_VARIABLE})",
    )


def keys_of(arguments: argparse.Namespace, folder: Path) -> Keys:
    """Return the keys that the option names; none without it.

    Raises:
        ConfigurationError: the file cannot be used.
    """
    from numba_adam.server.storage.keys import read_keys

    path = arguments.snapshot_key_file
    return read_keys(None if path is None else path.expanduser(), folder)
