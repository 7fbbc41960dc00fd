"""Limits connections, so that file descriptors remain for snapshots. Imports the standard library.

A server without free descriptors would acknowledge pushes that it cannot save.
"""

from __future__ import annotations

import resource

_ENOUGH = 1 << 16
_FOR_FILES = 256
"""Descriptors reserved for snapshots, folders, logs and libraries that load on use."""


def raise_limit() -> None:
    """Raise this process's limit of open files to the system's, at most _ENOUGH."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _ENOUGH if hard == resource.RLIM_INFINITY else min(hard, _ENOUGH)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def connection_limit(most: int) -> int:
    """Return how many connections to allow: at most `most`, so that 256 descriptors or half of all remain for files."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return most
    return max(1, min(most, soft - min(_FOR_FILES, soft // 2)))
