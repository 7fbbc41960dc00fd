"""Validates the names and ids that callers choose. Imports the error tree."""

from __future__ import annotations

import re

from numba_adam.errors import InvalidRequestError

_MODEL_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}")
_LONGEST_WORKER_ID = 128
_LONGEST_RANDOM_ID = 64


def is_model_name(name: str) -> bool:
    """Return whether this is a valid model name. It becomes a folder's name."""
    return _MODEL_NAME.fullmatch(name) is not None


def check_model_name(name: str) -> str:
    """Return a model's name, or raise InvalidRequestError."""
    if not is_model_name(name):
        raise InvalidRequestError(
            f"model name {name[:200]!r}: it must be 1 to 128 characters of A-Z a-z 0-9 . _ - and not begin with a dot"
        )
    return name


def check_worker_id(worker_id: str) -> str:
    """Return a worker's id, or raise InvalidRequestError."""
    if not 1 <= len(worker_id) <= _LONGEST_WORKER_ID or not worker_id.isprintable():
        raise InvalidRequestError(
            f"worker_id {worker_id[:200]!r}: it must be 1 to {_LONGEST_WORKER_ID} characters, none a control character"
        )
    return worker_id


def check_random_id(name: str, value: str) -> str:
    """Return a random id that a client made, or raise InvalidRequestError."""
    if not 1 <= len(value) <= _LONGEST_RANDOM_ID or not value.isprintable():
        raise InvalidRequestError(
            f"{name} {value[:80]!r}: it must be 1 to {_LONGEST_RANDOM_ID} random characters, none a control character"
        )
    return value
