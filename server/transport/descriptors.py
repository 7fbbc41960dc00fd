"""Open files: how many connections there may be, so that snapshots find descriptors. Imports the standard library.

A server that has none left acknowledges pushes that it cannot save.
"""

from __future__ import annotations

import resource

_ENOUGH = 1 << 16
_FOR_FILES = 256
"""Descriptors that connections never take: snapshots, folders, logs, libraries that are loaded on use."""


def raise_limit() -> None:
    """Let this process open as many files as the system lets it, within reason."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _ENOUGH if hard == resource.RLIM_INFINITY else min(hard, _ENOUGH)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def room_for_connections(most: int) -> int:
    """Return how many connections there may be: `most`, or what leaves half of the descriptors or 256 for files."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return most
    return max(1, min(most, soft - min(_FOR_FILES, soft // 2)))
