"""`numba-adam doctor`: look at this machine, say what numba-adam can use and what is broken and how to mend it.

Runs with the base dependencies; what is looked at stands in numba_adam.cli.checkup, which is imported on use.
"""

from __future__ import annotations

import argparse
import json

_DESCRIPTION = """\
Look at this machine and say what numba-adam can use: versions, threads, SIMD width, the cache of compiled kernels,
memory, and whether a GPU is seen. A small update is really run and its result checked.

The exit status is 0 when everything needed works, and 1 when something is broken; the line says what to do.
"""
_EPILOG = """\
examples:
  numba-adam doctor
  numba-adam doctor --json                          for a bug report or a program
  NUMBA_NUM_THREADS=2 numba-adam doctor             what it would be with two threads
"""


def describe(parser: argparse.ArgumentParser) -> None:
    """Add the description, the arguments and the examples."""
    parser.description, parser.epilog = _DESCRIPTION, _EPILOG
    parser.add_argument("--json", action="store_true", help="print one JSON object, for programs")


def run(arguments: argparse.Namespace) -> int:
    """Print the findings; return 1 when one of them is broken."""
    from numba_adam.cli.checkup import examine

    findings = examine()
    broken = [finding for finding in findings if finding.broken]
    if arguments.json:
        print(json.dumps({"ok": not broken, "findings": [finding._asdict() for finding in findings]}, indent=2))
        return 1 if broken else 0
    for finding in findings:
        print(f"{'BROKEN' if finding.broken else 'ok':<7}{finding.subject:<18}{finding.found}")
        if finding.advice:
            print(f"{'':<7}{'':<18}-> {finding.advice}")
    print(f"\n{len(broken)} broken" if broken else "\nEverything needed works.")
    return 1 if broken else 0
