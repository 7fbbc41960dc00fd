"""`numba-adam demo`: train on handwritten digits, kill the server half-way, and show what happens.

`numba_adam.demo` is the demonstration. This file prints its messages and its progress. May import the standard library;
the demonstration inside the functions.
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

_PAUSE_SECONDS = 0.01  # several times what a batch takes
_DESCRIPTION = """\
Train a classifier of handwritten digits with a parameter server and two worker processes. One worker uses PyTorch if
it is installed. Half-way, the command kills the serving process with SIGKILL; its supervisor starts it again. The
workers go on, and no push is lost. With --durability memory, the server goes back to its last snapshot, and the
workers repeat what was lost by themselves. The command prints the accuracy on test images and the pushes per second.
It writes a picture of the loss over time and marks the crash. It takes less than a minute.

With --modes, it trains once in each mode (async, sync and ssp; docs/modes.md), without a kill. The last worker is slow.
The picture shows the loss over time and over pushes.
"""
_EPILOG = """\
examples:
  numba-adam demo
  numba-adam demo --workers 4 --out four.png
  numba-adam demo --durability memory               what the kill costs without files in memory
  numba-adam demo --mode sync                       each step is the mean of a round
  numba-adam demo --modes --workers 3               the three modes beside each other, one worker slow
  numba-adam demo --keep                            keeps the snapshots and the logs

The same as a short program to read: examples/digits.py
"""


def describe(parser: argparse.ArgumentParser) -> None:
    """Add the description, the arguments and the examples."""
    parser.description, parser.epilog = _DESCRIPTION, _EPILOG
    parser.add_argument(
        "--workers", metavar="N", type=_at_least(1), default=2, help="number of worker processes (default: 2)"
    )
    parser.add_argument(
        "--seed", metavar="N", type=_at_least(0), default=0, help="seed of all random numbers (default: 0)"
    )
    parser.add_argument(
        "--steps", metavar="N", type=_at_least(20), default=4000, help="number of pushes (default: 4000)"
    )
    parser.add_argument(
        "--out", metavar="PNG", type=Path, default=Path("digits.png"), help="file of the picture (default: %(default)s)"
    )
    parser.add_argument(
        "--durability",
        choices=("process", "memory"),
        default="process",
        help="what survives the kill: every push, or the last snapshot (default: %(default)s)",
    )
    parser.add_argument(
        "--mode",
        choices=("async", "sync", "ssp"),
        default="async",
        help="what makes a step of the workers' pushes (default: %(default)s)",
    )
    parser.add_argument("--modes", action="store_true", help="compare the three modes, with one slow worker")
    parser.add_argument("--keep", action="store_true", help="keep the folder with the server's data and all logs")


def _at_least(minimum: int) -> Callable[[str], int]:
    """Return a type for argparse: a whole number that is at least `minimum`."""

    def number(text: str) -> int:
        if not text.isdecimal() or int(text) < minimum:
            raise argparse.ArgumentTypeError(f"expected a whole number of at least {minimum}, got {text!r}")
        return int(text)

    return number


def run(arguments: argparse.Namespace) -> int:
    """Run the demonstration, draw the picture and print the results."""
    for module in ("matplotlib", "sklearn"):  # report a missing package before the training, not after it
        import_module(module)

    from numba_adam.demo.comparison import draw_modes, outcome, plans
    from numba_adam.demo.picture import draw
    from numba_adam.demo.story import Plan, framework, play

    plan = Plan(
        workers=arguments.workers,
        seed=arguments.seed,
        steps=arguments.steps,
        durability=arguments.durability,
        mode=arguments.mode,
        keep=arguments.keep,
        pause_seconds=_PAUSE_SECONDS if arguments.modes else 0.0,
    )
    if arguments.modes:
        records = {}
        for each in plans(plan):
            progress = Progress(each.versions)
            progress.say(f"mode      {each.mode}")
            records[each.mode] = play(each, progress.say, progress.show)
            progress.clear()
        draw_modes(records, plan.pause_seconds, arguments.out)
        print(outcome(records))
        print(f"picture   {arguments.out}")
        return 0
    progress = Progress(plan.versions)
    record = play(plan, progress.say, progress.show)
    progress.clear()
    draw(record, [framework(worker) for worker in range(plan.workers)], arguments.out)
    print(_outcome(record))
    print(f"picture   {arguments.out}")
    if record.folder:
        print(f"kept      {record.folder}")
    return 0


def _outcome(record: Record) -> str:
    """Return the results as text."""
    lines = []
    if record.crash and not record.lost:
        lines.append(f"crash     lost no push; training went on from version {record.restored}")
    elif record.crash:
        lines.append(f"crash     lost {record.lost} pushes after version {record.restored}; training repeated them")
    lines.append(f"speed     {record.pushes_per_second:.0f} pushes per second, each with a pull")
    lines.append(f"accuracy  {record.accuracy:.1%} on {record.tested} test images")
    return "\n".join(lines)


class Progress:
    """Prints the progress of the training: one updated line on a terminal, ten lines elsewhere."""

    def __init__(self, steps: int) -> None:
        self._steps = steps
        self._terminal = sys.stdout.isatty()
        self._shown = 0
        self._loss = 0.0

    def say(self, line: str) -> None:
        """Print a message above the progress line."""
        self.clear()
        self._shown = 0  # after a rewind the version is lower
        print(line, flush=True)

    def clear(self) -> None:
        """Clear the progress line."""
        if self._terminal:
            print("\r\033[K", end="", flush=True)

    def show(self, push: Push) -> None:
        """Print the progress after a push, if it has advanced enough since the last print."""
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
