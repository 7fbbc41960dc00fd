"""`numba-adam demo`: train on handwritten digits, kill the server half-way, and show what happens.

The demonstration itself is numba_adam.demo; this prints its story and its progress.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from numba_adam.demo.story import Push, Record

_DESCRIPTION = """\
Train a classifier of handwritten digits with a parameter server and two worker processes, one of them in PyTorch
where that is installed. Half-way the server is killed with SIGKILL and started again; the workers go back to its
last snapshot and go on by themselves. Prints the accuracy on images that were not trained on and the pushes per
second, and writes a picture of the loss over time with the crash marked. Takes well under a minute.
"""
_EPILOG = """\
examples:
  numba-adam demo
  numba-adam demo --workers 4 --out four.png
  numba-adam demo --keep                            leaves the snapshots and the logs to look at

The same in one file that is meant to be read: examples/digits.py
"""


def describe(parser: argparse.ArgumentParser) -> None:
    """Add the description, the arguments and the examples."""
    parser.description, parser.epilog = _DESCRIPTION, _EPILOG
    parser.add_argument("--workers", metavar="N", type=_at_least(1), default=2, help="worker processes (default: 2)")
    parser.add_argument("--seed", metavar="N", type=_at_least(0), default=0, help="of all random numbers (default: 0)")
    parser.add_argument("--steps", metavar="N", type=_at_least(20), default=4000, help="pushes (default: 4000)")
    parser.add_argument(
        "--out", metavar="PNG", type=Path, default=Path("digits.png"), help="the picture (default: %(default)s)"
    )
    parser.add_argument("--keep", action="store_true", help="keep the folder with the server's data and all logs")


def _at_least(minimum: int) -> Callable[[str], int]:
    """Return a type for argparse: a whole number that is large enough."""

    def number(text: str) -> int:
        if not text.isdecimal() or int(text) < minimum:
            raise argparse.ArgumentTypeError(f"{text!r}: it must be a whole number, at least {minimum}")
        return int(text)

    return number


def run(arguments: argparse.Namespace) -> int:
    """Play the demonstration, draw the picture, print what came out."""
    for module in ("matplotlib", "sklearn"):  # if one is not installed, say so now and not after the training
        import_module(module)

    from numba_adam.demo.picture import draw
    from numba_adam.demo.story import Plan, framework, play

    plan = Plan(workers=arguments.workers, seed=arguments.seed, steps=arguments.steps, keep=arguments.keep)
    progress = Progress(plan.steps)
    record = play(plan, progress.say, progress.show)
    progress.clear()
    draw(record, [framework(worker) for worker in range(plan.workers)], arguments.out)
    print(_outcome(record))
    print(f"picture   {arguments.out}")
    if record.folder:
        print(f"kept      {record.folder}")
    return 0


def _outcome(record: Record) -> str:
    """Return the last lines of the story."""
    lines = []
    if record.crash:
        lines.append(f"crash     cost {record.lost} pushes, those after version {record.restored}; done again since")
    lines.append(f"speed     {record.pushes_per_second:.0f} pushes per second, each with a pull")
    lines.append(f"accuracy  {record.accuracy:.1%} on {record.tested} images that were not trained on")
    return "\n".join(lines)


class Progress:
    """Shows how far training is: one line that moves on a terminal, a line now and then elsewhere."""

    def __init__(self, steps: int) -> None:
        self._steps = steps
        self._terminal = sys.stdout.isatty()
        self._shown = 0
        self._loss = 0.0

    def say(self, line: str) -> None:
        """Print a line of the story above the moving one."""
        self.clear()
        self._shown = 0  # after a rewind the version is lower
        print(line, flush=True)

    def clear(self) -> None:
        """Take the moving line away."""
        if self._terminal:
            print("\r\033[K", end="", flush=True)

    def show(self, push: Push) -> None:
        """Show a push, if enough has happened since the last one shown."""
        self._loss = push.loss if not self._loss else 0.98 * self._loss + 0.02 * push.loss
        every = self._steps // (200 if self._terminal else 10) or 1
        if push.version // every <= self._shown:
            return
        self._shown = push.version // every
        line = f"training  version {push.version:>5} of {self._steps}, loss {self._loss:.3f}"
        if not self._terminal:
            print(line, flush=True)
            return
        done = 30 * min(push.version, self._steps) // self._steps
        print(f"\r\033[K{line}  [{'=' * done}{' ' * (30 - done)}]", end="", flush=True)
