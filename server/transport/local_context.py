"""What a call over the Unix socket offers the service in place of gRPC's context. Imports grpc's names."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, NoReturn

import grpc


class EndedError(grpc.RpcError):  # the service treats it as it treats the end of a call over the network
    """The call has ended, without an answer to its caller or with another one."""


class LocalContext:
    """The context of one call, as far as the service uses it.

    Args:
        token: the access token of the connection; empty: none.
        timeout_seconds: time until the call's deadline.
        hang_up: ends the connection.
        peer: who calls.
    """

    def __init__(self, token: str, timeout_seconds: float, hang_up: Callable[[], None], peer: str) -> None:
        self._metadata = (("authorization", f"Bearer {token}"),) if token else ()
        self._deadline = time.monotonic() + timeout_seconds
        self._hang_up, self._peer = hang_up, peer
        self._lock = threading.Lock()
        self._callbacks: list[Callable[[], Any]] | None = []

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        """Return the metadata, as a call over the network has it."""
        return self._metadata

    def peer(self) -> str:
        """Return who calls."""
        return self._peer

    def is_active(self) -> bool:
        """Return whether the caller is still there, and its call has not ended."""
        return self._callbacks is not None

    def time_remaining(self) -> float:
        """Return the seconds until the deadline."""
        return max(0.0, self._deadline - time.monotonic())

    def add_callback(self, callback: Callable[[], Any]) -> bool:
        """Register a callback for the end of the call; return False if it has ended."""
        with self._lock:
            if self._callbacks is None:
                return False
            self._callbacks.append(callback)
            return True

    def end(self) -> None:
        """Note that the call has ended, or that its caller is gone."""
        with self._lock:
            callbacks, self._callbacks = self._callbacks or [], None
        for callback in callbacks:
            callback()

    def cancel(self) -> None:
        """End the connection."""
        self._hang_up()

    def abort(self, code: grpc.StatusCode, message: str) -> NoReturn:
        """End the call.

        Raises:
            EndedError: always.
        """
        raise EndedError(f"{code.name}: {message}")
