"""The command `numba-adam`: finds the sub-command, runs it, turns errors into one line and an exit status.

    0  done        1  it failed, and the line on stderr says why        2  the command line makes no sense
    130  interrupted with Ctrl-C

Each sub-command is a module of this package with `describe(parser)` and `run(arguments) -> int`, imported only when
it is asked for; so `numba-adam --version` needs the base dependencies only. May import the standard library,
numba_adam.errors and numba_adam.installing; a sub-command may import anything, inside its functions.
"""

from __future__ import annotations

import argparse
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
    extra: str | None  # what must have been installed for it; None: nothing more


_COMMANDS = {
    "serve": _Entry("run a parameter server", "server"),
    "status": _Entry("show what a running server holds and has done", "client"),
    "snapshot": _Entry("have a running server write its models to disk now", "client"),
    "demo": _Entry("train on handwritten digits, kill the server half-way, watch it recover", "demo"),
    "doctor": _Entry("look at this machine and say what numba-adam can use, and what is broken", None),
}

_EPILOG = """\
examples:
  numba-adam demo                                   see it work; writes digits.png
  numba-adam doctor                                 first thing to run when something is slow or fails
  numba-adam serve --data-dir ./adam                a server on 127.0.0.1:50051 that keeps its models in ./adam
  numba-adam status                                 what that server holds
  numba-adam snapshot --model digits                write one model to disk now

Each command has its own --help.
"""


class _Command(Protocol):
    """What the module of a sub-command offers."""

    def describe(self, parser: argparse.ArgumentParser) -> None:
        """Add the description, the arguments and the examples."""

    def run(self, arguments: argparse.Namespace) -> int:
        """Do it and return the exit status."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run `numba-adam` with these arguments (default: the process's own) and return its exit status."""
    words = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    try:
        return _run(words)
    except NumbaAdamError as error:
        print(f"numba-adam: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("numba-adam: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `numba-adam status | head`: the reader has seen enough
        sys.stderr.close()
        return 1


def _run(words: list[str]) -> int:
    name = next((word for word in words if not word.startswith("-")), None)
    try:
        arguments = _parser(name).parse_args(words)
        if name not in _COMMANDS:
            raise AssertionError("argparse lets no other name through")
        return _module(name).run(arguments)
    except ModuleNotFoundError as error:
        if name not in _COMMANDS or (error.name or "").startswith("numba_adam"):
            raise  # our own mistake, not something that was left out of the installation
        advice = installing.advice(_COMMANDS[name].extra)
        print(f"numba-adam {name}: the module {error.name!r} is not installed; {advice}", file=sys.stderr)
        return 1


def _parser(chosen: str | None) -> argparse.ArgumentParser:
    """Return the parser; only the chosen sub-command's module is imported to describe itself."""
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
    return cast(_Command, import_module(f"numba_adam.cli.{name}"))
