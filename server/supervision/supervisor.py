"""Keeps one serving process running until a signal tells it to stop.

    the serving process ...               the supervising process ...
    says that it serves                   keeps its address for the next one
    dies                                  says why, pauses, and starts the next one, a limited number of times
    refuses to start, or stops            ends with its exit status
    is killed by the kernel               has died, even of SIGKILL

SIGTERM, SIGINT and SIGHUP are passed on. It has one thread, and as process 1 of a container it waits for orphans.
Imports its neighbours.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import time
from collections.abc import Collection, Iterator

from numba_adam.server.supervision.child import DAMAGED, REFUSED, SERVING, STOPPING, Child, Ended, Serve
from numba_adam.server.supervision.notify import Notifier

_log = logging.getLogger(__name__)
_STABLE_SECONDS = 60.0  # a process that served for so long did not crash because of how it was started
_FIRST_PAUSE_SECONDS = 0.5
_LONGEST_PAUSE_SECONDS = 30.0


class Supervisor:
    """Starts the serving process, again after each crash.

    Args:
        serve: what the serving process runs.
        most_restarts: crashes in a row after which it gives up; a process that served for a minute ends the row.
        final: exit statuses of ends that a restart cannot cure.
    """

    def __init__(self, serve: Serve, most_restarts: int, final: Collection[int] = ()) -> None:
        self._serve, self._most_restarts, self._final = serve, most_restarts, final
        self._notifier = Notifier()
        self._address: str | None = None
        self._crashes = 0
        self._is_stopping = False
        self._signals = _stop_signals()

    def run(self) -> int:
        """Supervise until a stop, or until a restart cannot help; return the exit status.

        If a signal ended the serving process after a stop was asked for, this process ends by the same signal.
        """
        handled = {number: signal.getsignal(number) or signal.SIG_DFL for number in self._signals}
        handled[signal.SIGCHLD] = signal.SIG_DFL  # if it was ignored, no end of a child could be told from another
        with _woken_by(list(handled)) as woken:
            while True:
                start = time.monotonic()
                ended = self._watch(Child(self._serve, self._address, handled), woken)
                status = self._final_status(ended)
                if status is not None:
                    self._say_if_final(ended, status)
                    break
                if SERVING in ended.reports and time.monotonic() - start > _STABLE_SECONDS:
                    self._crashes = 0
                self._crashes += 1
                if self._crashes > self._most_restarts:
                    _log.error("the serving process %s; crash %d in a row: it stays down", ended.why, self._crashes)
                    return 1
                if not self._pause(ended, woken):
                    return 1
        return _end_as(ended.status) if self._is_stopping and os.WIFSIGNALED(ended.status) else status

    def _watch(self, child: Child, woken: int) -> Ended:
        """Pass signals on to a serving process until it ends."""
        poll = select.poll()
        poll.register(woken, select.POLLIN)
        poll.register(child.reader, select.POLLIN)
        while True:
            ready = dict(poll.poll())
            for number in _read_signals(woken) if woken in ready else ():
                if number in self._signals:
                    self._begin_stop()
                    child.send(signal.Signals(number))
            if child.reader in ready:
                self._note(child, child.read_reports())
                if ready[child.reader] & select.POLLHUP:
                    poll.unregister(child.reader)  # SIGCHLD follows
            ended = child.ended()
            if ended is not None:
                self._address = child.address
                return ended

    def _note(self, child: Child, reports: list[str]) -> None:
        if SERVING in reports:
            self._notifier.send("READY=1", f"STATUS=serving on {child.address}, process {child.pid}")
        if STOPPING in reports:
            self._begin_stop()

    def _begin_stop(self) -> None:
        if not self._is_stopping:
            self._is_stopping = True
            self._notifier.send("STOPPING=1")

    def _final_status(self, ended: Ended) -> int | None:
        """Return the exit status after an end that a restart cannot cure; None after a crash."""
        self._is_stopping |= STOPPING in ended.reports
        may_pass = REFUSED in ended.reports and self._address is not None and self._crashes > 0
        is_refused = DAMAGED in ended.reports or (REFUSED in ended.reports and not may_pass)
        code = os.waitstatus_to_exitcode(ended.status)
        return abs(code) if self._is_stopping or is_refused or code == 0 or code in self._final else None

    def _say_if_final(self, ended: Ended, status: int) -> None:
        """Say that a serving process is not started again, where its log alone does not explain it."""
        if status in self._final and not self._is_stopping:
            _log.error("the serving process %s: it is not started again; its last message says why", ended.why)
            self._notifier.send(f"STATUS=the serving process {ended.why}; it is not started again")

    def _pause(self, ended: Ended, woken: int) -> bool:
        """Say why the serving process died, and wait before the next; return False if a stop came meanwhile."""
        doubled = _FIRST_PAUSE_SECONDS * 2.0 ** (self._crashes - 2)
        seconds = 0.0 if self._crashes == 1 else min(doubled, _LONGEST_PAUSE_SECONDS)
        when = f"in {seconds:g} s" if seconds else "now"
        _log.error(
            "the serving process %s; starting it again %s (restart %d of at most %d)",
            ended.why,
            when,
            self._crashes,
            self._most_restarts,
        )
        self._notifier.send(f"STATUS=the serving process {ended.why}; starting it again {when}")
        until = time.monotonic() + seconds
        while True:
            left = max(0.0, until - time.monotonic())
            ready = select.select([woken], [], [], left)[0]
            if ready and any(number in self._signals for number in _read_signals(woken)):
                self._begin_stop()
                _log.error("stopped while no process served: what models kept in memory only is lost since the crash")
                return False
            if not ready:
                return True


def _stop_signals() -> list[signal.Signals]:
    """Return the signals that stop a server; under nohup, SIGHUP stays ignored."""
    hang_up = [] if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else [signal.SIGHUP]
    return [signal.SIGTERM, signal.SIGINT, *hang_up]


@contextlib.contextmanager
def _woken_by(numbers: list[signal.Signals]) -> Iterator[int]:
    """Yield a descriptor that becomes readable, with their numbers as bytes, when signals arrive."""
    reader, writer = os.pipe()
    for end in (reader, writer):
        os.set_blocking(end, False)
    earlier = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    before = {number: signal.signal(number, lambda *_: None) for number in numbers}
    try:
        yield reader
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)
        signal.set_wakeup_fd(earlier)
        os.close(reader)
        os.close(writer)


def _read_signals(woken: int) -> bytes:
    try:
        return os.read(woken, 4096)
    except BlockingIOError:
        return b""


def _end_as(status: int) -> int:
    """End this process by the signal that ended the serving process; as process 1, return the status of shells."""
    number = os.WTERMSIG(status)
    if number != signal.SIGKILL:
        signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    return 128 + number
