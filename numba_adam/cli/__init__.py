"""The command `numba-adam`: it runs a sub-command and turns errors into one line and an exit status.

    0    success
    1    failure; the line on stderr says why
    2    invalid command line
    130  interrupted with Ctrl-C

Each sub-command is a module of this package with `describe(parser)` and `run(arguments) -> int`. The module is imported
only when the sub-command runs, so `numba-adam --version` needs the base dependencies only. This file may import the
standard library, numba_adam.errors and numba_adam.installing. A sub-command may import anything inside its functions.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NamedTuple, Protocol, cast

import numba_adam
from numba_adam import installing
from numba_adam.errors import NumbaAdamError

__all__ = ["main"]


class _Entry(NamedTuple):
    """One line of the list of sub-commands."""

    summary: str
    extra: str | None  # the extra that it needs; None: the base dependencies


_COMMANDS = {
    "serve": _Entry("run a parameter server", "server"),
    "status": _Entry("show the models, the memory and the counters of a running server", "client"),
    "set": _Entry("change the learning rate and other settings of a model while it trains", "client"),
    "workers": _Entry("list the workers of a model on a running server, and evict them", "client"),
    "snapshot": _Entry("write the models of a running server to disk now", "client"),
    "verify": _Entry("check every checksum of a data folder, without a server", "server"),
    "restore": _Entry("go back to a kept snapshot of a model, without a server", "server"),
    "export": _Entry("write a model of a data folder to a safetensors file", "safetensors"),
    "import": _Entry("make a model in a data folder from a safetensors file", "safetensors"),
    "snapshot-key": _Entry("make a key file, so that nobody without it can change a data folder", "server"),
    "certificate": _Entry("make a CA, and certificates for servers and workers", "certificate"),
    "token": _Entry("make, list and revoke the access tokens of a server", "server"),
    "login": _Entry("connect to a server with TLS, and keep the settings for its address", "client"),
    "demo": _Entry("train on handwritten digits, kill the server half-way, and watch it recover", "demo"),
    "climb": _Entry("draw gradient descent and Adam on their way down a valley, with Adam's compasses", "demo"),
    "warmup": _Entry("compile the kernels ahead of the first step", None),
    "doctor": _Entry("check what numba-adam can use on this machine, and what is broken", None),
}

_MODULES = {"import": "importing", "snapshot-key": "snapshot_key"}  # where the sub-command's is no name in Python

_CALLERS = [name for name, entry in _COMMANDS.items() if entry.extra == "client"]

_EPILOG = """\
examples:
  numba-adam demo                                   a demonstration; writes digits.png
  numba-adam climb                                  see how Adam works; writes climb.png
  numba-adam warmup                                 compile everything now, not in the first step
  numba-adam doctor                                 run this first if something is slow or fails
  numba-adam serve --data-dir ./adam                a server on 127.0.0.1:50051 with its data in ./adam
  numba-adam status                                 the models of that server
  numba-adam snapshot --model digits                write one model to disk now

Each command has its own --help.
"""


class _Command(Protocol):
    """The interface of a sub-command's module."""

    def describe(self, parser: argparse.ArgumentParser) -> None:
        """Add the description, the arguments and the examples."""

    def run(self, arguments: argparse.Namespace) -> int:
        """Run the sub-command and return the exit status."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run `numba-adam` with these arguments (default: those of the process) and return the exit status."""
    words = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    if argv is None and words[0] in _CALLERS:
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # our errors say more than gRPC's log
    try:
        return _run(words)
    except NumbaAdamError as error:
        print(f"numba-adam: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("numba-adam: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `numba-adam status | head`: the reader closed the pipe
        sys.stderr.close()
        return 1


def _run(words: list[str]) -> int:
    name = next((word for word in words if not word.startswith("-")), None)
    try:
        arguments = _parser(name).parse_args(words)
        if name not in _COMMANDS:
            raise AssertionError("argparse refuses every other name")
        return _module(name).run(arguments)
    except ModuleNotFoundError as error:
        if name not in _COMMANDS or (error.name or "").startswith("numba_adam"):
            raise  # a bug, not a missing extra
        advice = installing.advice(_COMMANDS[name].extra)
        print(f"numba-adam {name}: the module {error.name!r} is not installed; {advice}", file=sys.stderr)
        return 1


def _parser(chosen: str | None) -> argparse.ArgumentParser:
    """Return the parser. Only the chosen sub-command's module is imported."""
    parser = argparse.ArgumentParser(
        prog="numba-adam",
        description="The Adam optimizer in one pass over memory, and its parameter server.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"numba-adam {numba_adam.__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, entry in _COMMANDS.items():
        command = commands.add_parser(
            name, help=entry.summary, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
        )
        if name == chosen:
            _module(name).describe(command)
    return parser


def _module(name: str) -> _Command:
    return cast(_Command, import_module(f"numba_adam.cli.{_MODULES.get(name, name)}"))
