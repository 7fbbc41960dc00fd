"""Checks of records read from files: an unknown key or value is refused by name, never dropped or guessed.

Imports the error tree.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from numba_adam.errors import SnapshotError

_ADVICE = "a newer numba-adam may have written it: read it with that one"


def check_keys(record: Mapping[str, Any], what: str, required: Collection[str], optional: Collection[str] = ()) -> None:
    """Refuse a record with keys that this version does not know, or without one that it needs.

    Args:
        record: the record.
        what: its name in error messages.
        required: keys that the record must have.
        optional: keys that it may have.

    Raises:
        SnapshotError: a key is unknown or missing.
    """
    if strange := [key for key in record if key not in required and key not in optional]:
        raise SnapshotError(f"{what} has {_listed(strange)}, which this numba-adam does not know; {_ADVICE}")
    if missing := [key for key in required if key not in record]:
        raise SnapshotError(f"{what} lacks {_listed(missing)}; {_ADVICE}")


def check_value(value: object, what: str, known: Collection[object]) -> None:
    """Refuse a value that this version does not know.

    Raises:
        SnapshotError: the value is unknown.
    """
    if type(value) not in {type(each) for each in known} or value not in known:
        choices = " or ".join(map(repr, known))
        raise SnapshotError(f"{what} is {repr(value)[:80]}, and this numba-adam knows {choices}; {_ADVICE}")


def _listed(keys: list[str]) -> str:
    more = f" and {len(keys) - 5} more" if len(keys) > 5 else ""
    return ", ".join(repr(key)[:80] for key in keys[:5]) + more
