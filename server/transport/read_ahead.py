"""Asks for a call's next message while the last one is processed.

gRPC's iterator asks for a message only when it is wanted: then the network, gRPC and the call's thread wait for each
other in turn. No public name of gRPC asks earlier, and a thread that does would cost two switches for each message. So
this uses names that are not public; where a release of gRPC lacks them, messages come as gRPC's iterator gives them.
Imports the standard library.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

_NAMES = ("_state", "_look_for_request", "_raise_or_start_receive_message")


class ReadAhead(Iterator[bytes]):
    """The messages of one call. One thread uses it.

    Args:
        requests: gRPC's iterator of them.
    """

    def __init__(self, requests: Iterator[bytes]) -> None:
        self._requests: Any = requests
        self._can_start = all(hasattr(requests, name) for name in _NAMES)
        self._is_started = False

    def start(self) -> bool:
        """Ask for the next message; return whether that was possible. `next` must follow, or the end of the call."""
        if not self._can_start or self._is_started:
            return False
        with self._requests._state.condition:
            try:
                self._requests._raise_or_start_receive_message()
            except Exception:  # the call is over; the next `next` says so
                return False
        self._is_started = True
        return True

    def __next__(self) -> bytes:
        """Return the next message."""
        if not self._is_started:
            return next(self._requests)  # type: ignore[no-any-return]
        self._is_started = False
        with self._requests._state.condition:
            while True:
                message: bytes | None = self._requests._look_for_request()
                if message is not None:
                    return message
                self._requests._state.condition.wait()
