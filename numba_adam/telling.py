"""Tells whoever waits what it is for: one line on a terminal, else in the log. Imports the standard library only."""

from __future__ import annotations

import logging
import os
import re
import sys
import warnings

_log = logging.getLogger("numba_adam")
_QUIET = "NUMBA_ADAM_QUIET"


def tell(line: str) -> None:
    """Write a line to stderr if that is a terminal, else to the log.

    A variable NUMBA_ADAM_QUIET that is not empty sends it to the log too, and so does a filter that ignores warnings,
    of `python -W ignore` or of the module `warnings`.

    Args:
        line: what to say, without the name of this package.
    """
    is_quiet = bool(os.environ.get(_QUIET)) or _would_be_ignored(line)
    if not is_quiet and sys.stderr is not None and sys.stderr.isatty():
        sys.stderr.write(f"numba-adam: {line}\n")
        sys.stderr.flush()
    else:
        _log.info("%s", line)


def _would_be_ignored(line: str) -> bool:
    """Say whether Python would ignore the line if it were a UserWarning of this package."""
    for action, message, category, module, number in warnings.filters:
        is_meant = issubclass(UserWarning, category) and number == 0
        if is_meant and _fits(message, line) and _fits(module, "numba_adam"):
            return action == "ignore"
    return False


def _fits(pattern: str | re.Pattern[str] | None, text: str) -> bool:
    """Say whether a text fits a pattern of a filter; None fits every text."""
    return pattern is None or re.match(pattern, text) is not None
