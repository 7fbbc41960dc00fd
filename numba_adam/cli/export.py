"""`numba-adam export`: a model's state in a safetensors file. May import the server in functions."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from numba_adam.cli.key_file import add_key_file, keys_of
from numba_adam.errors import ConfigurationError, NumbaAdamError

_DESCRIPTION = """\
Write a model's state from a data folder to a safetensors file, for other programs. No server may use the folder: stop
it, so that its last state is in a snapshot, or export from a copy.

The file has these arrays for each array NAME of the model: NAME (the parameters), exp_avg.NAME, exp_avg_sq.NAME,
step.NAME (int64), and with AMSGrad max_exp_avg_sq.NAME. Its metadata has the hyperparameters. docs/saving.md shows how
torch.optim.Adam loads it. Workers' sessions are not in the file.
"""
_EPILOG = """\
examples:
  numba-adam export ./adam digits digits.safetensors
  numba-adam export ./adam digits old.safetensors --snapshot 7     numba-adam restore ./adam digits lists the numbers
"""


def describe(parser: argparse.ArgumentParser) -> None:
    """Add the description, the arguments and the examples."""
    parser.description, parser.epilog = _DESCRIPTION, _EPILOG
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="the data folder: what --data-dir names")
    parser.add_argument("model", metavar="MODEL", help="name of the model")
    parser.add_argument("out", metavar="OUT.safetensors", type=Path, help="the new file; none is overwritten")
    parser.add_argument("--snapshot", metavar="N", type=int, help="number of the snapshot (default: the newest)")
    add_key_file(parser)


def run(arguments: argparse.Namespace) -> int:
    """Write the file, and say what is in it."""
    from numba_adam.server.storage.exchange import export_model

    keys = keys_of(arguments, arguments.folder)
    try:
        done = export_model(arguments.folder, arguments.model, arguments.out, arguments.snapshot, keys)
    except NumbaAdamError:
        raise
    except OSError as error:
        raise ConfigurationError(f"{error}: the folder must be readable for you") from error
    if done.why_not_last:
        print(f"numba-adam: this may not be the model's last state: {done.why_not_last}", file=sys.stderr)
    print(f"{arguments.out}: model {arguments.model}, version {done.version}, from snapshot {done.number}")
    return 0
