"""The access token of a client. May import its neighbours, `numba_adam.ps` and our errors."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import TypeAlias

from numba_adam.client.transport import profiles
from numba_adam.client.transport.loopback import is_loopback
from numba_adam.errors import ConfigurationError
from numba_adam.ps import loopback_token

_VARIABLE = "NUMBA_ADAM_TOKEN"
_TOKEN = re.compile(r"[A-Za-z0-9._~+/=-]{1,190}")  # RFC 6750, section 2.1
_PORT = re.compile(r"[^,]*:([0-9]{1,5})")

FindToken: TypeAlias = Callable[[], str | None]
"""Returns the token for the next connection. One that a file has may change while the client is open."""


def choose_token(argument: str | None, address: str, environ: Mapping[str, str], *, is_secret: bool) -> FindToken:
    """Return what finds the token for an address: the first that exists of these.

    1. The argument. It is refused where others could read it on its way; the others are left out there.
    2. The variable NUMBA_ADAM_TOKEN.
    3. What `numba-adam login` has kept for this address.
    4. The file that a server on this machine has written for its own user.

    Args:
        argument: the token; None: there is none.
        address: of the server.
        environ: such as os.environ.
        is_secret: whether the connection uses TLS.

    Raises:
        ConfigurationError: a text is not a token, or others could read it on its way. The message does not contain it.
    """
    is_own = is_loopback(address)
    if argument is not None:
        given = checked_token(argument)
        if not is_secret and not is_own:
            raise ConfigurationError(f"token: others could read it on its way to {address} without TLS; pass tls=...")
        return lambda: given
    if not is_secret and not is_own:
        return lambda: None
    if environ.get(_VARIABLE):
        given = checked_token(environ[_VARIABLE])
        return lambda: given
    port = _PORT.fullmatch(address) if is_own else None
    path = None if port is None else loopback_token.file(environ, int(port[1]))

    def find() -> str | None:
        kept = profiles.token_of(environ, address)
        if kept is not None:
            return checked_token(kept)
        token = None if path is None else loopback_token.read(path)
        return token if token is not None and _TOKEN.fullmatch(token) else None

    find()  # a profile that cannot be used is reported here, not by the first call
    return find


def checked_token(text: object) -> str:
    """Return a token, if it is one.

    Raises:
        ConfigurationError: it is not. The message does not contain it.
    """
    if not isinstance(text, str) or not _TOKEN.fullmatch(text):
        raise ConfigurationError("token: expected the text that `numba-adam token make` printed, got something else")
    return text
