"""`serve`: run a server until it is told to stop. Imports the embedded server."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator

from numba_adam.server.config import ServerConfig
from numba_adam.server.embedded import Server
from numba_adam.server.runtime.heap import share_heaps
from numba_adam.server.storage.durable import end_after_failed_sync
from numba_adam.server.transport.descriptors import raise_limit

_log = logging.getLogger(__name__)


def serve(config: ServerConfig, report: Callable[[str], None] = lambda _: None, *, announces: bool = True) -> int:
    """Serve until SIGTERM, SIGINT or SIGHUP; call it from the main thread.

    A program gets SIGHUP when its terminal closes. Under nohup, SIGHUP stays ignored.

    When the server is ready, it prints one line on stdout: "numba-adam: serving on HOST:PORT".

    Args:
        config: the settings.
        report: is told "serving HOST:PORT" when the server is ready, and "stopping" when a signal came.
        announces: False: print nothing.

    Returns:
        Exit status: 0 when every model's last state is on disk, else 1. If an fsync fails, the process ends at once
        with durable.FAILED_SYNC_STATUS.

    Raises:
        ConfigurationError: the data folder or the address cannot be used.
        CorruptSnapshotError: a model has snapshots, and none of them is intact.
    """
    # OpenMP's threads must not spin between two updates: the same cores receive the next gradient.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    raise_limit()
    share_heaps()
    end_after_failed_sync()
    with _stop_signals() as wait:
        server = Server(config)
        server.start()
        if not config.requires_tokens:
            _log.warning(
                "every user of this machine may use this server; --loopback-token required changes that, and becomes "
                "the default in the next release"
            )
        report(f"serving {server.address}")  # first: once anybody knows the address, it is kept
        if announces and sys.stdout is not None:
            sys.stdout.write(f"numba-adam: serving on {server.address}\n")
            sys.stdout.flush()
        number = wait()
        report("stopping")
        _log.info("%s: saving, then calls in flight have %g s", number.name, config.stop_deadline_seconds)
        return 0 if server.stop() else 1


@contextlib.contextmanager
def _stop_signals() -> Iterator[Callable[[], signal.Signals]]:
    """Yield a function that waits for a signal to stop, and returns it.

    The system may deliver a signal to any thread just before the main thread waits for a lock; Python would not wake
    the main thread then. A byte in a pipe always wakes it.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    numbers = _signals()
    earlier = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    before = {number: signal.signal(number, lambda *_: None) for number in numbers}

    def wait() -> signal.Signals:
        while (number := os.read(reader, 1)[0]) not in numbers:
            pass
        return signal.Signals(number)

    try:
        yield wait
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(earlier)
        os.close(reader)
        os.close(writer)


def _signals() -> list[signal.Signals]:
    """Return the signals that stop the server."""
    hang_up = [] if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else [signal.SIGHUP]
    return [signal.SIGTERM, signal.SIGINT, *hang_up]
