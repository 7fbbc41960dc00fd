"""What a fork means for the clients of this process, and whether gRPC works in this child.

gRPC's threads do not survive a fork: a child in which they were running waits for them for ever. So before this
process forks, its clients close their channels, upon which gRPC ends its threads; the calls cut short are tried again
afterwards, on new channels. A child then begins without gRPC, and may make clients of its own. May import the
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

_PATIENCE_SECONDS = 5.0  # how long a fork waits for gRPC's threads to end
_SHORT_PATIENCE_SECONDS = 0.1  # where at the fork before this one they did not: somebody else uses gRPC too
_LOOK_SECONDS = 0.005
_LOOKS = 3  # a thread that was made a moment ago has no name yet
_TASKS = Path("/proc/self/task")
_NAMES = ("event_engine", "grpc_global_tim", "lifeguard", "default-executo", "resolver-execut")


class Forking(Protocol):
    """What hears of forks."""

    def rest(self) -> None:
        """Close the channel before a fork; the next call makes another."""

    def abandon(self) -> None:
        """In the child: end what can never be done there."""


class _State:
    """What this process knows of its forks."""

    def __init__(self) -> None:
        self.gate = threading.Lock()
        """Held while the process forks, and while a channel is made."""
        self.is_forking = False
        self.has_used_grpc = False
        self.is_running = False
        """Whether gRPC's threads were running at the fork that is under way."""
        self.broken_since = 0
        """The parent in which they were running when this process was forked from it; 0: gRPC works here."""


_state = _State()
_listeners: weakref.WeakSet[Forking] = weakref.WeakSet()


def listen(listener: Forking) -> None:
    """Tell a listener of forks, so long as it lives."""
    _listeners.add(listener)


def gate() -> threading.Lock:
    """Return the lock under which channels are made; it is held while the process forks."""
    _state.has_used_grpc = True
    return _state.gate


def check_grpc_works() -> None:
    """See that gRPC works in this process.

    Raises:
        ServiceError: it was running in the parent when this process was forked.
    """
    if _state.broken_since:
        raise ServiceError(
            f"gRPC was in use in process {_state.broken_since} when it forked process {os.getpid()}, and does not work "
            "there any more: start such a process with the method 'spawn' (multiprocessing.get_context('spawn'), "
            "DataLoader(multiprocessing_context='spawn')), or before the server or whatever else uses gRPC"
        )


def check_owner(what: str, owner: int) -> None:
    """See that a client is used by the process that made it.

    Raises:
        ServiceError: it was inherited through a fork.
    """
    if owner != os.getpid():
        raise ServiceError(
            f"{what}: the client was made by process {owner}, and process {os.getpid()} was forked from it; processes "
            "do not share a client: make a ParameterClient in the child"
        )


def _grpc_is_running() -> bool:
    """Look whether this process has threads of gRPC's core."""
    try:
        tasks = list(_TASKS.iterdir())
    except OSError:  # no such folder on this system: assume the worst
        return _state.has_used_grpc
    return any(_name(task).startswith(_NAMES) for task in tasks)


def _name(task: Path) -> str:
    try:
        return (task / "comm").read_text()
    except OSError:  # it has ended
        return ""


def _before() -> None:
    _state.gate.acquire()
    _state.is_forking = True
    if not _state.has_used_grpc:
        _state.is_running = _grpc_is_running()
        return
    patience = _SHORT_PATIENCE_SECONDS if _state.is_running else _PATIENCE_SECONDS
    _state.is_running = True  # unless it is seen not to be: an interrupt may come in between
    resting = threading.Thread(target=_rest_all, name="numba-adam fork", daemon=True)
    resting.start()
    resting.join(_PATIENCE_SECONDS)
    _state.is_running = _keeps_running(patience)


def _rest_all() -> None:
    for listener in tuple(_listeners):
        listener.rest()


def _keeps_running(patience_seconds: float) -> bool:
    """Wait until gRPC's threads have ended; return whether some have not."""
    end, clean = time.monotonic() + patience_seconds, 0
    while clean < _LOOKS:
        clean = 0 if _grpc_is_running() else clean + 1
        if time.monotonic() > end:
            return True
        if clean < _LOOKS:
            time.sleep(_LOOK_SECONDS)
    return False


def _after_in_parent() -> None:
    if _state.is_forking:
        _state.is_forking = False
        _state.gate.release()


def _after_in_child() -> None:
    broken = _state.broken_since or (os.getppid() if _state.is_running else 0)
    _state.__init__()  # type: ignore[misc]  # a new lock: the old one is held
    _state.broken_since = broken
    for listener in tuple(_listeners):
        listener.abandon()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before, after_in_parent=_after_in_parent, after_in_child=_after_in_child)
