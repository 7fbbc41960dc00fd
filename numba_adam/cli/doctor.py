"""`numba-adam doctor`: report what numba-adam can use on this machine, what is broken, and how to repair it.

`numba_adam.cli.checkup` has the checks. It is imported on use. Needs the base dependencies only.
"""

from __future__ import annotations

import argparse
import json

_DESCRIPTION = """\
Report what numba-adam can use on this machine: versions, threads, SIMD width, the cache of compiled kernels, memory
and GPUs. The command also runs a small update and checks its result.

The exit status is 0 if everything needed works, and 1 if something is broken. The line of a broken subject says what
to do.
"""
_EPILOG = """\
examples:
  numba-adam doctor
  numba-adam doctor --json                          for a bug report or a program
  NUMBA_NUM_THREADS=2 numba-adam doctor             the report with two threads
"""


def describe(parser: argparse.ArgumentParser) -> None:
    """Add the description, the arguments and the examples."""
    parser.description, parser.epilog = _DESCRIPTION, _EPILOG
    parser.add_argument("--json", action="store_true", help="print one JSON object, for programs")


def run(arguments: argparse.Namespace) -> int:
    """Print the findings. Return 1 if one of them is broken."""
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
