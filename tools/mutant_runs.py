"""Make each mutant of one file and run tests on it. Print the number of mutants and the survivors as JSON.

tools/mutants.py starts this in a copy of the package. What all runs import is imported once: each mutant's tests run
in a fork of this process, which takes a third of the time of a process of its own.
"""

from __future__ import annotations

import difflib
import importlib
import itertools
import json
import os
import re
import select
import signal
import sys
from collections.abc import Iterator
from contextlib import suppress
from importlib.util import cache_from_source
from pathlib import Path
from typing import Any

import pytest
from cosmic_ray.mutating import use_mutation
from cosmic_ray.plugins import get_operator, operator_names

# Plain asserts: pytest can rewrite asserts only before the first import.
OPTIONS = ("-x", "-q", "-p", "no:cacheprovider", "--assert", "plain", "--basetemp", "basetemp")
OUTPUT = "output.txt"

# Modules to import once. They must not import the mutated file.
IMPORTED_ONCE = ("hypothesis.stateful", "numba", "numba_adam.errors", "numba_adam.ps.v1.parameter_service_pb2_grpc")

# One replacement per operator is enough. The | of annotations is not an operator.
KEPT = {
    "ReplaceBinaryOperator": "Add_Sub|Sub_Add|Mul_Div|Div_Mul|FloorDiv_Mul|Mod_Mul|Pow_Mul|RShift_LShift|LShift_RShift",
    "ReplaceComparisonOperator": "Lt_LtE|LtE_Lt|Gt_GtE|GtE_Gt|Lt_GtE|GtE_Lt|Eq_NotEq|NotEq_Eq|Is_IsNot|IsNot_Is|"
    "In_NotIn|NotIn_In",
}
EXCLUDED = re.compile("|".join(f"core/{operator}_(?!({kept})$)" for operator, kept in KEPT.items()))


def operators() -> Iterator[Any]:
    """Yield the operators that make mutants."""
    for name in operator_names():
        operator = get_operator(name)
        if not operator.arguments() and not EXCLUDED.match(name):
            yield operator()


def passes(tests: list[str], timeout_seconds: float) -> bool:
    """Run tests in a forked process, and return whether they pass in time. Kill all their processes."""
    child = os.fork()
    if not child:
        os.setsid()
        output = os.open(OUTPUT, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        status: int = 1
        try:
            status = int(pytest.main([*OPTIONS, *tests]))
            sys.stdout.flush()
        finally:
            os._exit(status)
    has_ended = select.poll()
    descriptor = os.pidfd_open(child)
    has_ended.register(descriptor, select.POLLIN)
    has_ended.poll(1000 * timeout_seconds)
    os.close(descriptor)
    with suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def changed_lines(before: str, after: str) -> tuple[str, str]:
    """Return the changed lines, before and after, without context."""
    lines = [*difflib.unified_diff(before.split("\n"), after.split("\n"), n=0)][2:]
    was, became = ("\n".join(line[1:].strip() for line in lines if line[0] == sign) for sign in "-+")
    return was, became


def main() -> None:
    """Read the path, the timeout in seconds and the tests from the command line, and run the mutants."""
    path, timeout_seconds, tests = Path(sys.argv[1]), float(sys.argv[2]), sys.argv[3:]
    for name in IMPORTED_ONCE:
        importlib.import_module(name)
    if not passes(tests, timeout_seconds):
        sys.exit(f"{path}: the tests fail without a mutant:\n{Path(OUTPUT).read_text()}")
    # Two mutants with the same time and size would share a bytecode file. The first run has cached all other files.
    sys.dont_write_bytecode = True
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    Path(cache_from_source(str(path))).unlink(missing_ok=True)
    count, survivors = 0, []
    for operator in operators():
        for occurrence in itertools.count():
            with use_mutation(path, operator, occurrence) as (before, after):
                if after is None:
                    break
                count += 1
                if passes(tests, timeout_seconds):
                    survivors.append(changed_lines(before, after))
                    print(f"{count}: survived: {survivors[-1]}", file=sys.stderr, flush=True)
    print(json.dumps({"count": count, "survivors": survivors}))


if __name__ == "__main__":
    main()
