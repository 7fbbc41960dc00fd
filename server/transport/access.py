"""Access tokens: who may call which method, and for which model.

`Guard.refuse` runs before a call gets a thread, for every method of every service. `Guard.check` runs once the request
is known. Imports the tokens of the data folder.
"""

from __future__ import annotations

import hmac
import logging
import os
import threading
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from numba_adam.errors import (
    AccessDeniedError,
    ConfigurationError,
    TransferTooLargeError,
    UnauthenticatedError,
)
from numba_adam.server.runtime.rates import Cost, Rates, limited
from numba_adam.server.storage import token_file
from numba_adam.server.storage.keys import NO_KEYS, Keys
from numba_adam.server.storage.token_file import EVERY_MODEL, Scope, Token, digest_of

_log = logging.getLogger(__name__)
_KEY, _SCHEME = "authorization", "bearer "
_LONGEST = 200

Metadata = Iterable[tuple[str, str | bytes]]


ANYONE = "anyone"
"""Who calls a server that asks for no token, in the audit log."""

_OWNER = "owner"


class Need(NamedTuple):
    """What a method needs."""

    scope: Scope | None
    """For the model of the request; None: any token, and the answer has only the models that the token may pull."""

    model: Callable[[Any], str]
    """Returns the name of the model in a request, or in the header of a stream."""

    is_of_worker: bool = False
    """Whether the request has a worker id, which belongs to the token."""

    is_push: bool = False
    """Whether it is a push, which the limits of the token count."""


NEEDS: dict[str, Need] = {
    "CreateModel": Need(Scope.ADMIN, lambda header: str(header.spec.name)),
    "GetModel": Need(Scope.PULL, lambda request: str(request.model)),
    "ListModels": Need(None, lambda _: EVERY_MODEL),
    "UpdateModel": Need(Scope.ADMIN, lambda request: str(request.model)),
    "DeleteModel": Need(Scope.ADMIN, lambda request: str(request.model)),
    "OpenSession": Need(Scope.PUSH, lambda request: str(request.model), is_of_worker=True),
    "Push": Need(Scope.PUSH, lambda header: str(header.model), is_of_worker=True, is_push=True),
    "AwaitPush": Need(Scope.PUSH, lambda request: str(request.model), is_of_worker=True),
    "Heartbeat": Need(Scope.PUSH, lambda request: str(request.model), is_of_worker=True),
    "ListWorkers": Need(Scope.ADMIN, lambda request: str(request.model)),
    "EvictWorker": Need(Scope.ADMIN, lambda request: str(request.model)),
    "Pull": Need(Scope.PULL, lambda request: str(request.model)),
    "PushPull": Need(Scope.PUSH, lambda header: str(header.model), is_of_worker=True, is_push=True),
    "Snapshot": Need(Scope.ADMIN, lambda request: str(request.model) or EVERY_MODEL),
    "GetServerStatus": Need(None, lambda _: EVERY_MODEL),
}
"""Every method of the parameter service. Those of other services need any token."""


class Guard:
    """Checks the tokens of calls against those of a data folder.

    Args:
        folder: the data folder. Its tokens are read again whenever their file changes.
        keys: of the data folder.
    """

    def __init__(self, folder: Path, keys: Keys = NO_KEYS) -> None:
        self._folder, self._keys = folder, keys
        self._path = str(folder / token_file.FILE_NAME)  # a call makes no Path of it
        self._lock = threading.Lock()
        self._identity: tuple[int, ...] | None = None
        self._tokens: dict[str, Token] = {}
        self._rates = Rates()
        self._own: dict[str, Token] = {}

    def accept(self, secret: str) -> None:
        """Accept a token that is in no file. It allows everything, and worker ids stay as they are."""
        forever, digest = datetime.max.replace(tzinfo=UTC), digest_of(secret)
        self._own = {digest: Token("", digest, forever, {EVERY_MODEL: Scope.ADMIN})}

    def check_usable(self, listen: str) -> None:
        """Check that there is a valid token.

        Raises:
            ConfigurationError: there is none, or the file of tokens cannot be read.
        """
        if not any(datetime.now(UTC) < token.expires for token in token_file.read(self._folder, self._keys)):
            raise ConfigurationError(
                f"listen={listen!r}: other machines could reach this address, so it needs tokens, and there is no "
                f"valid one in {str(self._folder)!r}. Make one with: numba-adam token make NAME --admin '*' --data-dir "
                f"{self._folder}"
            )

    def refuse(self, metadata: Metadata) -> str | None:
        """Return why a call is refused, whatever it asks for; None if its token is valid."""
        try:
            self._token(metadata)
        except UnauthenticatedError as error:
            return str(error)
        return None

    def check(self, metadata: Metadata, method: str, request: Any) -> None:
        """Check that a call may do what it asks for. The worker id of the request gets the name of its token.

        Raises:
            UnauthenticatedError: the call has no valid token.
            AccessDeniedError: the token may not do that.
            TransferTooLargeError, RateLimitedError: it may not do that much.
        """
        need, token = NEEDS[method], self._token(metadata)
        if need.scope is not None:
            model = need.model(request)
            scope = token.scope(model)
            if scope is None or scope < need.scope:
                raise AccessDeniedError(
                    f"the token of {token.name!r} does not allow {method} for {_words(model)}: it needs the scope "
                    f"{need.scope.name.lower()!r}"
                )
        if need.is_push:
            _check_size(token, request.total_bytes)
            self._take(token, 1, request.total_bytes)
        elif method == "CreateModel":
            self._take(token, 0, request.total_bytes)
        if need.is_of_worker and token.name:
            request.worker_id = f"{token.name}/{request.worker_id}"

    def count(self, metadata: Metadata, nbytes: int, *, must: bool = False) -> None:
        """Count the bytes of an answer.

        Args:
            metadata: of the call.
            nbytes: that it sends.
            must: True: the call has changed the model already, so it gets its answer in any case.

        Raises:
            UnauthenticatedError: the call has no valid token.
            RateLimitedError: the token may not receive that much now.
        """
        self._take(self._token(metadata), 0, nbytes, must=must)

    def name_of(self, metadata: Metadata) -> str:
        """Return the name of a call's token, never the token itself; empty if the call has no valid one."""
        try:
            return self._token(metadata).name
        except UnauthenticatedError:
            return ""

    def holder(self, metadata: Metadata) -> str:
        """Return who calls, for the audit log: "token NAME", or "owner" for the token of the server's own user."""
        try:
            token = self._token(metadata)
        except UnauthenticatedError:  # it was revoked during the call
            return "a token that is not valid any more"
        return f"token {token.name}" if token.name else _OWNER

    def visible(self, metadata: Metadata) -> Callable[[str], bool]:
        """Return a function that says whether a call may know of a model.

        Raises:
            UnauthenticatedError: the call has no valid token.
        """
        token = self._token(metadata)
        return lambda model: token.scope(model) is not None

    def _take(self, token: Token, pushes: int, nbytes: int, *, must: bool = False) -> None:
        """Count what a call does.

        Raises:
            RateLimitedError: the token may not do that much now.
        """
        limits = token.limits
        costs: list[Cost] = []
        if pushes and limits.pushes_per_second is not None:
            costs.append(Cost(token.name, "pushes", limits.pushes_per_second, pushes))
        if limits.bytes_per_second is not None:
            costs.append(Cost(token.name, "bytes", limits.bytes_per_second, nbytes))
        wait = self._rates.take(costs, must=must) if costs else 0.0
        if wait:
            allowed = " and ".join(f"{cost.rate:g} {cost.what}" for cost in costs)
            raise limited(f"the token of {token.name!r} allows {allowed} per second", wait)

    def _token(self, metadata: Metadata) -> Token:
        """Return the valid token of a call.

        The time does not grow with the number of tokens, and says nothing of use about them: the table has SHA-256s,
        whose bits nobody can choose, and the one that is found is compared in constant time.
        """
        secret = _secret_of(metadata)
        if secret is None:
            raise UnauthenticatedError(
                "the call has no token; pass token=..., or set NUMBA_ADAM_TOKEN. Make one on the server's machine: "
                "numba-adam token make. On loopback, clients of the server's user need none"
            )
        digest = digest_of(secret)
        found = self._current().get(digest) or self._own.get(digest)
        if found is None or not hmac.compare_digest(found.digest, digest):
            raise UnauthenticatedError("the token of the call is unknown, or it was revoked; use a current one")
        if datetime.now(UTC) >= found.expires:
            raise UnauthenticatedError(f"the token of {found.name!r} expired at {found.expires:%Y-%m-%d %H:%M} UTC")
        return found

    def _current(self) -> dict[str, Token]:
        """Return the tokens of the file, by their digests; none if it cannot be read."""
        identity = _identity_of(self._path)
        with self._lock:
            if identity != self._identity:
                self._identity = identity
                try:
                    self._tokens = {token.digest: token for token in token_file.read(self._folder, self._keys)}
                except ConfigurationError as error:
                    self._tokens = {}
                    _log.error("no token is valid until its file is repaired: %s", error)
            return self._tokens


def _secret_of(metadata: Metadata) -> str | None:
    """Return the token in a call's metadata; None if there is none, or more than one."""
    values = [value for key, value in metadata if key == _KEY]
    if len(values) != 1 or not isinstance(values[0], str) or len(values[0]) > _LONGEST:
        return None
    scheme, secret = values[0][: len(_SCHEME)], values[0][len(_SCHEME) :]
    return secret if scheme.lower() == _SCHEME and secret else None


def _check_size(token: Token, nbytes: int) -> None:
    largest = token.limits.largest_push
    if largest is not None and nbytes > largest:
        raise TransferTooLargeError(
            f"total_bytes={nbytes}: the token of {token.name!r} allows pushes of at most {largest} bytes; push fewer "
            "arrays at a time, or 16-bit gradients, or ask for another token"
        )


def _words(model: str) -> str:
    return "all models" if model == EVERY_MODEL else f"the model {model[:128]!r}"


def _identity_of(path: str) -> tuple[int, ...]:
    try:
        status = os.lstat(path)
    except OSError:
        return ()
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
