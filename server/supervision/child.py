"""One serving process: it is forked, reports through a pipe, and dies with its parent.

Imports the standard library and why processes die.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import traceback
from collections.abc import Callable, Mapping
from typing import NamedTuple, NoReturn

from numba_adam.errors import ConfigurationError, NumbaAdamError
from numba_adam.server.supervision import endings

SERVING, STOPPING, REFUSED, DAMAGED = "serving", "stopping", "refused", "damaged"
"""Reports: it serves at an address; it was told to stop; it did not start, for a reason that may pass or never will."""

Report = Callable[[str], None]
Serve = Callable[[str | None, Report], int]
"""Serves at an address (None: that of the settings) until a signal; reports SERVING and STOPPING; returns the exit
status."""

_PR_SET_PDEATHSIG = 1


class Ended(NamedTuple):
    """How a serving process ended."""

    status: int
    """As os.waitpid returned it."""

    reports: tuple[str, ...]
    """The first words of its reports."""

    why: str
    """In words."""


class Child:
    """A serving process.

    Args:
        serve: what it runs.
        address: where it serves; None: where the settings say.
        handlers: the handlers of signals that it gets back.
    """

    def __init__(self, serve: Serve, address: str | None, handlers: Mapping[signal.Signals, signal._HANDLER]) -> None:
        self.address = address
        """Where it serves."""

        self._kills_before = endings.out_of_memory_kills()
        self._reports: list[str] = []
        self._unread = b""
        self.reader, writer = os.pipe()
        """Has its reports; readable at its end too."""

        os.set_blocking(self.reader, False)
        parent = os.getpid()
        for stream in filter(None, (sys.stdout, sys.stderr)):
            stream.flush()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, handlers)
        try:
            self.pid = os.fork()
            """Its id."""

            if self.pid == 0:
                _become(parent, handlers)
                os.close(self.reader)
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
                _run(serve, address, lambda text: _write(writer, text))
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        os.close(writer)

    def read_reports(self) -> list[str]:
        """Return the first words of the reports that have come since the last call."""
        try:
            while data := os.read(self.reader, 4096):
                self._unread += data
        except BlockingIOError:
            pass
        *lines, self._unread = self._unread.split(b"\n")
        words = [line.decode().partition(" ") for line in lines]
        for word, _, rest in words:
            self.address = rest if word == SERVING else self.address
        new = [word for word, _, _ in words]
        self._reports += new
        return new

    def send(self, number: signal.Signals) -> None:
        """Pass a signal on. The process has not been waited for, so the id is still its own."""
        os.kill(self.pid, number)

    def ended(self) -> Ended | None:
        """Return how it ended; None if it runs. Also waits for orphans that were given to this process, as to any init.

        Whoever gets an answer has read the last report and closed the pipe.
        """
        found: Ended | None = None
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return found
            if pid == 0:
                return found
            if pid == self.pid:
                self.read_reports()
                os.close(self.reader)
                found = Ended(status, tuple(self._reports), endings.why(status, self._kills_before))


def _become(parent: int, handlers: Mapping[signal.Signals, signal._HANDLER]) -> None:
    """Make the forked process handle signals as a new one does, and die with its parent."""
    signal.set_wakeup_fd(-1)
    for number, handler in handlers.items():
        signal.signal(number, handler)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it died before the line above
        os._exit(1)


def _run(serve: Serve, address: str | None, report: Report) -> NoReturn:
    """Serve and end the process; an error is one line on stderr, as for every command."""
    status = 1
    try:
        status = serve(address, report)
    except NumbaAdamError as error:
        report(REFUSED if isinstance(error, ConfigurationError) else DAMAGED)
        _complain(f"numba-adam: {error}\n")
    except KeyboardInterrupt:
        status = 130
        _complain("numba-adam: interrupted\n")
    except BaseException:
        _complain(traceback.format_exc())
    finally:
        for stream in filter(None, (sys.stdout, sys.stderr)):
            try:
                stream.flush()
            except OSError:  # nobody reads it
                status = status or 1
        os._exit(status)


def _complain(text: str) -> None:
    if sys.stderr is not None:
        sys.stderr.write(text)


def _write(descriptor: int, text: str) -> None:
    os.write(descriptor, f"{text}\n".encode())
