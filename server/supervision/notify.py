"""Tells systemd how the service is, as sd_notify(3) does. Imports the standard library."""

from __future__ import annotations

import contextlib
import os
import socket


class Notifier:
    """Sends states to the socket that the environment names; without one it does nothing.

    The variable is removed from the environment, so that no child speaks for the service.
    """

    def __init__(self) -> None:
        address = os.environ.pop("NOTIFY_SOCKET", "")
        self._address = f"\0{address[1:]}" if address.startswith("@") else address

    def send(self, *states: str) -> None:
        """Send states such as "READY=1". A service manager that does not listen is no error."""
        if not self._address:
            return
        with (
            contextlib.suppress(OSError),
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as end,
        ):
            end.sendto("\n".join(states).encode(), self._address)
