"""`numba-adam import`: a new model from a safetensors file. May import the server in functions."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from numba_adam.cli.key_file import add_key_file, keys_of
from numba_adam.errors import ConfigurationError, NumbaAdamError

_DESCRIPTION = """\
Make a new model from a safetensors file: its first snapshot in a data folder that no server uses, or in a new one. The
next server on that folder has the model, at version 0 of a new state, with the file's moments and step counts.

The file is one of `numba-adam export`, or has the same names: NAME, exp_avg.NAME, exp_avg_sq.NAME, step.NAME. An array
without moments and step begins at step 0. All arrays are float32, or all are float64. A file of another program has no
hyperparameters: pass them with --set. Its `eps_mode` is taken to be "algorithm1", which is PyTorch's.
"""
_EPILOG = """\
examples:
  numba-adam import ./adam digits digits.safetensors
  numba-adam import ./adam digits torch.safetensors --set lr=0.01 --set betas=[0.9,0.99]
"""


def describe(parser: argparse.ArgumentParser) -> None:
    """Add the description, the arguments and the examples."""
    parser.description, parser.epilog = _DESCRIPTION, _EPILOG
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="the data folder: what --data-dir names")
    parser.add_argument("model", metavar="MODEL", help="name of the new model")
    parser.add_argument("source", metavar="FILE.safetensors", type=Path, help="the file")
    parser.add_argument(
        "--set",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        help="a hyperparameter that replaces the file's; may be given several times",
    )
    parser.add_argument(
        "--durability",
        choices=("memory", "process", "disk"),
        help="what a crash may lose (default: as in the file, else process)",
    )
    add_key_file(parser)


def run(arguments: argparse.Namespace) -> int:
    """Make the model, and say what it has."""
    from numba_adam.ps.modes import Durability
    from numba_adam.server.storage.exchange import import_model

    changes = dict(_setting(text) for text in arguments.set)
    level = None if arguments.durability is None else Durability(arguments.durability)
    keys = keys_of(arguments, arguments.folder)
    try:
        spec = import_model(arguments.folder, arguments.model, arguments.source, changes, level, keys)
    except NumbaAdamError:
        raise
    except OSError as error:
        raise ConfigurationError(f"{error}: run this as the user of the server, with room on its disk") from error
    print(
        f"model {spec.name}: {len(spec.tensors)} arrays, {spec.element_count} parameters of {spec.dtype}, at the level "
        f"{spec.durability.value}\n{spec.hyperparameters}"
    )
    return 0


def _setting(text: str) -> tuple[str, Any]:
    """Return the name and the value of a hyperparameter."""
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise ConfigurationError(f"--set {text!r}: expected NAME=VALUE, such as lr=0.01")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value  # such as eps_mode=hat
