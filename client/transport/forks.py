"""Closes the clients' channels before this process forks, and checks whether gRPC works in a forked child.

gRPC's threads do not survive a fork. If they run at the fork, gRPC in the child waits for them forever. So before a
fork, all clients of this process close their channels, and gRPC ends its threads. After the fork, the parent retries
the cancelled calls on new channels. The child starts without gRPC and can create its own clients. May import the
standard library and numba_adam.errors.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from pathlib import Path
from typing import Protocol

from numba_adam.errors import ServiceError

_TIMEOUT_SECONDS = 5.0  # how long a fork waits for gRPC's threads to end
_SHORT_TIMEOUT_SECONDS = 0.1  # after a fork where they did not end: something else uses gRPC too
_POLL_SECONDS = 0.005
_CLEAN_POLLS = 3  # in a row, because a new thread has no name at first
_TASKS = Path("/proc/self/task")
_NAMES = ("event_engine", "grpc_global_tim", "lifeguard", "default-executo", "resolver-execut")


class Forking(Protocol):
    """An object that is notified of forks."""

    def close_channel(self) -> None:
        """Close the channel before a fork. The next call creates a new one."""

    def abandon(self) -> None:
        """In the child: settle the calls that cannot finish there."""


class _State:
    """The state of this process with regard to forks."""

    def __init__(self) -> None:
        self.gate = threading.Lock()
        """Held while the process forks, and while a channel is created."""
        self.is_forking = False
        self.has_used_grpc = False
        self.is_running = False
        """Whether gRPC's threads run at the current or last fork."""
        self.broken_since = 0
        """Process id of the parent, if gRPC's threads ran there at the fork. 0: gRPC works here."""


_state = _State()
_listeners: weakref.WeakSet[Forking] = weakref.WeakSet()


def listen(listener: Forking) -> None:
    """Notify a listener of forks, as long as it exists."""
    _listeners.add(listener)


def gate() -> threading.Lock:
    """Return the lock to hold while a channel is created; a fork holds it too."""
    _state.has_used_grpc = True
    return _state.gate


def check_grpc_works() -> None:
    """Check that gRPC works in this process.

    Raises:
        ServiceError: gRPC's threads ran in the parent when it forked this process.
    """
    if _state.broken_since:
        raise ServiceError(
            f"gRPC does not work in process {os.getpid()}, because process {_state.broken_since} used gRPC when it "
            "forked that process. Start such a process with the method 'spawn' "
            "(multiprocessing.get_context('spawn'), DataLoader(multiprocessing_context='spawn')), or before the parent "
            "uses gRPC, for a server for instance"
        )


def check_owner(what: str, owner: int) -> None:
    """Check that the process that uses a client created it.

    Raises:
        ServiceError: the client was inherited through a fork.
    """
    if owner != os.getpid():
        raise ServiceError(
            f"{what}: process {owner} created the client, and process {os.getpid()} was forked from it. Processes "
            "cannot share a client: make a ParameterClient in the child"
        )


def _grpc_is_running() -> bool:
    """Return whether this process has threads of gRPC's core."""
    try:
        tasks = list(_TASKS.iterdir())
    except OSError:  # this system has no such folder: assume that they run
        return _state.has_used_grpc
    return any(_name(task).startswith(_NAMES) for task in tasks)


def _name(task: Path) -> str:
    try:
        return (task / "comm").read_text()
    except OSError:  # the thread has ended
        return ""


def _before() -> None:
    _state.gate.acquire()
    _state.is_forking = True
    if not _state.has_used_grpc:
        _state.is_running = _grpc_is_running()
        return
    timeout = _SHORT_TIMEOUT_SECONDS if _state.is_running else _TIMEOUT_SECONDS
    _state.is_running = True  # the safe value, in case an interrupt ends this function here
    closing = threading.Thread(target=_close_all, name="numba-adam fork", daemon=True)
    closing.start()
    closing.join(_TIMEOUT_SECONDS)
    _state.is_running = _keeps_running(timeout)


def _close_all() -> None:
    for listener in tuple(_listeners):
        listener.close_channel()


def _keeps_running(timeout_seconds: float) -> bool:
    """Wait until gRPC's threads have ended; return whether some have not."""
    end, clean = time.monotonic() + timeout_seconds, 0
    while clean < _CLEAN_POLLS:
        clean = 0 if _grpc_is_running() else clean + 1
        if time.monotonic() > end:
            return True
        if clean < _CLEAN_POLLS:
            time.sleep(_POLL_SECONDS)
    return False


def _after_in_parent() -> None:
    if _state.is_forking:
        _state.is_forking = False
        _state.gate.release()


def _after_in_child() -> None:
    broken = _state.broken_since or (os.getppid() if _state.is_running else 0)
    _state.__init__()  # type: ignore[misc]  # a new lock: the old one is locked
    _state.broken_since = broken
    for listener in tuple(_listeners):
        listener.abandon()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before, after_in_parent=_after_in_parent, after_in_child=_after_in_child)
