"""Notes administrative calls: who, what, when, from where, and what came of it. Imports the guard and the audit log."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import grpc

from numba_adam.ps.errors import to_status
from numba_adam.server.storage import audit_log
from numba_adam.server.storage.token_file import Scope
from numba_adam.server.transport.access import ANYONE, NEEDS, Guard


class Audit:
    """Notes administrative calls in a data folder.

    Args:
        folder: the data folder; None: they are not noted.
        guard: knows the tokens; None: calls need none.
    """

    def __init__(self, folder: Path | None, guard: Guard | None) -> None:
        self._folder, self._guard = folder, guard

    @contextlib.contextmanager
    def call(self, context: grpc.ServicerContext, method: str, model: str) -> Iterator[None]:
        """Note a call when it ends."""
        who, outcome = self._who(context), "OK"  # a token may be revoked during the call
        try:
            yield
        except Exception as error:
            outcome = to_status(error)[0].name
            raise
        finally:
            self._note(audit_log.FILE_NAME, context, who, what=method, model=model, outcome=outcome)

    def refused(self, context: grpc.ServicerContext, method: str, why: str) -> None:
        """Note a call that its token does not allow, if it is an administrative one."""
        if NEEDS[method].scope is Scope.ADMIN:
            record = {"what": method, "outcome": "PERMISSION_DENIED", "why": why}
            self._note(audit_log.REFUSED_NAME, context, self._who(context), **record)

    def _who(self, context: grpc.ServicerContext) -> str:
        return ANYONE if self._guard is None else self._guard.holder(context.invocation_metadata())

    def _note(self, name: str, context: grpc.ServicerContext, who: str, **record: str) -> None:
        if self._folder is not None:
            audit_log.note(self._folder, name, {"who": who, **record, "from": str(context.peer())})
