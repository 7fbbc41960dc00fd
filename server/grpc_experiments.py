"""Switches on two experiments of gRPC: a wait for data wakes when a whole frame is there, not for each 64 KiB of it.

They save the serving process about a tenth of its processor time for a large push. gRPC reads the variable when it is
imported, and reports names that it does not know, so releases that nobody has tried are left alone. Imports the
standard library.
"""

from __future__ import annotations

import os
from importlib.metadata import PackageNotFoundError, version

VARIABLE = "GRPC_EXPERIMENTS"
NAMES = "tcp_rcv_lowat,tcp_frame_size_tuning"
_TRIED = ((1, 70), (1, 85))  # the first and the last minor release


def switch_on() -> None:
    """Set the variable, unless the user has set it. Has no effect once gRPC is imported."""
    try:
        major, minor = map(int, version("grpcio").split(".")[:2])
    except (PackageNotFoundError, ValueError):
        return
    if _TRIED[0] <= (major, minor) <= _TRIED[1]:
        os.environ.setdefault(VARIABLE, NAMES)
