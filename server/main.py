"""`serve`: run a server until it is told to stop. Imports the embedded server."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading

from numba_adam.server.config import ServerConfig
from numba_adam.server.embedded import Server

_log = logging.getLogger(__name__)


def serve(config: ServerConfig) -> int:
    """Serve until SIGTERM, SIGINT or SIGHUP; call it from the main thread.

    SIGHUP is what a program gets whose terminal closes; under nohup, which has it ignored, it stays ignored.

    Once ready, one line on stdout says so: "numba-adam: serving on HOST:PORT".

    Returns:
        Exit status: 0 when every model's last state is on disk, else 1.

    Raises:
        ConfigurationError: the data folder or the address cannot be used.
        CorruptSnapshotError: a model has snapshots, and none of them holds.
    """
    # OpenMP's threads must not spin between two updates: the next gradient is being received on those cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    is_told = threading.Event()
    before = {number: signal.signal(number, lambda *_: is_told.set()) for number in _signals()}
    try:
        server = Server(config)
        server.start()
        sys.stdout.write(f"numba-adam: serving on {server.address}\n")
        sys.stdout.flush()
        is_told.wait()
        _log.info("told to stop; calls in flight have %g s", config.stop_deadline_seconds)
        return 0 if server.stop() else 1
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _signals() -> list[signal.Signals]:
    """Return the signals that tell the server to stop."""
    hang_up = [] if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else [signal.SIGHUP]
    return [signal.SIGTERM, signal.SIGINT, *hang_up]
