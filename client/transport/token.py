"""The access token of a client. May import its neighbours and our errors."""

from __future__ import annotations

import re
from collections.abc import Mapping

from numba_adam.client.transport.loopback import is_loopback
from numba_adam.errors import ConfigurationError

_VARIABLE = "NUMBA_ADAM_TOKEN"
_TOKEN = re.compile(r"[A-Za-z0-9._~+/=-]{1,190}")  # RFC 6750, section 2.1


def choose_token(argument: str | None, address: str, environ: Mapping[str, str], *, is_secret: bool) -> str | None:
    """Return the token for an address; None if there is none.

    The token of the environment is left out where it could be read on its way; the argument is refused there.

    Args:
        argument: the token; None: that of the environment.
        address: of the server.
        environ: such as os.environ.
        is_secret: whether the connection uses TLS.

    Raises:
        ConfigurationError: it is not a token, or others could read it on its way. The message does not contain it.
    """
    token = argument if argument is not None else environ.get(_VARIABLE) or None
    if token is None:
        return None
    if not isinstance(token, str) or not _TOKEN.fullmatch(token):
        raise ConfigurationError("token: expected the text that `numba-adam token make` printed, got something else")
    if not is_secret and not is_loopback(address):
        if argument is None:
            return None
        raise ConfigurationError(f"token: others could read it on its way to {address} without TLS; pass tls=...")
    return token
